"""What a lane shows of itself: what it held when it last stood still.

A lane replaces its view after every step and never changes one, so that maps and screens can be drawn from it in any
thread while the lane reads on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from .attention.token import TokenPass
from .context import QKChunk, RankedChunk, SharedContext
from .kv.banded import BandedLayer, Span
from .kv.ranked import Scattered
from .kv.split import SplitLayer


@dataclass(frozen=True, eq=False)
class View:
    """What a lane held when it had read so many tokens."""

    source: SharedContext
    read: int
    caches: list[BandedLayer] | list[SplitLayer] | list[Scattered]
    """As they go on being written, but for ranked ones; a run says itself where in the text it begins."""
    spans: list[Span] | list[Scattered]
    """Which tokens are held, by groups of heads that hold the same."""
    settled: list[QKChunk] | list[RankedChunk]
    decoded: tuple[TokenPass, ...]
    """Newest tokens whose queries and keys are not in one piece yet."""

    @property
    def sinks(self) -> int:
        """First tokens whose keys are held, without a gap, by all heads."""
        return sinks_of(self.spans)

    @cached_property
    def pieces(self) -> list[QKChunk] | list[RankedChunk]:
        """Queries and keys of the newest tokens, oldest first, from which maps are drawn."""
        return [*self.settled, joined(self.decoded)] if self.decoded else self.settled

    def held(self, layer: int, kv_head: int) -> tuple[BandedLayer, int]:
        """The cache that holds a KV head by place, and which of its heads that is."""
        cache = self.caches[layer]
        if not isinstance(cache, SplitLayer):
            return cache, kv_head
        part = 0 if kv_head in cache.names[0] else 1
        return cache.parts[part], cache.names[part].index(kv_head)


def sinks_of(spans: Sequence[Span] | Sequence[Scattered]) -> int:
    """First tokens whose keys are held, without a gap, by all heads of these."""
    return min((span.prefix for span in spans), default=0)


def joined(decoded: Sequence[TokenPass]) -> QKChunk:
    """The queries and keys of tokens that were decoded one after the other, as one piece."""
    first, last, layers = decoded[0], decoded[-1], range(decoded[0].model.layers)
    queries = [torch.cat([d.queries[layer] for d in decoded], 1) for layer in layers]
    keys = [torch.cat([d.keys[layer] for d in decoded], 1) for layer in layers]
    sinks = [[c.sink_keys for c in first.caches]]
    return QKChunk(first.token, last.token + 1, first.reach, queries, keys, first.what_if, first.length, sinks)
