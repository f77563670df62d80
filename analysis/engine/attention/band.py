"""Which earlier tokens a query reaches, and what one forward pass needs to know of it, made once per chunk.

A positional policy is a band: token t reaches the sinks, and the window from `low(t)` to itself.  Since that never
depends on what the model computed, many queries can go through the model together and each gets exactly what it would
have got alone.  This module is arithmetic on positions: it sees no keys, and its tensors are masks and positions.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..layers.quantized import Quantization

BLOCK = 64
"""Queries that share one piece of the band.  Smaller ones waste fewer products, larger ones multiply faster."""


@dataclass(frozen=True)
class Band:
    """What is kept: the first `sinks` tokens and a window that begins at `first` and is at most `window` tokens
    long."""

    sinks: int
    first: int
    window: int | None
    positions: str
    step: int = 1
    """Tokens of the window that are evicted together, when it would be longer than `window`."""
    steps_from: int = 0
    """The text position from which these steps are counted."""
    sliding: int | None = None
    """The most earlier tokens that the layer sees by its own family."""

    def low(self, t: Tensor) -> Tensor:
        """The oldest token of the window that query t reaches."""
        low = torch.full_like(t, self.first)
        for oldest in self._oldest(t):
            low = torch.maximum(low, oldest)
        return low

    def low_of(self, t: int) -> int:
        """`low` of one query, without a tensor."""
        return max([self.first, *self._oldest(t)])

    @property
    def reach(self) -> int | None:
        """The most tokens before its own that a query reaches in the window; None for any number."""
        return min((most for most in (self.window, self.sliding) if most is not None), default=None)

    def _oldest(self, t: Any) -> list[Any]:
        """The oldest tokens that window and layer let query t reach; t is a number, or a tensor of them."""
        stepped = [] if self.window is None else [self._stepped(t, self.window)]
        return stepped if self.sliding is None else [*stepped, t - self.sliding]

    def _stepped(self, t: Any, window: int) -> Any:
        """The oldest token that query t reaches of a window that has always been evicted in steps; t is a number, or a
        tensor or array of them."""
        return self.steps_from - (self.steps_from + window - t) // self.step * self.step

    def slot(self, t: Tensor) -> Tensor:
        """Where query t stands as seen from the sinks: its slot in the cache, or its position in the text."""
        if self.positions == "text":
            return t
        if self.positions == "none":
            return torch.zeros_like(t)
        if self.positions == "naive":
            return self.counted(t)
        return torch.where(t < self.sinks, t, self.sinks + t - self.low(t))

    def slot_of(self, t: int) -> int:
        """`slot` of one query, without a tensor."""
        if self.positions == "none":
            return 0
        if self.positions == "text" or t < self.sinks:
            return t
        if self.positions == "naive" and self.window is not None:
            return min(t, self.sinks + t - self._stepped(t, self.window))
        return self.sinks + t - self.low_of(t)

    def length_of(self, t: int) -> int:
        """The tokens from the first position that query t reaches to its own, as positions are counted here.

        This is the length of the context for families whose frequencies depend on it (families/frequencies.py): a
        window has the same in all modes, since only distances count.
        """
        if self.sinks and self.positions != "none":
            return self.slot_of(t) + 1
        return max(1, t - self.low_of(t) + 1)

    def counted(self, t: Tensor) -> Tensor:
        """The length of the cache when token t was read, which `naive` takes for its position for ever; of tokens that
        were read before a switch, the length that it would have had."""
        return t if self.window is None else torch.minimum(t, self.sinks + t - self._stepped(t, self.window))

    def in_window(self, t: Tensor, origin: int) -> Tensor:
        """Where token t of the window stands as seen from the window, counted from an origin."""
        return self.counted(t) if self.positions == "naive" else t - origin

    def at_sinks(self, device: torch.device) -> Tensor:
        """Where the sinks stand."""
        positions = torch.arange(self.sinks, device=device)
        return torch.zeros_like(positions) if self.positions == "none" else positions

    def narrowed(self, sliding_window: int | None) -> "Band":
        """The reach inside a layer that by its own family sees `sliding_window` tokens, itself included."""
        if sliding_window is None or (self.window is not None and self.window < sliding_window):
            return self
        return replace(self, sliding=sliding_window - 1)

    def held(self, t: NDArray[np.integer]) -> NDArray[np.float64]:
        """How many tokens are held when each query t has been read, after eviction."""
        sinks, low = self.ends(t)
        return 1.0 * sinks + (t + 1 - low)

    def ends(self, t: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """How many sinks are held when each query t has been read, after eviction, and where the window begins."""
        low = self.first if self.window is None else np.maximum(self.first, self._stepped(t + 1, self.window))
        return np.minimum(t + 1, self.sinks), np.minimum(low, t + 1)

    def keeps(self, end: int) -> int:
        """How many tokens of the window stay when those before `end` have been read."""
        return max(0, end - self.low_of(end))

    def sees(self, queries: Tensor, keys: Tensor, sliding_window: int | None = None) -> Tensor:
        """Whether each query [.., q] reaches each key [.., k], by their positions in the text: bool [.., q, k]."""
        q, k = queries[..., :, None], keys[..., None, :]
        inside = (k <= q) & ((k >= self.low(q)) | (k < self.sinks))
        return inside if sliding_window is None else inside & (k > q - sliding_window)


@dataclass(frozen=True)
class Columns:
    """Scores that some columns hold in part only: add `mask` [blocks or 1, 1, rows, columns] to columns `where`."""

    where: slice
    mask: Tensor


@dataclass(frozen=True)
class Behind:
    """How the queries of one chunk meet the keys behind sinks and observed tokens: first `past` tokens that every query
    reaches, then the rest, which is read in `blocks` of `block` queries and `block + window` keys.

    Where keys are quantized, the `changing` columns of these are there twice, as they came and, behind all others, as
    they are quantized: a query meets one of the two.  Before them, keys are quantized for all queries of a block.
    """

    block: int
    blocks: int
    past: int
    pad: tuple[int, int]
    """Empty keys put before and after the rest (negative: keys left out), so that every block is alike."""
    width: int
    """Keys that one block of queries meets."""
    masks: tuple[Columns, ...]
    changing: slice | None = None


@dataclass(frozen=True, kw_only=True)
class BlockPlan(Behind):
    """How the queries of one chunk meet the keys of one layer.

    Keys stand in order: sinks, `observed` tokens of the window whose attention is to be told apart, and those behind.
    """

    prefix: int
    """Sinks and observed tokens, which stand before all others."""
    observed: int
    counted: int
    """How many of the first columns (sinks, observed) count as sink mass."""
    prefix_seen: Tensor | None
    """Whether each query sees each of the prefix, [queries, prefix]; None where all see all of it."""
    prefix_mask: Tensor | None


def plan(
    band: Band,
    start: int,
    queries: int,
    *,
    sink_tokens: int,
    sliding_window: int | None,
    groups: int,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
) -> BlockPlan:
    """The plan for the queries start … start + queries − 1 of a lane, whose keys have been appended to its cache.

    No key of the sinks or of those observed may be quantized between two of these queries.
    """
    sinks, stop = band.sinks, start + queries
    inner = band.narrowed(sliding_window)
    observed = max(0, min(sink_tokens, stop) - band.first)
    rest = band.first + observed
    positions = torch.arange(start, stop, device=device)
    prefix = torch.cat((torch.arange(sinks, device=device), torch.arange(band.first, rest, device=device)))
    # No mask is needed where every query follows the last of these keys, and the last query still reaches the first.
    whole = start >= max(sinks, rest if observed else 0) - 1 and (not observed or inner.low_of(stop - 1) <= band.first)
    whole = whole and (sliding_window is None or stop <= sliding_window or not sinks)
    prefix_seen = None if whole else band.sees(positions, prefix, sliding_window)

    left = _Left(inner, rest, range(start, stop), quantization, groups, dtype, device)
    # Where all queries reach all that is left of the window, blocks would save nothing.
    behind = left.in_blocks() if inner.low_of(stop - 1) > rest else left.together()

    prefix_mask = None
    if prefix_seen is not None:
        more = behind.blocks * behind.block - queries
        padded = torch.nn.functional.pad(prefix_seen, (0, 0, 0, more), value=True)
        prefix_mask = left.additive(padded.view(behind.blocks, behind.block, -1))
    return BlockPlan(
        **vars(behind),
        prefix=sinks + observed,
        observed=observed,
        counted=min(sinks, sink_tokens) + observed,
        prefix_seen=prefix_seen,
        prefix_mask=prefix_mask,
    )


@dataclass(frozen=True)
class _Left:
    """The keys behind sinks and observed tokens, from text position `rest` on, and the queries that meet them."""

    inner: Band
    rest: int
    queries: range
    quantization: Quantization | None
    groups: int
    dtype: torch.dtype
    device: torch.device

    def additive(self, visible: Tensor) -> Tensor:
        """bool [.., queries, keys] → 0 or −inf, repeated for the heads of a group: [blocks or 1, 1, rows, keys]."""
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
        mask = mask if mask.ndim == 3 else mask[None]
        return mask.repeat(1, self.groups, 1)[:, None]

    def in_blocks(self) -> Behind:
        """Queries in blocks: each has the window before its first query, and its own keys."""
        inner, rest, quantization, device = self.inner, self.rest, self.quantization, self.device
        start, count = self.queries.start, len(self.queries)
        window = inner.reach
        assert window is not None, "without one, every query reaches all keys"
        block = min(BLOCK, count)
        blocks = -(-count // block)
        pad = (rest - (start - window), blocks * block - count)
        width = window + block
        row, column = torch.arange(block, device=device)[:, None], torch.arange(width, device=device)
        if quantization is None and inner.step == 1 and pad[0] <= 0:
            # All blocks are alike, and what each of their queries reaches differs at the edges only.
            edges = (slice(0, block), slice(window, width))
            visible = (column >= row) & (column <= row + window)
            masks = tuple(Columns(edge, self.additive(visible[:, edge])) for edge in edges)
            return Behind(block, blocks, 0, pad, width, masks)
        begins = start + torch.arange(blocks, device=device)[:, None] * block
        positions, keys = begins + row.T, begins - window + column
        seen = inner.sees(positions, keys) & (keys >= rest)[:, None]
        if quantization is None:
            return Behind(block, blocks, 0, pad, width, (Columns(slice(0, width), self.additive(seen)),))
        # What is quantized for the first query of each block, and for its last one.
        ends = [[quantization.end(t) - (t0 - window) for t in (t0, t0 + block - 1)] for t0 in self.queries[::block]]
        begin = max(0, min(before for before, _ in ends))
        changing = slice(begin, max(begin, min(max(after for _, after in ends), width)))
        masks = self._twice(seen, quantization.met(positions, keys), changing)
        return Behind(block, blocks, 0, pad, width, masks, changing)

    def together(self) -> Behind:
        """All queries in one block, with all keys that are left."""
        inner, rest, quantization, device = self.inner, self.rest, self.quantization, self.device
        start, stop = self.queries.start, self.queries.stop
        past = max(0, start - rest - (0 if quantization is None else quantization.residual))
        positions, keys = torch.arange(start, stop, device=device), torch.arange(rest + past, stop, device=device)
        width, seen = len(keys), inner.sees(positions, keys)
        if quantization is None:
            return Behind(stop - start, 1, past, (0, 0), width, (Columns(slice(0, width), self.additive(seen)),))
        begin, end = (min(max(0, quantization.end(t) - rest - past), width) for t in (start, stop - 1))
        changing = slice(begin, end)
        masks = self._twice(seen, quantization.met(positions, keys), changing)
        return Behind(stop - start, 1, past, (0, 0), width, masks, changing)

    def _twice(self, seen: Tensor, quantized: Tensor, changing: slice) -> tuple[Columns, Columns]:
        """The masks of all columns and, behind them, of the changing ones once more: a query that meets a key quantized
        does not see it as it came, and the other way round."""
        width, both = seen.shape[-1], seen & quantized
        as_it_came = seen.clone()
        as_it_came[..., changing.start :] &= ~quantized[..., changing.start :]
        again = slice(width, width + changing.stop - changing.start)
        return (
            Columns(slice(0, width), self.additive(as_it_came)),
            Columns(again, self.additive(both[..., changing])),
        )
