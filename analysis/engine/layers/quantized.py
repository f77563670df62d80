"""Keys and values in a few bits, and a window of tokens of which the older ones are stored so.

As KIVI does it (Liu et al. 2024, arXiv:2402.02750), keys share a scale for each channel over a group of tokens, and
values share one for each token over its channels; as in KVQuant (Hooper et al. 2024, arXiv:2401.18079), keys are taken
before they are rotated.  A number is stored as the nearest multiple of its scale, counted from the group's zero point:
codes are packed into bytes, a scale is a power of 2^(1/8) in one byte, and a zero point a whole number of steps.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from ...policies import Policy
from ..state import State
from .slots import Slots

CHANNELS = 64
"""Channels of a token's values that share a scale, where a head has a multiple of so many; else all of them do."""
EIGHTHS, MIDDLE = 8, 128
"""Scales are 2^((code − MIDDLE) / EIGHTHS): at most 9 % wider than a group needs."""
SLACK = 1e-3
"""By how much of such a step a scale may be too narrow, so that rounding does not decide where it is just enough."""


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


def packed(codes: UInt8[Tensor, "*rows dim"], bits: int) -> UInt8[Tensor, "*rows bytes"]:
    """Codes of so many bits, several in a byte: the first channels in its lowest bits."""
    parts = codes.unflatten(-1, (8 // bits, -1)).unbind(-2)
    whole = parts[0]
    for i, part in enumerate(parts[1:], 1):
        whole = whole | (part << (bits * i))
    return whole


def unpacked(whole: UInt8[Tensor, "*rows bytes"], bits: int) -> UInt8[Tensor, "*rows dim"]:
    """The inverse of `packed`."""
    if bits == 8:
        return whole
    return torch.cat([(whole >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], -1)


class Scales(NamedTuple):
    """Scale and zero point of each group, as they are stored."""

    scales: UInt8[Tensor, "*groups"]
    zeros: Int[Tensor, "*groups"]

    @classmethod
    def of(cls, low: Float[Tensor, "*groups"], high: Float[Tensor, "*groups"], q: Quantization) -> "Scales":
        """For numbers from `low` to `high`: the narrowest scale whose steps reach so far, and begin so far from 0."""
        farthest = torch.iinfo(q.zeros).max
        low, high = low.float(), high.float()
        width = torch.maximum((high - low) / q.most, low.abs() / farthest)
        code = ((width.log2() * EIGHTHS - SLACK).ceil() + MIDDLE).clamp(0, 255).to(torch.uint8)
        return cls(code, (low / step(code)).round().clamp(-farthest, farthest).to(q.zeros))


def step(scales: UInt8[Tensor, "*groups"]) -> Float[Tensor, "*groups"]:
    """What one step of these scales is: the same bits wherever in a tensor a scale stands."""
    return _steps(scales.device)[scales.int()]


@cache
def _steps(device: torch.device) -> Float[Tensor, " codes"]:
    return ((torch.arange(256, dtype=torch.float64, device="cpu") - MIDDLE) / EIGHTHS).exp2().float().to(device)


def coded(
    x: Float[Tensor, "*rows dim"], each: Float[Tensor, "*rows dim"], zeros: Int[Tensor, "*rows dim"], q: Quantization
) -> UInt8[Tensor, "*rows dim"]:
    """The codes of numbers; `each`, `zeros`: how wide a step is for each of them, and its zero point."""
    return (x / each).round_().sub_(zeros).clamp_(0, q.most).to(torch.uint8)


def decoded(
    codes: UInt8[Tensor, "*rows dim"],
    each: Float[Tensor, "*rows dim"],
    zeros: Int[Tensor, "*rows dim"],
    dtype: torch.dtype,
) -> Float[Tensor, "*rows dim"]:
    """The numbers that codes stand for; `each`, `zeros`: as `coded` has them."""
    return ((codes + zeros.float()) * each).to(dtype)


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


class QuantizedSlots:
    """A window of tokens like `Slots`, in three stretches: the text's first tokens as they came, then those that are
    packed, then the newest as they came.

    `by_channel`: whether the tokens of a group share a scale for each channel (keys), or the channels of a token do
    (values).
    """

    def __init__(
        self, like: Float[Tensor, "kv_heads tokens dim"], q: Quantization, first: int = 0, *, by_channel: bool
    ) -> None:
        self.q, self.by_channel, self.dim = q, by_channel, like.shape[2]
        self.channels = channels_of(self.dim)
        self.head, self.tail = Slots(like, first), Slots(like, first)
        self._begin(first)

    def _begin(self, first: int) -> None:
        """Let what is packed, which is nothing yet, begin at a text position."""
        like, width = self.tail.view()[:, :0], self.dim if self.by_channel else self.dim // self.channels
        rows = (first - self.q.exact) // self.q.group if self.by_channel else first
        self.codes = Slots(like.new_empty(len(like), 0, self.dim * self.q.bits // 8, dtype=torch.uint8), first)
        self.scales = Slots(like.new_empty(len(like), 0, width, dtype=torch.uint8), rows)
        self.zeros = Slots(like.new_empty(len(like), 0, width, dtype=self.q.zeros), rows)

    @property
    def _stretches(self) -> Sequence[Slots]:
        return self.head, self.codes, self.tail

    def __len__(self) -> int:
        return sum(len(stretch) for stretch in self._stretches)

    def __copy__(self) -> "QuantizedSlots":
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        for name in ("head", "codes", "scales", "zeros", "tail"):
            setattr(twin, name, copy.copy(getattr(self, name)))
        return twin

    @classmethod
    def of(
        cls, tokens: Float[Tensor, "kv_heads tokens dim"], q: Quantization, first: int, *, by_channel: bool
    ) -> "QuantizedSlots":
        """A window of these tokens, the first of which stands at text position `first`; none is packed yet."""
        slots = cls(tokens, q, first, by_channel=by_channel)
        slots.append(tokens)
        return slots

    @property
    def first(self) -> int:
        """The text position of the oldest token held, or where none is, of the next one."""
        return next((stretch.first for stretch in self._stretches if len(stretch)), self.tail.first)

    def view(self) -> Float[Tensor, "kv_heads slots dim"]:
        """The tokens held, as a query meets them: what is packed is unpacked into new memory."""
        if not len(self.codes):
            # What stands before all that is packed leaves before it does.
            return self.tail.view()
        return torch.cat((self.head.view(), self._unpacked(), self.tail.view()), 1)

    def placed(self) -> tuple[Float[Tensor, "kv_heads slots dim"], int]:
        """The tokens held, and the text position of the first of them."""
        return self.view(), self.first

    def append(self, new: Float[Tensor, "kv_heads tokens dim"]) -> None:
        """Put tokens at the end, as they came."""
        self.tail.append(new)

    def keep_last(self, tokens: int) -> None:
        """Evict all but the last tokens.  A scale goes with the last of its tokens."""
        leaving, stored = len(self) - max(0, tokens), len(self.codes)
        for stretch in self._stretches:
            if leaving > 0:
                held = len(stretch)
                stretch.keep_last(max(0, held - leaving))
                leaving -= held
        if len(self.codes) < stored:
            rows = self._rows(self.codes)
            self.scales.keep_last(rows)
            self.zeros.keep_last(rows)

    def skip(self, tokens: int) -> None:
        """Let a window that holds nothing begin so many tokens later."""
        self.head.skip(tokens)
        self.tail.skip(tokens)
        self._begin(self.tail.first)

    @property
    def nbytes(self) -> int:
        """Bytes of what is held: codes, scales, zero points, and the tokens that are as they came."""
        return sum(slots.nbytes for slots in (self.head, self.codes, self.scales, self.zeros, self.tail))

    def waiting(self, end: int) -> tuple[int, Float[Tensor, "kv_heads tokens dim"]]:
        """Tokens before text position `end` that are to be packed and are not, and the position of the first."""
        tail, first = self.tail.placed()
        begin = max(first, self.q.exact)
        return begin, tail[:, begin - first : max(begin, end) - first]

    def ranges(self, end: int) -> tuple[int, Tensor, Tensor]:
        """The least and the greatest of each channel in each group of what is waiting, [kv_heads, groups, dim], and
        which group is the first."""
        begin, x = self.waiting(end)
        lead = (begin - self.q.exact) % self.q.group
        pad = (0, 0, lead, -(lead + x.shape[1]) % self.q.group)
        low, high = (nn.functional.pad(x, pad, value=edge) for edge in (float("inf"), float("-inf")))
        groups = (-1, self.q.group)
        return self._group(begin), low.unflatten(1, groups).amin(2), high.unflatten(1, groups).amax(2)

    def pack(self, end: int, scales: Scales | None = None) -> Float[Tensor, "kv_heads tokens dim"]:
        """Pack what is waiting before text position `end`, at least one token, and return it as it is from now on.

        `scales`: of its groups, where tokens of a group share them.
        """
        (begin, x), (tail, first) = self.waiting(end), self.tail.placed()
        if scales is None:
            grouped = x.unflatten(-1, (-1, self.channels))
            scales = Scales.of(grouped.amin(-1), grouped.amax(-1), self.q)
        if not len(self.codes):
            # Those that stay as they came stand before all that are packed.
            if begin > first:
                self.head = Slots.of(tail[:, : begin - first], first)
            self._begin(begin)
        each, zeros = (self._spread(t, begin, x.shape[1]) for t in (step(scales.scales), scales.zeros))
        codes = coded(x, each, zeros, self.q)
        self.codes.append(packed(codes, self.q.bits))
        self.scales.append(scales.scales)
        self.zeros.append(scales.zeros)
        self.tail.keep_last(tail.shape[1] - (begin - first) - x.shape[1])
        return decoded(codes, each, zeros, tail.dtype)

    def _unpacked(self) -> Float[Tensor, "kv_heads tokens dim"]:
        """What is packed, in numbers."""
        codes, first = self.codes.placed()
        rows = step(self.scales.view()), self.zeros.view()
        each, zeros = (self._spread(t, first, codes.shape[1]) for t in rows)
        return decoded(unpacked(codes, self.q.bits), each, zeros, self.tail.view().dtype)

    def _spread(self, rows: Tensor, begin: int, count: int) -> Tensor:
        """What groups have, for each of `count` tokens from text position `begin` on and each channel."""
        if not self.by_channel:
            return rows if rows.shape[2] == 1 else rows.repeat_interleave(self.channels, 2)
        lead = (begin - self.q.exact) % self.q.group
        return rows.repeat_interleave(self.q.group, 1)[:, lead : lead + count]

    def _group(self, position: int) -> int:
        return (position - self.q.exact) // self.q.group

    def _rows(self, codes: Slots) -> int:
        """How many rows of scales packed tokens have."""
        if not self.by_channel or not len(codes):
            return len(codes)
        return self._group(codes.first + len(codes) - 1) - self._group(codes.first) + 1

    def state(self, name: str) -> State:
        """What is held, its tensors under names that begin so."""
        windows = {f"{name}_{part}": slots.window() for part, slots in self._named().items()}
        return State({f"{name}_{part}_first": slots.first for part, slots in self._named().items()}, windows)

    def loaded(self, name: str, state: State) -> "QuantizedSlots":
        """A window like this one that holds what a state says.  Raises ValueError where that is of another model."""
        twin, like, parts = copy.copy(self), self.tail.view(), dict[str, Any]()
        for part, slots in self._named().items():
            kind = slots.view()
            tensor = state.tensor(f"{name}_{part}", like, (len(kind), None, kind.shape[2]), kind.dtype)
            parts[part] = Slots.of(tensor, state.value(f"{name}_{part}_first", int))
        if not len(parts["scales"]) == len(parts["zeros"]) == self._rows(parts["codes"]):
            raise ValueError(f"{name} of this state has not the scales that it needs: it is damaged")
        twin.__dict__.update(parts)
        return twin

    def _named(self) -> dict[str, Slots]:
        return {part: getattr(self, part) for part in ("head", "codes", "scales", "zeros", "tail")}


def pack_together(parts: Sequence[tuple[QuantizedSlots, QuantizedSlots]], end: int) -> Newly | None:
    """Pack what is waiting before text position `end` in windows of keys and values of one layer, which stand in the
    order of the text, and say what that is in the last of them; None where it is nothing.

    Tokens of one group share a scale, in whichever of the windows they stand.
    """
    waiting = [part for part in parts if part[0].waiting(end)[1].shape[1]]
    ranges = [keys.ranges(end) for keys, _ in waiting]
    for (first, low, high), (then, next_low, next_high) in pairwise(ranges):
        if first + low.shape[1] - 1 == then:
            for a, b, least in ((low, next_low, torch.minimum), (high, next_high, torch.maximum)):
                a[:, -1] = b[:, 0] = least(a[:, -1], b[:, 0])
    newly = None
    for (keys, values), (_, low, high) in zip(waiting, ranges, strict=True):
        begin, _ = keys.waiting(end)
        newly = Newly(begin, keys.pack(end, Scales.of(low, high, keys.q)), values.pack(end))
    return newly if waiting and waiting[-1] is parts[-1] else None
