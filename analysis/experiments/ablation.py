"""What each head's sink is worth: knock it out in one head after the other, and see what the text then costs.

One pass over the text for every head, so it takes a while; what is known is yielded as it comes, and whoever has seen
enough stops asking.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from .. import files, metrics
from ..engine.stream import CHUNK, Loaded, open_lanes
from ..families.rotary import Adapted
from ..policies import Policy
from ..tables import as_csv, from_csv

PASS_SECONDS = 0.25
"""What a pass should take where somebody waits: they see that it goes on, and can stop it."""
MIN_CHUNK, MIN_CHUNK_ONE_BY_ONE = 32, 4
"""Tokens of such a pass, at least: fewer cost hardly less, but where a policy reads one by one."""
Model = Loaded | PreTrainedModel | Adapted
HEADER = ("layer", "head", "excess_nats_per_token", "standard_error")


class Effect(NamedTuple):
    """What a text costs more when one head's sink is knocked out: nats per token, and its standard error."""

    layer: int
    head: int
    excess: float
    error: float


def effects_as_csv(effects: Iterable[Effect]) -> str:
    """A row for each effect, in the order in which they come."""
    return as_csv(HEADER, (list(map(str, effect)) for effect in effects))


def read_effects(path: Path) -> list[Effect]:
    """The effects in a CSV file, in its order.  Raises ValueError where it is damaged."""
    rows = from_csv(files.contents(path), HEADER, str(path))
    try:
        found = [Effect(int(row[0]), int(row[1]), float(row[2]), float(row[3])) for row in rows]
    except ValueError as e:
        raise ValueError(f"{path} has a cell that is no number: it is damaged") from e
    if any(min(effect.layer, effect.head) < 0 for effect in found):
        raise ValueError(f"{path} has a layer or a head below 0: it is damaged")
    return found


class EffectsFile:
    """A CSV file that takes in the effect of each head as it comes, and is sorted at the end.

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
        """Append the effect of one more head.  Raises ValueError where the disk does not take it."""
        self._effects.append(effect)
        try:
            with self.path.open("a", encoding="utf-8") as f:
                f.write(as_csv(None, [list(map(str, effect))]))
        except OSError as e:
            raise files.unwritten(self.path, e) from e

    def finish(self) -> None:
        """Write all effects again, the largest first.  Raises ValueError where the disk does not take it."""
        files.write(self.path, effects_as_csv(sorted(self._effects, key=lambda e: -e.excess)))


def knock_outs(
    model: Model,
    tokens: NDArray[np.int32],
    policy: Policy,
    kind: str,
    heads: Iterable[tuple[int, int]] | None = None,
    *,
    chunk: int | None = None,
) -> Iterator[Effect | float]:
    """The effect of each head (all of them, or those given as layer and head), as soon as it is known.  Before it come
    floats, how many times the text has been read by now: 3.5 is half of the fourth.  The first pass knocks nothing out.

    `kind`: values or weights (engine/interventions.py); `chunk`: tokens that are read at a time, None for as many as
    take about PASS_SECONDS.  The text is cut at the same places whenever it is read, so that rounding is the same.  The
    standard error is over blocks of 256 tokens, NaN for a text of less than two.  Raises ValueError as `open_lanes`
    does.
    """
    unmodified, cuts = yield from _read_unmodified(model, tokens, replace(policy, knockout="none"), chunk)
    adapted = open_lanes(model, tokens, [policy])[0].context.model
    if heads is None:
        heads = ((layer, head) for layer in range(adapted.layers) for head in range(adapted.heads))
    for done, (layer, head) in enumerate(heads, 1):
        without = replace(policy, knockout=kind, heads=f"{layer}.{head}")
        knocked_out = yield from _read_again(adapted, tokens, without, cuts, done)
        yield Effect(layer, head, *metrics.excess(knocked_out, unmodified))


def knock_out_each(
    model: Model,
    tokens: NDArray[np.int32],
    policy: Policy,
    kind: str,
    heads: Iterable[tuple[int, int]] | None = None,
    *,
    chunk: int = CHUNK,
) -> Iterator[Effect]:
    """The effects alone, as `knock_outs` yields them."""
    return (e for e in knock_outs(model, tokens, policy, kind, heads, chunk=chunk) if isinstance(e, Effect))


def _read_unmodified(
    model: Model, tokens: NDArray[np.int32], policy: Policy, chunk: int | None
) -> Generator[float, None, tuple[NDArray[np.float32], list[int]]]:
    """NLL of the text, and up to where each pass went."""
    least = MIN_CHUNK if policy.pass_tokens is None else MIN_CHUNK_ONE_BY_ONE
    size = chunk or least
    lane, parts, cuts = open_lanes(model, tokens, [policy])[0], [], []
    while not lane.done:
        began = time.perf_counter()
        parts.append(lane.read(size).nll)
        cuts.append(lane.position)
        if chunk is None:
            fitting = len(parts[-1]) * PASS_SECONDS / (time.perf_counter() - began)
            size = int(min(CHUNK, 4 * size, max(least, fitting)))
        yield lane.position / len(tokens)
    return np.concatenate(parts), cuts


def _read_again(
    model: Adapted, tokens: NDArray[np.int32], policy: Policy, cuts: list[int], done: int
) -> Generator[float, None, NDArray[np.float32]]:
    """NLL of the text, read in passes that end at `cuts`, when it has been read `done` times."""
    lane, parts = open_lanes(model, tokens, [policy])[0], []
    for cut in cuts:
        while lane.position < cut:
            parts.append(lane.read(cut - lane.position, upto=cut).nll)
        yield done + cut / len(tokens)
    return np.concatenate(parts)
