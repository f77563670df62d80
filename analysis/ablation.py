"""What each head's sink is worth: knock it out in one head after the other, and see what the text then costs.

One pass over the text for every head, so it takes a while; what is known is told as it comes, and whoever has seen
enough stops asking.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import files, metrics
from .experiments import as_csv
from .policies import Policy
from .stream import CHUNK, open_lanes


class Effect(NamedTuple):
    """What a text costs more when one head's sink is knocked out: nats per token, and its standard error."""

    layer: int
    head: int
    excess: float
    error: float


class Kept:
    """A CSV file that takes in the effect of each head as it comes, and is put in order at the end.

    Raises ValueError where the disk does not take it, and where there is such a file already.
    """

    HEADINGS = ("layer", "head", "excess_nats_per_token", "standard_error")

    def __init__(self, path: Path) -> None:
        self.path, self._effects = path, list[Effect]()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as f:
                f.write(",".join(self.HEADINGS) + "\n")
        except OSError as e:
            raise files.unwritten(path, e) from e

    def add(self, effect: Effect) -> None:
        self._effects.append(effect)
        try:
            with self.path.open("a", encoding="utf-8") as f:
                f.write(",".join(map(str, effect)) + "\n")
        except OSError as e:
            raise files.unwritten(self.path, e) from e

    def finish(self) -> None:
        """All heads that are known, largest effect first."""
        ranked = sorted(self._effects, key=lambda e: -e.excess)
        files.write(self.path, as_csv(self.HEADINGS, [list(map(str, e)) for e in ranked]))


def knock_out_each(
    model, tokens, policy: Policy, kind: str, heads: Iterable[tuple[int, int]] | None = None, *, chunk: int = CHUNK
) -> Iterator[Effect]:
    """The effect of each head (all of them, or those given as layer and head), as soon as it is known.

    `kind`: values or weights (what_if.py).  The standard error is over blocks of 256 tokens, NaN for a text of less
    than two.  Raises ValueError as `open_lanes` does.
    """
    plain = _nll(model, tokens, replace(policy, knockout="none"), chunk)
    adapted = open_lanes(model, tokens, [policy])[0].source.model
    every = ((layer, head) for layer in range(adapted.layers) for head in range(adapted.heads))
    for layer, head in every if heads is None else heads:
        bent = _nll(adapted, tokens, replace(policy, knockout=kind, heads=f"{layer}.{head}"), chunk)
        yield Effect(layer, head, *metrics.excess(bent, plain))


def _nll(model, tokens, policy: Policy, chunk: int) -> NDArray[np.float32]:
    lane = open_lanes(model, tokens, [policy])[0]
    parts = []
    while not lane.done:
        parts.append(lane.read(chunk).nll)
    return np.concatenate(parts)
