"""Ranked slots in few bits: of a group of the text's tokens, what each KV head still holds when the group is quantized.

Which groups there are and when each of them is quantized is said by the number of tokens read alone, as for a window
(quantized.py): so chunks of any size store the same.  Keys of a group that one head holds then share a scale for each
channel, and values have one for each token.  What leaves takes its codes along.  What stays keeps them, and the scales
of its group, which are never made anew: nothing is rounded twice.  They are held, and counted, until the last of these
tokens has left the head, so a group of which little is left weighs more for each token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ..state import State
from .quantized import (
    Quantization,
    Scales,
    channels_of,
    coded,
    decoded,
    of_channels,
    packed,
    quantized,
    unpacked,
)


@dataclass(frozen=True, eq=False)
class AsItCame:
    """Slots of one layer before they were quantized: whose they are, their text positions, and keys before rotation."""

    heads: Int[Tensor, " slots"]
    positions: Int[Tensor, " slots"]
    keys: Float[Tensor, "slots dim"]
    at: tuple[Int[Tensor, " slots"], Int[Tensor, " slots"]]
    """Row and column of each in the layer, as it was then."""

    def of_head(self, kv_head: int) -> tuple[Int[Tensor, " some"], Float[Tensor, "some dim"]]:
        """Text positions and keys of one KV head."""
        own = self.heads == kv_head
        return self.positions[own], self.keys[own]


@dataclass(frozen=True, eq=False)
class PackedSlots:
    """Those slots of a layer that are stored in few bits, of all its KV heads.  Tensors are never written into.

    Codes of slots that have left stay until `compacted`.
    """

    q: Quantization
    at: Int[Tensor, "rows slots"]
    """Which of the codes each slot of the layer has; −1 where it is as it came."""
    groups: Int[Tensor, " packed"]
    """Which of the key scales each of the codes has."""
    key_codes: UInt8[Tensor, "packed bytes"]
    value_codes: UInt8[Tensor, "packed bytes"]
    value_scales: UInt8[Tensor, "packed parts"]
    value_zeros: Int[Tensor, "packed parts"]
    """Of up to 64 channels of one slot."""
    key_scales: UInt8[Tensor, "groups dim"]
    key_zeros: Int[Tensor, "groups dim"]
    """Of each channel of a group in one head."""

    @classmethod
    def none(cls, like: Float[Tensor, "rows slots dim"], q: Quantization) -> "PackedSlots":
        """None of the slots of a layer whose keys are `like` these."""
        at = torch.full(like.shape[:2], -1, device=like.device)
        nobody = like.flatten(0, 1)[:0]
        return cls._of(q, at, at.flatten()[:0], 0, nobody, nobody)[0]

    @classmethod
    def _of(
        cls,
        q: Quantization,
        at: Int[Tensor, "rows slots"],
        groups: Int[Tensor, " packed"],
        count: int,
        keys: Float[Tensor, "packed dim"],
        values: Float[Tensor, "packed dim"],
    ) -> tuple["PackedSlots", tuple[Float[Tensor, "packed dim"], Float[Tensor, "packed dim"]]]:
        """These keys and values, packed, and what they become; `groups`: which of them share key scales, of `count`
        that are counted from 0."""
        low, high = (
            keys.new_full((count, keys.shape[1]), edge).scatter_reduce_(0, groups[:, None].expand_as(keys), keys, by)
            for edge, by in ((float("inf"), "amin"), (float("-inf"), "amax"))
        )
        codes, (of_keys, of_values), numbers = quantized(
            keys, values, (low, high), lambda steps: steps.index_select(1, groups), q
        )
        slots = len(keys)
        made = cls(q, at, groups, codes[:slots], codes[slots:], *of_values, *of_keys)
        return made, (numbers[:slots], numbers[slots:])

    def __len__(self) -> int:
        """How many slots there are codes of."""
        return len(self.groups)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points; whose they are is known from where slots stand in the text."""
        return sum(t.numel() * t.element_size() for t in (getattr(self, name) for name in STORED))

    def beside(
        self, keys: Float[Tensor, "came dim"], values: Float[Tensor, "came dim"]
    ) -> tuple[Float[Tensor, "rows slots dim"], Float[Tensor, "rows slots dim"]]:
        """Keys and values of all slots: those that the codes stand for, and these where slots are as they came."""
        stored, whole = self.at >= 0, []
        for came, numbers in zip((keys, values), self.numbers(keys.dtype), strict=True):
            x = came.new_empty(*stored.shape, came.shape[1])
            x[~stored], x[stored] = came, numbers[self.at[stored]]
            whole.append(x)
        return whole[0], whole[1]

    def numbers(self, dtype: torch.dtype) -> tuple[Float[Tensor, "packed dim"], Float[Tensor, "packed dim"]]:
        """Keys and values that the codes stand for."""
        of_keys, of_values = Scales(self.key_scales, self.key_zeros), Scales(self.value_scales, self.value_zeros)
        shared, own = of_keys.steps.index_select(1, self.groups), of_channels(of_values.steps, self.key_scales.shape[1])
        each, zeros = torch.cat((shared, own), 1)
        codes = unpacked(torch.cat((self.key_codes, self.value_codes)), self.q.bits)
        numbers = decoded(codes, each, zeros, dtype)
        return numbers[: len(self)], numbers[len(self) :]

    def with_more(
        self,
        rows: Int[Tensor, " new"],
        columns: Int[Tensor, " new"],
        groups: Int[Tensor, " new"],
        keys: Float[Tensor, "new dim"],
        values: Float[Tensor, "new dim"],
    ) -> tuple["PackedSlots", tuple[Float[Tensor, "new dim"], Float[Tensor, "new dim"]]]:
        """These and more slots, of which none is packed yet, and the keys and values that these become; `groups`: a
        number for each group of each head, of which none is here yet."""
        count, (named, shared) = len(self), groups.unique(return_inverse=True)
        at = self.at.index_put((rows, columns), torch.arange(count, count + len(rows), device=rows.device))
        more, numbers = PackedSlots._of(self.q, at, shared, len(named), keys, values)
        more = replace(more, groups=more.groups + len(self.key_scales))
        both = {name: torch.cat((getattr(self, name), getattr(more, name))) for name in ("groups", *STORED)}
        return replace(more, **both), numbers

    def with_values(
        self, codes: Int[Tensor, " changed"], values: Float[Tensor, "changed dim"]
    ) -> tuple["PackedSlots", Float[Tensor, "changed dim"]]:
        """The same with other values in some slots, each quantized anew, and what these become; `codes`: which are
        theirs."""
        new, scales = _of_values(values, self.q)
        pairs = {"value_codes": new, "value_scales": scales.scales, "value_zeros": scales.zeros}
        other = replace(self, **{name: getattr(self, name).index_copy(0, codes, t) for name, t in pairs.items()})
        return other, _values(new, scales, self.q, values.dtype)

    def followed_by(self, slots: int) -> "PackedSlots":
        """The same in a layer that holds so many slots more, as they came."""
        return replace(self, at=nn.functional.pad(self.at, (0, slots), value=-1))

    def of_slots(self, kept: Int[Tensor, "rows kept"]) -> "PackedSlots":
        """The same in a layer that holds these slots alone; codes of the others stay until `compacted`."""
        return replace(self, at=self.at.gather(1, kept))

    def state(self) -> State:
        """What is held."""
        return State({}, {name: getattr(self, name) for name in ("at", "groups", *STORED)})

    def loaded(self, state: State, like: Float[Tensor, "kv_heads slots dim"]) -> "PackedSlots":
        """Slots like these that hold what a state says, where keys are `like` these.  Raises ValueError where that is
        of another model, or damaged."""
        at = state.tensor("at", like, (len(self.at), None), torch.int64)
        groups = state.tensor("groups", like, (None,), torch.int64)
        parts = {name: getattr(self, name) for name in STORED}
        parts = {name: state.tensor(name, like, (None, t.shape[1]), t.dtype) for name, t in parts.items()}
        whole = all(len(parts[name]) == len(groups) for name in OF_SLOTS)
        fits = sorted(at[at >= 0].tolist()) == list(range(len(groups)))
        scales = range(len(parts["key_scales"]))
        shared = sorted({*groups.tolist()}) == [*scales] and len(parts["key_zeros"]) == len(scales)
        if not whole or not fits or (len(groups) and not shared):
            raise ValueError("codes of this state have not the scales that they need: it is damaged")
        return replace(self, at=at, groups=groups, **parts)


OF_SLOTS = "key_codes", "value_codes", "value_scales", "value_zeros"
STORED = *OF_SLOTS, "key_scales", "key_zeros"
"""What is stored of slots, and of groups."""


def compacted(parts: Sequence[PackedSlots]) -> list[PackedSlots]:
    """The same without the codes of slots that have left, and without the scales that no slot has any more.

    Slots of many layers at once: these are many small steps, and a GPU is waited for in some of them.
    """
    count, shared_by = [len(part) for part in parts], [len(part.key_scales) for part in parts]
    if not any(count):
        return list(parts)
    device = parts[0].at.device
    sizes = [part.at.numel() for part in parts]
    at = torch.cat([part.at.flatten() for part in parts])
    stays, layer = at >= 0, _owners(sizes, device)
    codes = (at + _starts(count, device)[layer])[stays]
    if len(codes) == sum(count):
        return list(parts)
    of = (torch.cat([part.groups for part in parts]) + _starts(shared_by, device)[_owners(count, device)])[codes]
    has_slots = torch.zeros(sum(shared_by), dtype=torch.bool, device=device).index_fill_(0, of, True)
    groups, shared = has_slots.nonzero()[:, 0], (has_slots.cumsum(0) - 1)[of]
    of_codes, of_groups = layer[stays], _owners(shared_by, device)[groups]
    left = torch.stack([x.bincount(minlength=len(parts)) for x in (of_codes, of_groups)])
    starts = left.cumsum(1) - left
    count, shared_by = left.tolist()
    at = at.masked_scatter(stays, torch.arange(len(codes), device=device) - starts[0, of_codes])
    kept = {"groups": (shared - starts[1, of_codes]).split(count)}
    for name in STORED:
        chosen, many = (codes, count) if name in OF_SLOTS else (groups, shared_by)
        kept[name] = torch.cat([getattr(part, name) for part in parts]).index_select(0, chosen).split(many)
    return [
        replace(part, at=slots.view_as(part.at), **{name: x[i] for name, x in kept.items()})
        for i, (part, slots) in enumerate(zip(parts, at.split(sizes), strict=True))
    ]


def _owners(counts: Sequence[int], device: torch.device) -> Int[Tensor, " all"]:
    """The number of the part that each has, where parts have so many."""
    many = torch.tensor(counts, device=device)
    return torch.arange(len(counts), device=device).repeat_interleave(many, output_size=sum(counts))


def _starts(counts: Sequence[int], device: torch.device) -> Int[Tensor, " parts"]:
    """How many those before each part have."""
    return torch.tensor([0, *counts[:-1]], device=device).cumsum(0)


def _of_values(values: Float[Tensor, "slots dim"], q: Quantization) -> tuple[UInt8[Tensor, "slots bytes"], Scales]:
    """Codes and scales of values, each token's on its own."""
    parts = values.unflatten(1, (-1, channels_of(values.shape[1])))
    scales = Scales.of(parts.amin(2), parts.amax(2), q)
    return packed(coded(values, *of_channels(scales.steps, values.shape[1]), q), q.bits), scales


def _values(
    codes: UInt8[Tensor, "slots bytes"], scales: Scales, q: Quantization, dtype: torch.dtype
) -> Float[Tensor, "slots dim"]:
    """What the codes of values stand for."""
    numbers = unpacked(codes, q.bits)
    return decoded(numbers, *of_channels(scales.steps, numbers.shape[1]), dtype)
