"""What each head's sink is worth: knock it out in one head after the other, and see what the text then costs.

One pass over the text for every head, so it takes a while; what is known is told as it comes, and whoever has seen
enough stops asking.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import files, metrics
from ..engine.stream import CHUNK, open_lanes
from ..policies import Banded, Duo, Policy
from ..tables import as_csv

TURN = 0.25
"""Seconds that a pass should take where somebody waits: they see that it goes on, and are heard when they stop it."""
FEWEST, ONE_BY_ONE = 32, 4
"""Tokens of such a pass, at least: fewer cost hardly less, but where a policy reads one by one."""


class Effect(NamedTuple):
    """What a text costs more when one head's sink is knocked out: nats per token, and its standard error."""

    layer: int
    head: int
    excess: float
    error: float


HEADER = ("layer", "head", "excess_nats_per_token", "standard_error")


def effects_as_csv(effects: Iterable[Effect]) -> str:
    """A row for each effect, in the order in which they come."""
    return as_csv(HEADER, (list(map(str, effect)) for effect in effects))


class Kept:
    """A CSV file that takes in the effect of each head as it comes, and is put in order at the end.

    Raises ValueError where the disk does not take it, and where there is such a file already.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._effects = path, list[Effect]()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as f:
                f.write(as_csv(HEADER, []))
        except OSError as e:
            raise files.unwritten(path, e) from e

    def add(self, effect: Effect) -> None:
        self._effects.append(effect)
        try:
            with self.path.open("a", encoding="utf-8") as f:
                f.write(as_csv(None, [list(map(str, effect))]))
        except OSError as e:
            raise files.unwritten(self.path, e) from e

    def finish(self) -> None:
        """All heads that are known, largest effect first."""
        files.write(self.path, effects_as_csv(sorted(self._effects, key=lambda e: -e.excess)))


def knock_outs(
    model,
    tokens,
    policy: Policy,
    kind: str,
    heads: Iterable[tuple[int, int]] | None = None,
    *,
    chunk: int | None = None,
) -> Iterator[Effect | float]:
    """The effect of each head (all of them, or those given as layer and head), as soon as it is known; and before it,
    again and again, how many times the text has been read by now: 3.5 is half of the fourth.  The first is as it is.

    `kind`: values or weights (what_if.py); `chunk`: tokens that are read at a time, None for as many as take about TURN
    seconds.  The text is cut at the same places whenever it is read, so that rounding is the same.  The standard error
    is over blocks of 256 tokens, NaN for a text of less than two.  Raises ValueError as `open_lanes` does.
    """
    plain, cuts = yield from _first(model, tokens, replace(policy, knockout="none"), chunk)
    adapted = open_lanes(model, tokens, [policy])[0].source.model
    every = ((layer, head) for layer in range(adapted.layers) for head in range(adapted.heads))
    for done, (layer, head) in enumerate(every if heads is None else heads, 1):
        bent = yield from _again(adapted, tokens, replace(policy, knockout=kind, heads=f"{layer}.{head}"), cuts, done)
        yield Effect(layer, head, *metrics.excess(bent, plain))


def knock_out_each(
    model, tokens, policy: Policy, kind: str, heads: Iterable[tuple[int, int]] | None = None, *, chunk: int = CHUNK
) -> Iterator[Effect]:
    """The effects alone."""
    return (told for told in knock_outs(model, tokens, policy, kind, heads, chunk=chunk) if isinstance(told, Effect))


def _first(
    model, tokens, policy: Policy, chunk: int | None
) -> Generator[float, None, tuple[NDArray[np.float32], list[int]]]:
    """NLL of the text, and up to where each pass went."""
    fewest = FEWEST if isinstance(policy, Banded | Duo) else ONE_BY_ONE
    size = chunk or fewest
    lane, parts, cuts = open_lanes(model, tokens, [policy])[0], [], []
    while not lane.done:
        began = time.perf_counter()
        parts.append(lane.read(size).nll)
        cuts.append(lane.position)
        if chunk is None:
            fitting = len(parts[-1]) * TURN / (time.perf_counter() - began)
            size = int(min(CHUNK, 4 * size, max(fewest, fitting)))
        yield lane.position / len(tokens)
    return np.concatenate(parts), cuts


def _again(model, tokens, policy: Policy, cuts: list[int], done: int) -> Generator[float, None, NDArray[np.float32]]:
    lane, parts = open_lanes(model, tokens, [policy])[0], []
    for cut in cuts:
        while lane.position < cut:
            parts.append(lane.read(cut - lane.position, upto=cut).nll)
        yield done + cut / len(tokens)
    return np.concatenate(parts)
