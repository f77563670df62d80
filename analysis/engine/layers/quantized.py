"""Keys and values in a few bits: which of them, in what steps, and how they lie in bytes.

As KIVI does it (Liu et al. 2024, arXiv:2402.02750), keys share a scale for each channel over a group of tokens, and
values share one for each token over its channels; as in KVQuant (Hooper et al. 2024, arXiv:2401.18079), keys are taken
before they are rotated.  A number is stored as the nearest multiple of its scale, counted from the group's zero point:
codes are packed into bytes, a scale is a power of 2^(1/8) in one byte, and a zero point a whole number of steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from ...policies import Policy

CHANNELS = 64
"""Channels of a token's values that share a scale, where a head has a multiple of so many; else all of them do."""
EIGHTHS, MIDDLE = 8, 128
"""Scales are 2^((code − MIDDLE) / EIGHTHS): at most 9 % wider than a group needs."""
SLACK = 1e-3
"""By how much of such a step a scale may be too narrow, so that rounding does not decide where it is just enough: 255
steps are short by a fiftieth of one then, and the greatest number of a group is off by half a step and that."""


@dataclass(frozen=True)
class Quantization:
    """Which tokens are stored in how many bits, a function of the position in the text alone.

    Groups of `group` tokens are counted behind the first `exact`.  When `residual` tokens behind those in groups have
    been read, the oldest `group` of them are stored together.
    """

    bits: int
    exact: int
    group: int
    residual: int

    @classmethod
    def of(cls, policy: Policy) -> "Quantization | None":
        """What a policy's settings ask for; None where keys and values stay as the model computes them."""
        if policy.cache == "own":
            return None
        return cls(int(policy.cache.removeprefix("int")), policy.exact, policy.group, policy.residual)

    def end(self, read: int) -> int:
        """The text position before which tokens are quantized, from `exact` on, when `read` have been read."""
        return int(self._end(np.array(read)))

    def _end(self, read: NDArray[np.integer]) -> NDArray[np.integer]:
        groups = (read - self.exact - self.residual + self.group) // self.group
        return self.exact + np.maximum(groups, 0) * self.group

    def moment(self, read: int) -> int:
        """How many tokens have been read when the next group is quantized, where `read` have been."""
        return self.end(read) + self.residual

    def nbytes(
        self, read: NDArray[np.integer], sinks: NDArray[np.integer], low: NDArray[np.integer], dim: int, itemsize: int
    ) -> NDArray[np.integer]:
        """Bytes that keys and values of a KV head take when so many tokens have been read, of which it holds the first
        `sinks` and those from text position `low` on, [moments]; `itemsize`: bytes of a number as it came."""
        number, total = 1 + self.zeros.itemsize, np.zeros_like(read)
        for begin, stop in ((np.zeros_like(read), sinks), (low, read)):
            first, end = np.maximum(begin, self.exact), np.minimum(stop, self._end(read))
            stored = np.maximum(end - first, 0)
            groups = (end - 1 - self.exact) // self.group - (first - self.exact) // self.group + 1
            total += (stop - begin - stored) * 2 * dim * itemsize + np.where(stored > 0, groups, 0) * dim * number
            total += stored * (2 * dim * self.bits // 8 + dim // channels_of(dim) * number)
        return total

    def met(self, queries: Int[Tensor, "*batch q"], keys: Int[Tensor, "*batch k"]) -> Bool[Tensor, "*batch q k"]:
        """Whether each query meets each key quantized, by their positions in the text."""
        groups = (queries - self.exact - self.residual + self.group).div(self.group, rounding_mode="floor").clamp(min=0)
        return (keys[..., None, :] >= self.exact) & (keys[..., None, :] < self.exact + groups[..., None] * self.group)

    @property
    def most(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    @property
    def zeros(self) -> torch.dtype:
        """What zero points are stored in: a range of 255 steps may begin farther from 0."""
        return torch.int16 if self.bits == 8 else torch.int8


def packed(codes: Float[Tensor, "*rows dim"], bits: int) -> UInt8[Tensor, "*rows bytes"]:
    """Codes of so many bits, several in a byte: the first channels in its lowest bits."""
    whole, *parts = codes.unflatten(-1, (8 // bits, -1)).unbind(-2)
    for i, part in enumerate(parts, 1):
        whole = whole.add(part, alpha=2 ** (bits * i))
    return whole.to(torch.uint8)


def unpacked(whole: UInt8[Tensor, "*rows bytes"], bits: int) -> UInt8[Tensor, "*rows dim"]:
    """The inverse of `packed`."""
    if bits == 8:
        return whole
    *shifts, top = range(0, 8, bits)
    parts = [(whole >> shift if shift else whole) & (2**bits - 1) for shift in shifts]
    return torch.cat((*parts, whole >> top), -1)


class Scales(NamedTuple):
    """Scale and zero point of each group, as they are stored."""

    scales: UInt8[Tensor, "*groups"]
    zeros: Int[Tensor, "*groups"]

    @classmethod
    def of(cls, low: Float[Tensor, "*groups"], high: Float[Tensor, "*groups"], q: Quantization) -> "Scales":
        """For numbers from `low` to `high`: the narrowest scale whose steps reach so far, and begin so far from 0."""
        farthest = torch.iinfo(q.zeros).max
        # A step may be too narrow by the slack, 32,767 of them by three steps: the zero point must fit all the same.
        reach = min(farthest, (farthest + 0.5) * 2 ** (-SLACK / EIGHTHS))
        low, high = low.float(), high.float()
        width = torch.maximum((high - low).div_(q.most), low.abs().div_(reach))
        # The first step that is wide enough.
        code = torch.bucketize(width, _steps(width.device, SLACK)[:-1], out_int32=True).to(torch.uint8)
        return cls(code, (low / step(code)).round_().clamp_(-farthest, farthest).to(q.zeros))

    @property
    def steps(self) -> Float[Tensor, "2 *groups"]:
        """How wide a step is in each group, and its zero point."""
        return torch.stack((step(self.scales), self.zeros.float()))


def step(scales: UInt8[Tensor, "*groups"]) -> Float[Tensor, "*groups"]:
    """What one step of these scales is: the same bits wherever in a tensor a scale stands."""
    return _steps(scales.device).index_select(0, scales.flatten().int()).view(scales.shape)


@cache
def _steps(device: torch.device, slack: float = 0.0) -> Float[Tensor, " codes"]:
    return ((torch.arange(256, dtype=torch.float64, device="cpu") - MIDDLE + slack) / EIGHTHS).exp2().float().to(device)


def coded(
    x: Float[Tensor, "*rows dim"], each: Float[Tensor, "*rows dim"], zeros: Float[Tensor, "*rows dim"], q: Quantization
) -> Float[Tensor, "*rows dim"]:
    """The codes of numbers; `each`, `zeros`: how wide a step is for each of them, and its zero point."""
    return (x / each).round_().sub_(zeros).clamp_(0, q.most)


def decoded(
    codes: Float[Tensor, "*rows dim"] | UInt8[Tensor, "*rows dim"],
    each: Float[Tensor, "*rows dim"],
    zeros: Float[Tensor, "*rows dim"],
    dtype: torch.dtype,
) -> Float[Tensor, "*rows dim"]:
    """The numbers that codes stand for; `each`, `zeros`: as `coded` has them."""
    return (codes + zeros).mul_(each).to(dtype)


def quantized(
    keys: Float[Tensor, "*rows dim"],
    values: Float[Tensor, "*rows dim"],
    ranges: tuple[Float[Tensor, "*groups dim"], Float[Tensor, "*groups dim"]],
    spread: Callable[[Tensor], Tensor],
    q: Quantization,
) -> tuple[UInt8[Tensor, "both *rows bytes"], tuple[Scales, Scales], Float[Tensor, "both *rows dim"]]:
    """The codes of keys and as many values, in this order along the first dimension, their scales, and the numbers
    that the codes stand for.

    `ranges`: the least and the greatest number of each channel in each group of keys; `spread`: gives each key what
    its group has, [2, *groups, dim] → [2, *rows, dim].
    """
    # Few numbers and many operations: all of these take keys and values together.
    dim = keys.shape[-1]
    parts = values.unflatten(-1, (-1, channels_of(dim)))
    own = parts.amin(-1), parts.amax(-1)
    both = Scales.of(*(torch.cat((a.flatten(), b.flatten())) for a, b in zip(ranges, own, strict=True)), q)
    shapes, sizes = (ranges[0].shape, own[0].shape), [ranges[0].numel(), own[0].numel()]
    of_keys, of_values = (
        Scales(scales.view(shape), zeros.view(shape))
        for scales, zeros, shape in zip(*(t.split(sizes) for t in both), shapes, strict=True)
    )
    of_groups, of_parts = (t.view(2, *shape) for t, shape in zip(both.steps.split(sizes, 1), shapes, strict=True))
    each, zeros = torch.cat((spread(of_groups), of_channels(of_parts, dim)), 1)
    codes = coded(torch.cat((keys, values)), each, zeros, q)
    return packed(codes, q.bits), (of_keys, of_values), decoded(codes, each, zeros, keys.dtype)


def of_channels(rows: Float[Tensor, "*tokens parts"], dim: int) -> Float[Tensor, "*tokens dim"]:
    """What each of `dim` channels has of what the parts of a token's channels have."""
    return rows[..., None].expand(*rows.shape, dim // rows.shape[-1]).flatten(-2)


def channels_of(dim: int) -> int:
    """How many channels of a token's values share a scale, in heads of so many dimensions."""
    return CHANNELS if dim % CHANNELS == 0 else dim


class Newly(NamedTuple):
    """Tokens of a window that were quantized together, as they are met from then on: [kv_heads, tokens, dim]."""

    begin: int
    """The text position of the first of them."""
    keys: Float[Tensor, "kv_heads tokens dim"]
    values: Float[Tensor, "kv_heads tokens dim"]

    def of_head(self, kv_head: int) -> tuple[int, Float[Tensor, "tokens dim"]]:
        """The text position of the first, and the keys of one KV head."""
        return self.begin, self.keys[kv_head]


class SplitNewly(NamedTuple):
    """The same where the heads of a layer stand in parts."""

    parts: Sequence[Newly | None]
    names: Sequence[Sequence[int]]
    """The KV heads of each part."""

    def of_head(self, kv_head: int) -> tuple[int, Float[Tensor, "tokens dim"]] | None:
        """The text position of the first, and the keys of one KV head; None where its part has quantized none."""
        newly, own = next(of for of in zip(self.parts, self.names, strict=True) if kv_head in of[1])
        return None if newly is None else newly.of_head(own.index(kv_head))


class Met(NamedTuple):
    """What the queries of a pass met of keys that are quantized, for maps."""

    q: Quantization
    before: Sequence[Any]
    """What each layer held when the pass began; nobody writes into it."""
    newly: Sequence[Newly | SplitNewly | None]
    """What each layer has quantized between two of these tokens; none for any layer where the pass has one."""
