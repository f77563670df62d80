"""Queries and keys of the newest tokens, kept for maps, and which keys each of these queries met."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..policies.ranked import Ranked
from .attention.band import Band
from .attention.token import TokenPass
from .interventions import Interventions
from .layers.packed import AsItCame
from .layers.quantized import Met
from .layers.ranked import Evicted


class KeyPart(NamedTuple):
    """Keys that the queries of a chunk may reach, before rotation, and what is needed to score them."""

    keys: Float[Tensor, "keys dim"]
    positions: Int[Tensor, " keys"]
    """In the text."""
    key_rotated_at: Int[Tensor, " keys"]
    query_rotated_at: Int[Tensor, " queries"]
    """Positions at which keys and queries are rotated: only their differences count."""
    reached: Bool[Tensor, "queries keys"]
    quantized: Float[Tensor, "keys dim"] | None = None
    """The same keys where some are quantized."""
    met: Bool[Tensor, "queries keys"] | None = None
    """Which queries met which of them so."""


KeyParts = tuple[list[KeyPart], Bool[Tensor, " queries"]]
"""All keys that a chunk's queries may reach, and which queries still have all of theirs: their rows are exact."""


@dataclass(frozen=True, eq=False)
class QKChunk:
    """Queries and keys of one chunk before rotation, per layer: [heads, tokens, dim] and [kv_heads, tokens, dim]."""

    start: int
    stop: int
    band: Band
    queries: list[Tensor]
    keys: list[Tensor]
    interventions: Interventions | None = None
    length: int = 1
    """Of the context for which its rotations were chosen (families/frequencies.py)."""
    sinks: Sequence[Sequence[Tensor]] = ()
    """Keys of the sinks that these queries met, per layer [kv_heads, sinks, dim]; where `full` is given, first those of
    the heads that keep everything and then those of the others."""
    full: Sequence[Sequence[int]] | None = None
    """KV heads of each layer that keep everything, whatever the band of the others."""
    whole: Band | None = None
    """What those reach."""
    quantized: Met | None = None
    """What these queries met of keys that are quantized."""

    @classmethod
    def of(cls, decoded: Sequence[TokenPass]) -> "QKChunk":
        """The queries and keys of tokens that were decoded one after the other."""
        first, last, layers = decoded[0], decoded[-1], range(decoded[0].model.layers)
        queries = [torch.cat([d.queries[layer] for d in decoded], 1) for layer in layers]
        keys = [torch.cat([d.keys[layer] for d in decoded], 1) for layer in layers]
        sinks = [[held.sink_keys for held in first.layers]]
        made = cls(first.token, last.token + 1, first.band, queries, keys, first.interventions, first.length, sinks)
        return replace(made, quantized=first.quantized)

    def key_parts(self, layer: int, kv_head: int, chunks: Sequence["QKChunk"], held: Any) -> KeyParts:
        """The sinks, and the window.  `chunks`: all that are kept; `held`: what the layer holds now."""
        band = self.band_of(layer, kv_head)
        if self.quantized is None:
            (low, window), then = self._window(layer, kv_head, chunks, held), None
        else:
            low, window, then = self._window_quantized(layer, kv_head, self.quantized)
        t = torch.arange(self.start, self.stop, device=window.device)
        parts = []
        if band.sinks:
            at = torch.arange(band.sinks, device=window.device)
            keys = self._sinks_of(layer, kv_head)
            parts.append(KeyPart(keys, at, band.at_sinks(window.device), band.slot(t), band.sees(t, at)))
        at = torch.arange(low, self.stop, device=window.device)
        part = KeyPart(window, at, band.in_window(at, low), band.in_window(t, low), band.sees(t, at), then)
        parts.append(part if self.quantized is None else part._replace(met=self.quantized.q.met(t, at)))
        return parts, band.low(t) >= min(low, self.stop)

    def band_of(self, layer: int, kv_head: int) -> Band:
        """What the queries of one KV head's group reach."""
        return self.band if self.whole is None or not self._keeps_all(layer, kv_head) else self.whole

    def _sinks_of(self, layer: int, kv_head: int) -> Float[Tensor, "sinks dim"]:
        """Keys of the sinks that they met."""
        if self.full is None:
            return self.sinks[0][layer][kv_head]
        kind = self._keeps_all(layer, kv_head)
        row = sum(self._keeps_all(layer, other) == kind for other in range(kv_head))
        return self.sinks[0 if kind else 1][layer][row]

    def _keeps_all(self, layer: int, kv_head: int) -> bool:
        return self.full is not None and kv_head in self.full[layer]

    def _window(
        self, layer: int, kv_head: int, chunks: Sequence["QKChunk"], held: Any
    ) -> tuple[int, Float[Tensor, "tokens dim"]]:
        """The keys that stand before and in this chunk without a gap, and the text position of the first."""
        band = self.band_of(layer, kv_head)
        earlier = [chunk for chunk in chunks if chunk.stop <= self.stop]
        keys = [chunk.keys[layer][kv_head] for chunk in earlier]
        low = earlier[0].start
        if band.window is None:
            # A lane that keeps everything still holds its older keys.
            window, oldest = held.window_of(kv_head)
            if oldest < low <= oldest + len(window):
                keys.insert(0, window[: low - oldest])
                low = oldest
        joined = torch.cat(keys)
        start = max(low, int(band.low(torch.tensor(self.start))))
        return start, joined[start - low :]

    def _window_quantized(
        self, layer: int, kv_head: int, met: Met
    ) -> tuple[int, Float[Tensor, "tokens dim"], Float[Tensor, "tokens dim"] | None]:
        """The same, and these keys once more where some were quantized between two of the queries."""
        before, low = met.before[layer].window_of(kv_head)
        # Where nothing was held, sinks may be among the chunk's own.
        low = low if len(before) else self.start
        window = torch.cat((before, self.keys[layer][kv_head]))
        newly, then = met.newly[layer] if met.newly else None, None
        if newly is not None and (of_head := newly.of_head(kv_head)) is not None:
            first, keys = of_head
            then = torch.cat((window[: first - low], keys, window[first - low + len(keys) :]))
        start = max(low, self.band_of(layer, kv_head).low_of(self.start))
        return start, window[start - low :], None if then is None else then[start - low :]


@dataclass(frozen=True, eq=False)
class RankedChunk:
    """Queries of one pass over ranked slots before rotation, per layer [heads, tokens, dim], and what was then
    evicted."""

    start: int
    stop: int
    policy: Ranked
    queries: list[Tensor]
    evicted: Sequence[Evicted | None] = ()
    interventions: Interventions | None = None
    length: int = 1
    """Of the context for which its rotations were chosen (families/frequencies.py)."""
    came: Sequence[AsItCame | None] = ()
    """What each layer quantized behind these tokens, as they met it."""

    def split(
        self, evicted: Sequence[Mapping[int, Evicted]], came: Mapping[int, Sequence[AsItCame | None]]
    ) -> list["RankedChunk"]:
        """Its tokens from one moment to the next at which slots were evicted or quantized: what left each layer, and
        what each layer quantized, by how many of the tokens had then been read."""
        moments = sorted({self.stop - self.start, *came, *(moment for layer in evicted for moment in layer)})
        return [
            replace(
                self,
                start=self.start + begin,
                stop=self.start + end,
                queries=[x[:, begin:end] for x in self.queries],
                evicted=[layer.get(end) for layer in evicted],
                came=came.get(end, ()),
            )
            for begin, end in pairwise((0, *moments))
        ]

    def key_parts(self, layer: int, kv_head: int, chunks: Sequence["RankedChunk"], held: Any) -> KeyParts:
        """The slots of one KV head as they were: those still held, and those evicted after this chunk; of those that
        were quantized after it, the keys as they came."""
        later = [chunk for chunk in chunks if chunk.stop >= self.stop]
        came = [of.came[layer] for of in later if of.came]
        left = [of.evicted[layer] for of in later]
        met = [held.of_head(kv_head), *(some.of_head(kv_head) for some in (*left, *came) if some is not None)]
        positions, keys = (torch.cat(parts) for parts in zip(*met, strict=True))
        # Of a token that is there twice, what came counts: it stands last.
        positions, token = positions.unique(return_inverse=True)
        last = torch.zeros_like(positions).scatter_reduce_(
            0, token, torch.arange(len(token), device=token.device), "amax"
        )
        keys, positions = (x[positions < self.stop] for x in (keys[last], positions))
        t = torch.arange(self.start, self.stop, device=positions.device)
        slots = torch.arange(len(positions), device=positions.device)
        by_slot = self.policy.positions == "cache"
        at, queries_at = (slots, slots[len(slots) - len(t) :]) if by_slot else (positions, t)
        part = KeyPart(keys, positions, at, queries_at, positions <= t[:, None])
        return [part], torch.ones_like(t, dtype=torch.bool)


class RaggedChunk(RankedChunk):
    """The same where KV heads hold differently many slots: no slots of a layer without such heads are among them."""
