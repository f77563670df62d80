"""A window of tokens of which the older ones are stored in few bits (quantized.py)."""

import copy
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..state import State
from .quantized import Newly, Quantization, Scales, channels_of, decoded, of_channels, quantized, unpacked
from .slots import Slots


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
        twin.__dict__.update(self.__dict__, **{part: copy.copy(slots) for part, slots in self._named().items()})
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
        return viewed(self)[0]

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
        return sum(slots.nbytes for slots in self._named().values())

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
        rest, groups = -(lead + x.shape[1]) % self.q.group, (-1, self.q.group)
        low, high = (
            nn.functional.pad(x, (0, 0, lead, rest), value=edge) if lead or rest else x
            for edge in (float("inf"), float("-inf"))
        )
        return self._group(begin), low.unflatten(1, groups).amin(2), high.unflatten(1, groups).amax(2)

    def store(self, begin: int, codes: UInt8[Tensor, "kv_heads tokens bytes"], scales: Scales) -> None:
        """Hold the tokens from text position `begin` on in these codes, which were waiting."""
        tail, first = self.tail.placed()
        if not len(self.codes):
            # Those that stay as they came stand before all that are packed.
            if begin > first:
                self.head = Slots.of(tail[:, : begin - first], first)
            self._begin(begin)
        self.codes.append(codes)
        self.scales.append(scales.scales)
        self.zeros.append(scales.zeros)
        self.tail.keep_last(tail.shape[1] - (begin - first) - codes.shape[1])

    @property
    def steps(self) -> Float[Tensor, "2 kv_heads tokens dim"]:
        """How wide a step of each number is that is packed, and its zero point."""
        rows = Scales(self.scales.view(), self.zeros.view()).steps
        return self.spread(rows, self.codes.first, len(self.codes)) if self.by_channel else of_channels(rows, self.dim)

    def spread(
        self, rows: Float[Tensor, "2 kv_heads groups dim"], begin: int, count: int
    ) -> Float[Tensor, "2 kv_heads tokens dim"]:
        """What groups have, for each of `count` tokens from text position `begin` on."""
        lead = (begin - self.q.exact) % self.q.group
        return rows.repeat_interleave(self.q.group, 2)[:, :, lead : lead + count]

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
        (begin, k), (_, v) = keys.waiting(end), values.waiting(end)
        spread = partial(keys.spread, begin=begin, count=k.shape[1])
        codes, scales, numbers = quantized(k, v, (low, high), spread, keys.q)
        for slots, of_codes, of_scales in zip((keys, values), codes.chunk(2), scales, strict=True):
            slots.store(begin, of_codes, of_scales)
        newly = Newly(begin, *numbers.chunk(2))
    return newly if waiting and waiting[-1] is parts[-1] else None


def viewed(*parts: QuantizedSlots) -> list[Float[Tensor, "kv_heads slots dim"]]:
    """Numbers of the same tokens, keys or values or both, as a query meets them: what is packed is unpacked into new
    memory."""
    if not len(parts[0].codes):
        # What stands before all that is packed leaves before it does.
        return [slots.tail.view() for slots in parts]
    codes = unpacked(torch.cat([slots.codes.view() for slots in parts]), parts[0].q.bits)
    each, zeros = torch.cat([slots.steps for slots in parts], 1)
    numbers = decoded(codes, each, zeros, parts[0].tail.view().dtype).chunk(len(parts))
    return [torch.cat((slots.head.view(), x, slots.tail.view()), 1) for slots, x in zip(parts, numbers, strict=True)]
