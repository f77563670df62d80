"""Ada-KV: the heads of a layer share one budget, and those whose attention is spread get more of it (Feng et al. 2024,
arXiv:2407.11550)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, levelled, tolerance
from .snapkv import SnapKV

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
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
        import torch

        assert state.recent_attention is not None and state.own is not None, "they were asked for"
        own = state.own
        given = state.recent_attention[0].float().mean(0).masked_fill(self._newest(own), 0)
        # Neighbours are slots of one head: head after head, with zeros between them.
        head, half = own.int().argmax(0), self.kernel // 2
        order = head.argsort(stable=True)
        padded, whose = (
            torch.nn.functional.pad(x[order], (half, half), value=nobody).unfold(0, self.kernel, 1)
            for x, nobody in ((given, 0), (head, -1))
        )
        near = padded.masked_fill(whose != head[order, None], 0)
        pooled = near.amax(1) if self.pooling == "max" else near.mean(1)
        return torch.empty_like(pooled).scatter(0, order, pooled)[None]

    @override
    def order(self, state: LayerState) -> "Int[Tensor, '1 slots']":
        import torch

        assert state.own is not None, "its slots stand in one row"
        own, slots = state.own, state.own.shape[1]
        protected = self._newest(own) | self.protected(state.positions)[0]
        scores = self.score(state).masked_fill(protected, float("inf"))
        # Rounding makes slots of one head equal; those of two heads that are near each other are so by chance.
        of_heads = levelled(scores.masked_fill(~own, float("-inf")), tolerance(state.keys.dtype))
        rising = of_heads.amax(0).argsort(stable=True)
        free, every = ~protected, torch.arange(slots, device=rising.device)
        # How many free slots are better: of all heads, and of each.
        better = torch.empty_like(rising).scatter(0, rising, (free.sum() - 1) - every)
        upto = (own & free)[:, rising].cumsum(1)
        own_better = torch.empty_like(upto).scatter(1, rising.expand_as(upto), upto[:, -1:] - upto)
        even = max(0, self.budget - self.interval + 1 - self.recent - self.sinks)
        wins = (own & free & (better < even * len(own))).sum(1)
        least = even * self.floor // 100
        given = torch.round(wins * (1 - self.floor / 100) + least)
        inside = (own & (own_better < given[:, None])).any(0)
        level = torch.where(protected, 2, inside.long())
        return (level * slots + torch.empty_like(rising).scatter(0, rising, every)).argsort()[None]

    def _newest(self, own: "Bool[Tensor, 'kv_heads slots']") -> "Bool[Tensor, ' slots']":
        """Which are the newest slots of their heads, as many as are protected."""
        upto = own.cumsum(1)
        return (own & (upto[:, -1:] - upto < self.recent)).any(0)
