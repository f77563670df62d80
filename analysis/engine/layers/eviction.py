"""Eviction of ranked slots, after a pass from all layers of a lane at once, and within one from the layer that reads.

Ranking is many small steps over few numbers: thirty layers together take a quarter of the time that they take one by
one.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...policies.ranked import Ranked
from .ranked import Evicted, RankedLayer


@torch.inference_mode()
def evict(
    layers: Sequence[RankedLayer],
    policy: Ranked,
    numbers: Sequence[int],
    *,
    tell: bool,
    dims: int | None = None,
    rotation: Callable[[int], Float[Tensor, "dim dim"]] | None = None,
) -> dict[int, Evicted]:
    """Evict what the policy ranks lowest from each of the layers with these numbers that holds more than its budget;
    `tell`: and return it.

    `dims`, and what `rotation` says of each layer, are those of RankedLayer.seen.
    """
    alike: dict[tuple, list[int]] = {}
    for number in numbers:
        layer = layers[number]
        if len(layer) > (budget := policy.budget_of(number, len(layers))):
            # Several heads may share a row, and hold no whole number of slots on average.
            slots, heads = layer.keys.shape[1], layer.kv_heads // len(layer.keys)
            count = slots - policy.left(len(layer), budget) * heads
            alike.setdefault((layer.keys.device, slots, count), []).append(number)
    evicted: dict[int, Evicted] = {}
    for (_, slots, count), same in alike.items():
        seen = [layers[i].layer_state(i, dims, None if rotation is None else rotation(i)) for i in same]
        leaves, rows = policy.order(seen, count), len(seen[0].positions)
        for number, state, *parts in zip(
            same, seen, leaves.split(rows), _others(leaves, slots).split(rows), strict=True
        ):
            if tell:
                evicted[number] = layers[number].evicted(parts[0])
            layers[number].evict(policy, state, *parts)
    return evicted


def _others(some: Int[Tensor, "rows some"], slots: int) -> Int[Tensor, "rows others"]:
    """The other ones of so many slots, in order."""
    # Of those that stay the one with number i comes behind all whose own number is no greater, when they have left.
    number, leaving = torch.arange(slots - some.shape[1], device=some.device), some.shape[1]
    if leaving == 1:
        return number + (number >= some)
    before = some.sort().values - torch.arange(leaving, device=some.device)
    return number + torch.searchsorted(before, number.expand(len(some), -1).contiguous(), right=True)
