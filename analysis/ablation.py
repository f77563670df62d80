"""What each head's sink is worth: knock it out in one head after the other, and see what the text then costs.

One pass over the text for every head, so it takes a while; what is known is told as it comes, and whoever has seen
enough stops asking.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import metrics
from .policies import Policy
from .stream import CHUNK, open_lanes


class Effect(NamedTuple):
    """What a text costs more when one head's sink is knocked out: nats per token, and its standard error."""

    layer: int
    head: int
    excess: float
    error: float


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
