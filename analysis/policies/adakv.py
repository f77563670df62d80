"""Ada-KV: the heads of a layer share one budget, and those whose attention is spread get more of it (Feng et al. 2024,
arXiv:2407.11550)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, levelled, pooled, tolerance
from .snapkv import SnapKV

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class AdaKV(SnapKV):
    """Divides the budget of a layer among its KV heads by their scores; `budget` is the mean over the heads.

    The scores are SnapKV's.  Of the best scores of all heads together, as many as the layer may keep, each head gets
    the number of its own; `floor` percent of a head's budget are shared out evenly, whatever it scores, and the rest by
    these numbers.  The newest `recent` tokens are protected in every head.  So far the authors' code, which compresses
    a prompt once.  Here this happens at every eviction, and then a head may hold less than it is given: what is left
    over goes to the best scores of the others, so that a layer always keeps what it may.  Slots of heads that share a
    budget are weighed one by one, so they do not leave in blocks.
    """

    name: ClassVar[str] = "adakv"
    title: ClassVar[str] = "Adaptive budgets"
    store: ClassVar[str] = "ragged"
    block: ClassVar[int] = 1

    kernel: int = setting(7, "Slots that a score is pooled over; an odd number.", low=1, high=63)
    pooling: str = setting("max", "What is taken of them: their mean, or their maximum.", choices=("mean", "max"))
    floor: int = setting(20, "Percent of the budget that are shared out evenly.", low=0, high=100)

    @override
    def score(self, state: LayerState) -> "Tensor":
        return self._scores([state], _Slots.of([state]))

    def _scores(self, states: "Sequence[LayerState]", slots: "_Slots") -> "Float[Tensor, 'layers slots']":
        """The same of the slots of some layers."""
        import torch

        given = []
        for state in states:
            assert state.recent_attention is not None, "it was asked for"
            given.append(state.recent_attention[0].float().mean(0))
        # Neighbours are slots of one head: head after head, with zeros between them.
        gap, (_, kv_heads, width) = self.kernel // 2, slots.own.shape
        at = slots.begins + slots.number + gap * slots.heads
        apart = torch.zeros(len(at), width + gap * (kv_heads - 1), device=at.device)
        apart = apart.scatter(1, at, torch.stack(given).masked_fill(slots.newest(self.recent), 0))
        return pooled(apart, self.kernel, self.pooling).gather(1, at)

    @override
    def order(self, states: "Sequence[LayerState]", first: int | None = None) -> "Int[Tensor, 'layers slots']":
        levels = self.levels(states)
        # No two are equal.
        return levels.topk(first or levels.shape[1], largest=False).indices

    @override
    def levels(self, states: "Sequence[LayerState]") -> "Int[Tensor, 'layers slots']":
        import torch

        here, positions = _Slots.of(states), torch.cat([state.positions for state in states])
        _, kv_heads, slots = here.own.shape
        stays = here.newest(self.recent) | self.protected(positions)
        scores = self._scores(states, here).masked_fill_(stays, float("inf"))
        # Rounding makes slots of one head equal; those of two heads that are near each other are so by chance.
        levels = levelled(scores, tolerance(states[0].keys.dtype), heads=here.heads)
        rising = levels.argsort(stable=True)
        # From here on slots stand in this order: those that are free come first.
        rank, count = torch.arange(slots, device=stays.device), slots - stays.sum(1, keepdim=True)
        own = here.own.gather(2, rising[:, None].expand_as(here.own)) & (rank < count)[:, None]
        even = max(0, self.budget - self.interval + 1 - self.recent - self.sinks)
        wins = (own & (rank >= count - even * kv_heads)[:, None]).sum(2, keepdim=True)
        given = torch.round(wins * (1 - self.floor / 100) + even * self.floor // 100)
        # Of each head its best slots, as many as it is given, and then the best of what is left over.
        upto = own.cumsum(2)
        inside = (own & (upto[..., -1:] - upto < given)).any(1)
        level = torch.where(rank < count, inside.long(), 2)
        return torch.empty_like(rising).scatter(1, rising, level * slots + rank)


@dataclass(frozen=True, eq=False)
class _Slots:
    """Where the slots of some layers stand in their heads."""

    own: "Bool[Tensor, 'layers kv_heads slots']"
    """Which are those of each head."""
    heads: "Int[Tensor, 'layers slots']"
    """Whose each is."""
    number: "Int[Tensor, 'layers slots']"
    """Which of its head's it is, from 0."""
    count: "Int[Tensor, 'layers slots']"
    """How many its head has."""
    begins: "Int[Tensor, 'layers slots']"
    """How many the heads before its own have."""

    @classmethod
    def of(cls, states: "Sequence[LayerState]") -> "_Slots":
        """Those of layers that have equally many heads and slots."""
        import torch

        of_layers = []
        for state in states:
            assert state.own is not None, "its slots stand in one row"
            of_layers.append(state.own)
        own = torch.stack(of_layers)
        upto, heads = own.cumsum(2), (own * torch.arange(own.shape[1], device=own.device)[:, None]).sum(1)
        counts = upto[..., -1]
        number = upto.gather(1, heads[:, None])[:, 0] - 1
        return cls(own, heads, number, *(x.gather(1, heads) for x in (counts, counts.cumsum(1) - counts)))

    def newest(self, count: int) -> "Bool[Tensor, 'layers slots']":
        """Which are the newest of their heads, so many of each."""
        return self.number >= self.count - count
