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
        own = _own(state)[None]
        return self._scores([state], own, self._newest(own))

    def _scores(
        self,
        states: "Sequence[LayerState]",
        own: "Bool[Tensor, 'layers kv_heads slots']",
        newest: "Bool[Tensor, 'layers slots']",
    ) -> "Float[Tensor, 'layers slots']":
        """The same of some layers: whose their slots are, and which are the newest."""
        import torch

        given = []
        for state in states:
            assert state.recent_attention is not None, "it was asked for"
            given.append(state.recent_attention[0].float().mean(0))
        # Neighbours are slots of one head: head after head, with zeros between them.
        (_, kv_heads, slots), gap = own.shape, self.kernel // 2
        upto = own.cumsum(2)
        counts = upto[..., -1:]
        begins = counts.cumsum(1) - counts + gap * torch.arange(kv_heads, device=own.device)[:, None]
        at = ((begins + upto - 1) * own).sum(1)
        apart = torch.zeros(len(own), slots + gap * (kv_heads - 1), device=own.device)
        apart = apart.scatter(1, at, torch.stack(given).masked_fill(newest, 0))
        return pooled(apart, self.kernel, self.pooling).gather(1, at)

    @override
    def levels(self, states: "Sequence[LayerState]") -> "Int[Tensor, 'layers slots']":
        import torch

        own = torch.stack([_own(state) for state in states])
        positions = torch.cat([state.positions for state in states])
        _, kv_heads, slots = own.shape
        newest = self._newest(own)
        protected = newest | self.protected(positions)
        scores = self._scores(states, own, newest).masked_fill(protected, float("inf"))
        # Rounding makes slots of one head equal; those of two heads that are near each other are so by chance.
        of_heads = scores[:, None].masked_fill(~own, float("-inf")).flatten(0, 1)
        of_heads = levelled(of_heads, tolerance(states[0].keys.dtype)).view_as(own)
        rising = of_heads.amax(1).argsort(stable=True)
        free, every = ~protected, torch.arange(slots, device=rising.device).expand_as(rising)
        # How many free slots are better: of all heads, and of each.
        better = torch.empty_like(rising).scatter(1, rising, free.sum(1, keepdim=True) - 1 - every)
        of_each = rising[:, None].expand_as(own)
        upto = (own & free[:, None]).gather(2, of_each).cumsum(2)
        own_better = torch.empty_like(upto).scatter(2, of_each, upto[..., -1:] - upto)
        even = max(0, self.budget - self.interval + 1 - self.recent - self.sinks)
        wins = (own & (free & (better < even * kv_heads))[:, None]).sum(2)
        least = even * self.floor // 100
        given = torch.round(wins * (1 - self.floor / 100) + least)
        inside = (own & (own_better < given[..., None])).any(1)
        level = torch.where(protected, 2, inside.long())
        return level * slots + torch.empty_like(rising).scatter(1, rising, every)

    def _newest(self, own: "Bool[Tensor, 'layers kv_heads slots']") -> "Bool[Tensor, 'layers slots']":
        """Which are the newest slots of their heads, as many as are protected."""
        upto = own.cumsum(2)
        return (own & (upto[..., -1:] - upto < self.recent)).any(1)


def _own(state: LayerState) -> "Bool[Tensor, 'kv_heads slots']":
    """Whose the slots of a layer are."""
    assert state.own is not None, "its slots stand in one row"
    return state.own
