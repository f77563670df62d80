"""Caches whose heads are of two kinds, and the forward pass over them: some keep everything, the others a band.

Each kind is read as its own policy has it (attention.py), by a reader of its own over a cache of its own; here heads
are dealt out to them and put together again.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..attention.banded import BandedPass
from .banded import BandedLayer, Span


class SplitLayer:
    """What one layer keeps: `parts`, and which of its KV heads each of them has, `names` (ascending); `heads` are the
    same on the layer's device."""

    def __init__(self, cache: BandedLayer, full: Sequence[int]) -> None:
        """What a layer holds, dealt out: these KV heads, and the others."""
        others = [head for head in range(len(cache.sink_keys)) if head not in full]
        self.names = list(full), others
        self.heads = tuple(torch.tensor(own, dtype=torch.int64, device=cache.sink_keys.device) for own in self.names)
        self.parts = tuple(cache.of_heads(own) for own in self.heads)

    def spans(self, read: int) -> list[Span]:
        """What its heads hold when `read` tokens have been read: nothing is said of a part that has none."""
        return [part.span for part, own in zip(self.parts, self.names, strict=True) if own]

    def ends(self, sinks: int, run: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first and the newest tokens, so many of each, which all heads must hold."""
        order = torch.cat(self.heads).argsort()
        of_parts = [part.ends(sinks, run) for part, own in zip(self.parts, self.names, strict=True) if own]
        return tuple(torch.cat(x)[order] for x in zip(*of_parts, strict=True))

    @property
    def slots(self) -> int:
        return sum(part.slots for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def put_first(self, keys: Tensor, values: Tensor) -> None:
        for part, own in zip(self.parts, self.heads, strict=True):
            part.put_first(keys[own], values[own])

    def copy(self) -> "SplitLayer":
        twin = copy.copy(self)
        twin.parts = tuple(part.copy() for part in self.parts)
        return twin


@dataclass(eq=False)
class SplitPass:
    """One forward pass over split caches, of tokens that begin at text position `token`.

    After the pass `mass[layer]` holds the sink mass, [heads, queries]; with `capture`, `queries[layer]` and
    `keys[layer]` what the layer computed before rotation, [1, heads, tokens, dim].
    """

    token: int
    caches: list[SplitLayer]
    readings: tuple[BandedPass, BandedPass]
    capture: bool = False
    mass: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)

    def attend(
        self, attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, s_aux: Tensor | None = None, **more
    ) -> Tensor:
        """The layer's output [1, queries, heads, dim]; its keys and values are then in the caches of both parts."""
        layer, (_, heads, queries, _) = attention.layer_idx, query.shape
        out = value.new_empty(1, queries, heads, value.shape[-1])
        mass = torch.empty(heads, queries, device=query.device)
        for reading, own in zip(self.readings, self.caches[layer].heads, strict=True):
            if not len(own):
                # It still counts how much there would be.
                reading.extend(layer, key[:, own], value[:, own])
                continue
            asking = of_group(own, heads // key.shape[1])
            sink = None if s_aux is None else s_aux[asking]
            out[:, :, asking] = reading.attend(
                attention, query[:, asking], key[:, own], value[:, own], s_aux=sink, **more
            )
            mass[asking] = reading.mass[-1]
        self.mass.append(mass)
        if self.capture:
            self.queries.append(query)
            self.keys.append(key)
        return out


def of_group(own: Tensor, groups: int) -> Tensor:
    """The query heads that share these KV heads."""
    return (own[:, None] * groups + torch.arange(groups, device=own.device)).flatten()
