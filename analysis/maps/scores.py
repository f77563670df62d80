"""Scores of one head's queries to the keys of a stretch that they reach, before softmax.

All is float32, whatever the model computes in.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..engine.attention.band import Band
from ..families.rotary import Adapted
from .region import Region
from .stretch import Segment, Stretch

FEW = 4
"""So few keys are soon rotated again, and would take the place of many."""
Scores = Float[Tensor, "queries keys"]


class LastRotated:
    """The keys that were rotated last, since queries that follow one another reach the same; any number of threads may
    ask."""

    def __init__(self) -> None:
        # Which they are, and they: replaced as one, and read once by whoever asks.
        self._held: tuple[tuple, Tensor] | None = None

    def get(self, which: tuple, rotate: Callable[[], Tensor]) -> Float[Tensor, "keys dim"]:
        """These keys, rotated only where they were not the last ones."""
        held = self._held
        if held is None or held[0] != which:
            held = which, rotate()
            if len(held[1]) > FEW:
                self._held = held
        return held[1]


@dataclass(frozen=True)
class Asking:
    """Queries start … stop − 1 of one head of a model, in one segment of a stretch."""

    model: Adapted
    stretch: Stretch
    layer: int
    head: int
    segment: Segment
    start: int
    stop: int

    def scores(self, region: Region, last: LastRotated) -> Iterator[tuple[int, Scores]]:
        """Scores to the keys of a region's columns that any of these queries reaches: of the window, then of the sinks.

        Yields the first column and scores [queries, keys], −inf where a query does not reach a key; the window's begin
        at a cell.
        """
        low, (left, right) = int(self.band.low(self.t[:1])), region.columns
        first, end = max(left, left + (low - left) // region.scale * region.scale), min(right, self.stop)
        if first < end:
            yield first, self._to_window(first, end, low, right, last)
        sinks = min(self.band.sinks, right, self.stop)
        if left < sinks:
            yield left, self._to_sinks(left, sinks)

    @cached_property
    def band(self) -> Band:
        """What these queries reach."""
        return self.segment.reach.narrowed(self.settings.get("sliding_window"))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the family hands to the attention of this layer."""
        return self.model.settings[self.layer]

    @cached_property
    def t(self) -> Tensor:
        """Where these queries stand in the stretch, [queries]."""
        return torch.arange(self.start, self.stop)

    @cached_property
    def _scaled(self) -> Float[Tensor, "queries dim"]:
        """The queries before rotation, times what scores are scaled by."""
        query = torch.from_numpy(np.array(self.stretch.queries[self.layer, self.head, self.start : self.stop]))
        return query * (self.settings.get("scaling") or query.shape[-1] ** -0.5)

    def _to_window(self, first: int, end: int, low: int, right: int, last: LastRotated) -> Scores:
        """Scores to keys first … end − 1 of the window, where the first query reaches back to `low`; `right`: where the
        region's columns end."""
        band, origin = self.band, min(low, first)
        # Without a window all blocks of queries reach the same keys, up to their own: those are rotated once.
        until = end if band.window is not None else min(right, self.segment.stop)
        at = band.in_window(torch.arange(first, until), origin)
        which = self.layer, self._kv_head, first, until, origin, band, self.segment.length
        keys = last.get(which, lambda: self._rotated(self._keys(self.stretch.keys, first, until), at))[: end - first]
        queries = self._rotated(self._scaled, band.in_window(self.t, origin))
        scores = self._met(queries @ keys.T, queries, first, at[: end - first])
        # Only at its two edges does a band hold keys that not all of these queries reach.
        high = int(band.low(self.t[-1:]))
        edges = slice(0, max(0, min(end, high + 1) - first)), slice(max(0, self.start - first), end - first)
        return self._finished(
            scores, first, [e for e in edges if e.start < e.stop], replace(self.segment.reach, sinks=0)
        )

    def _to_sinks(self, first: int, end: int) -> Scores:
        """Scores to sinks first … end − 1."""
        at = self.band.at_sinks(torch.device("cpu"))[first:end]
        keys = self._rotated(self._keys(self.stretch.keys, first, end), at)
        queries = self._rotated(self._scaled, self.band.slot(self.t))
        scores = self._met(queries @ keys.T, queries, first, at)
        return self._finished(scores, first, [slice(0, end - first)], self.segment.reach)

    @property
    def _kv_head(self) -> int:
        return self.head // (self.model.heads // self.model.kv_heads)

    def _keys(self, kept: NDArray, first: int, end: int) -> Float[Tensor, "keys dim"]:
        """Keys first … end − 1 that this head reads, before rotation."""
        return torch.from_numpy(np.array(kept[self.layer, self._kv_head, first:end]))

    def _rotated(self, x: Float[Tensor, "tokens dim"], positions: Tensor) -> Float[Tensor, "tokens dim"]:
        """Queries or keys where they stand."""
        model, attention = self.model, self.model.attentions[self.layer]
        angles = model.angles(attention, positions.to(model.device), self.segment.length, torch.float32)
        angles = None if angles is None else (angles[0].cpu(), angles[1].cpu())
        return model.rotate(attention, x[None, None], angles)[0, 0]

    def _met(self, scores: Scores, queries: Tensor, first: int, at: Tensor) -> Scores:
        """Scores to the keys from `first` on, which stand at these positions: to those that are quantized when a query
        meets them, as such."""
        if self.stretch.quantization is None or self.stretch.quantized is None:
            return scores
        end = first + len(at)
        then = self._rotated(self._keys(self.stretch.quantized, first, end), at)
        return torch.where(self.stretch.quantization.met(self.t, torch.arange(first, end)), queries @ then.T, scores)

    def _finished(self, scores: Scores, first: int, partly: list[slice], seen: Band) -> Scores:
        """Capped, and −inf for what is not reached; only columns `partly` may hold such."""
        cap, sliding = self.settings.get("softcap"), self.settings.get("sliding_window")
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        for columns in partly:
            positions = torch.arange(first + columns.start, first + columns.stop)
            scores[:, columns].masked_fill_(~seen.sees(self.t, positions, sliding), float("-inf"))
        return scores
