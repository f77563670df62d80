"""Queries and keys in the blocks that a plan says (band.py), and how many blocks are read at a time.

What a chunk gives to all its keys can be ten times as much as a processor's cache holds, and each step over it then
waits for memory.  So the blocks take turns, in memory that all turns and layers of a pass use again.  This module knows
nothing of positions.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .band import BlockPlan

TURN = 12 << 20
"""Bytes of the scores of one turn, at most, where these are of more than one block or text."""


def fold(x: Float[Tensor, "batch heads queries dim"], kv_heads: int, block: int, blocks: int) -> Tensor:
    """The query heads that share a KV head become rows: [batch · blocks, kv_heads, groups · block, dim]."""
    batch, heads, queries, dim = x.shape
    if (missing := blocks * block - queries) > 0:
        x = nn.functional.pad(x, (0, 0, 0, missing))
    x = x.reshape(batch, kv_heads, heads // kv_heads, blocks, block, dim)
    return x.permute(0, 3, 1, 2, 4, 5).reshape(batch * blocks, kv_heads, -1, dim)


def unfold(x: Float[Tensor, "pieces kv_heads rows *dim"], batch: int, block: int, blocks: int) -> Tensor:
    """The inverse of `fold`, queries before heads: [batch, queries (padded), heads, *dim]."""
    kv_heads, rest = x.shape[1], x.shape[3:]
    x = x.reshape(batch, blocks, kv_heads, -1, block, *rest)
    return x.movedim(4, 2).reshape(batch, blocks * block, -1, *rest)


def turns(q: Float[Tensor, "pieces kv_heads rows dim"], columns: int) -> Generator[slice]:
    """Which of the pieces of queries, each with scores of `columns` keys, take a turn together: all on a device other
    than a processor."""
    pieces = len(q)
    each = q[0, ..., 0].numel() * columns * q.element_size()
    most = max(1, TURN // each) if q.device.type == "cpu" else pieces
    # As even as they can be.
    size = -(-pieces // -(-pieces // most))
    for begin in range(0, pieces, size):
        yield slice(begin, min(begin + size, pieces))


class Room:
    """Memory of a pass, taken anew by every turn; each name has its own.  On other devices than a processor none is
    kept."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def joined(self, name: str, parts: list[Float[Tensor, "pieces kv_heads _ dim"]]) -> Tensor:
        """The parts one behind another, [pieces, kv_heads, columns, dim]."""
        first = parts[0]
        if len(parts) == 1 and first.is_contiguous():
            return first
        shape = (*first.shape[:2], sum(part.shape[2] for part in parts), first.shape[3])
        alike = all(part.dtype == first.dtype for part in parts)
        return torch.cat(parts, 2, out=self._of(name, shape, first) if alike else None)

    def matmul(self, name: str, x: Float[Tensor, "*batch rows dim"], y: Float[Tensor, "*batch dim columns"]) -> Tensor:
        """Their product."""
        return torch.matmul(x, y, out=self._of(name, (*x.shape[:-1], y.shape[-1]), x))

    def _of(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        if like.device.type != "cpu":
            return None
        size, held = math.prod(shape), self._held.get(name)
        if held is None or held.numel() < size or held.dtype != like.dtype:
            held = self._held[name] = like.new_empty(size)
        return held[:size].view(shape)


@dataclass(frozen=True)
class Met:
    """The keys, or the values, that the blocks of queries meet.  They are put together for some blocks at a time:
    products of overlapping views are slower by more than the copy takes."""

    came: Float[Tensor, "pieces kv_heads width dim"]
    before: Sequence[Float[Tensor, "1 kv_heads some dim"]] = ()
    """What all meet in front of their own."""
    quantized: Float[Tensor, "pieces kv_heads width dim"] | None = None
    """The same as `came` where some are quantized, see BlockPlan."""
    changing: slice | None = None

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "kv_heads slots dim"],
        plan: BlockPlan,
        before: Sequence[Float[Tensor, "1 kv_heads some dim"]] = (),
        quantized: Float[Tensor, "kv_heads slots dim"] | None = None,
    ) -> "Met":
        """What the blocks of a plan meet of one window."""
        if quantized is None or plan.changing is None:
            return cls(_stretches(x, plan), before)
        return cls(_stretches(x, plan), before, _stretches(quantized, plan), plan.changing)

    def parts(self, some: slice) -> list[Float[Tensor, "some kv_heads columns dim"]]:
        """What some pieces meet, to be put one behind another."""
        came = self.came[some]
        front = [keys.expand(len(came), -1, -1, -1) for keys in self.before]
        if self.quantized is None or self.changing is None:
            return [*front, came]
        then, begin = self.quantized[some], self.changing.start
        return [*front, then[:, :, :begin], came[:, :, begin:], then[:, :, self.changing]]


def _stretches(x: Float[Tensor, "kv_heads slots dim"], plan: BlockPlan) -> Float[Tensor, "blocks kv_heads width dim"]:
    before, after = plan.pad
    if before < 0:
        x, before = x[:, -before:], 0
    if before or after:
        x = nn.functional.pad(x, (0, 0, before, after))
    heads, slots, dim = x.stride()
    shape = plan.blocks, x.shape[0], plan.width, x.shape[2]
    return x.as_strided(shape, (plan.block * slots, heads, slots, dim), x.storage_offset())
