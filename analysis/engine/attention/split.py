"""One forward pass over layers whose heads are of two kinds: some keep everything, the others a band.

Each kind is read by a banded pass of its own over its own keys; here heads are dealt out to them and put together
again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...families.positions import AttentionModule
from ..layers.quantized import Newly
from .banded import BandedPass


@dataclass(eq=False)
class SplitPass:
    """One forward pass over split layers.

    After the pass `mass[layer]` holds the sink mass, [heads, queries]; with `capture`, `queries[layer]` and
    `keys[layer]` what the layer computed before rotation, [1, heads, tokens, dim].
    """

    heads: Sequence[Sequence[Int[Tensor, " some_heads"]]]
    """Of each layer: the KV heads of each part."""
    parts: tuple[BandedPass, BandedPass]
    capture: bool = False
    attended: list[Tensor] | None = None
    """Where given, it takes the output of each layer's attention, [1, queries, heads, dim]."""
    mass: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    newly: list[list[Newly | None]] = field(default_factory=list)
    """What each part of each layer has quantized between two of these tokens."""

    def attend(
        self,
        attention: AttentionModule,
        query: Float[Tensor, "1 heads queries dim"],
        key: Float[Tensor, "1 kv_heads queries dim"],
        value: Float[Tensor, "1 kv_heads queries dim"],
        *,
        s_aux: Float[Tensor, " heads"] | None = None,
        **settings: Any,
    ) -> Float[Tensor, "1 queries heads dim"]:
        """The layer's output; its keys and values are then held by both parts."""
        layer, (_, heads, queries, _) = attention.layer_idx, query.shape
        out = value.new_empty(1, queries, heads, value.shape[-1])
        mass = torch.empty(heads, queries, device=query.device)
        self.newly.append([None] * len(self.parts))
        for number, (part, own) in enumerate(zip(self.parts, self.heads[layer], strict=True)):
            if not len(own):
                # It still counts how much there would be.
                part.extend(layer, key[:, own], value[:, own])
                continue
            asking = of_group(own, heads // key.shape[1])
            sinks = None if s_aux is None else s_aux[asking]
            out[:, :, asking] = part.attend(
                attention, query[:, asking], key[:, own], value[:, own], s_aux=sinks, **settings
            )
            mass[asking] = part.mass[-1]
            if part.newly:
                self.newly[-1][number] = part.newly[-1]
        self.mass.append(mass)
        if self.attended is not None:
            self.attended.append(out)
        if self.capture:
            self.queries.append(query)
            self.keys.append(key)
        return out


def of_group(kv_heads: Int[Tensor, " some_heads"], groups: int) -> Int[Tensor, " heads"]:
    """The query heads that share these KV heads."""
    return (kv_heads[:, None] * groups + torch.arange(groups, device=kv_heads.device)).flatten()
