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

    from jaxtyping import Bool, Float, Int, Shaped
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
        slots = _Slots.of([state])
        return slots.in_one_row(self._scores([state], slots, slots.from_newest(self.recent)))

    def _scores(
        self, states: "Sequence[LayerState]", slots: "_Slots", newest: "Bool[Tensor, 'rows slots']"
    ) -> "Float[Tensor, 'rows slots']":
        """The same of some layers, with a row for each head; what it says from the newest slots on means nothing."""
        import torch

        given = []
        for state in states:
            assert state.recent_attention is not None, "it was asked for"
            given.append(state.recent_attention[0].float().mean(0))
        rows = slots.in_rows(torch.stack(given)).masked_fill_(newest, 0)
        return pooled(rows, self.kernel, self.pooling)

    @override
    def order(self, states: "Sequence[LayerState]", first: int | None = None) -> "Int[Tensor, 'layers slots']":
        levels = self.levels(states)
        # No two are equal.
        return levels.topk(first or levels.shape[1], largest=False).indices

    @override
    def levels(self, states: "Sequence[LayerState]") -> "Int[Tensor, 'layers slots']":
        import torch

        here = _Slots.of(states)
        (_, kv_heads, slots), newest = here.own.shape, here.from_newest(self.recent)
        scores = self._scores(states, here, newest).masked_fill_(newest, float("inf"))
        if self.sinks:
            early = self.protected(torch.cat([state.positions for state in states]))
            scores.masked_fill_(here.in_rows(early), float("inf"))
        # Rounding makes slots of one head equal; those of two heads that are near each other are so by chance.
        levels, rising = here.in_one_row(levelled(scores, tolerance(states[0].keys.dtype))).sort(stable=True)
        # From here on slots stand in this order: those that are free come first.
        rank, free = torch.arange(slots, device=levels.device), levels < float("inf")
        count = free.sum(1, keepdim=True)
        own = here.own.gather(2, rising[:, None].expand_as(here.own)) & free[:, None]
        even = max(0, self.budget - self.interval + 1 - self.recent - self.sinks)
        wins = (own & (rank >= count - even * kv_heads)[:, None]).sum(2, keepdim=True)
        given = torch.round(wins * (1 - self.floor / 100) + even * self.floor // 100)
        # Of each head its best slots, as many as it is given, and then the best of what is left over.
        upto = own.cumsum(2)
        inside = (own & (upto[..., -1:] - upto < given)).any(1)
        level = torch.where(free, inside.long(), 2)
        return torch.empty_like(rising).scatter(1, rising, level * slots + rank)


@dataclass(frozen=True, eq=False)
class _Slots:
    """Where the slots of some layers stand in their heads."""

    own: "Bool[Tensor, 'layers kv_heads slots']"
    """Which are those of each head."""
    counts: "Int[Tensor, 'rows 1']"
    """How many each head has, those of one layer after those of another."""
    at: "Int[Tensor, 'layers slots']"
    """Where each stands when every head of its layer has a row that is long enough for all."""

    @classmethod
    def of(cls, states: "Sequence[LayerState]") -> "_Slots":
        """Those of layers that have equally many heads and slots."""
        import torch

        of_layers = []
        for state in states:
            assert state.own is not None, "its slots stand in one row"
            of_layers.append(state.own)
        own = torch.stack(of_layers)
        upto, (_, kv_heads, slots) = own.cumsum(2), own.shape
        begins = torch.arange(-1, kv_heads * slots - 1, slots, device=own.device)[:, None]
        return cls(own, upto[..., -1].reshape(-1, 1), ((upto + begins) * own).sum(1))

    def in_rows(self, x: "Shaped[Tensor, 'layers slots']") -> "Shaped[Tensor, 'rows slots']":
        """The same with a row for each head, and zeros behind what it holds."""
        layers, kv_heads, slots = self.own.shape
        return x.new_zeros(layers, kv_heads * slots).scatter_(1, self.at, x).view(-1, slots)

    def in_one_row(self, x: "Shaped[Tensor, 'rows slots']") -> "Shaped[Tensor, 'layers slots']":
        """The inverse of `in_rows`."""
        return x.view(len(self.own), -1).gather(1, self.at)

    def from_newest(self, count: int) -> "Bool[Tensor, 'rows slots']":
        """Where in such rows the newest of each head are, so many of each, and what is behind them."""
        import torch

        return torch.arange(self.own.shape[2], device=self.own.device) >= self.counts - count
