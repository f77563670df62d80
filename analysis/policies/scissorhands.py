"""Scissorhands: what was important stays important (Liu et al. 2023, arXiv:2305.17118)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, Ranked, recent_setting, sinks_setting, tolerance

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scissorhands(Ranked):
    """Drops the tokens that most of the newest `history` queries found unimportant: gave less than an even share.

    An even share is one divided by those of the slots held that the query reached; who gets just that is important.  As
    in the paper half of the budget goes at a time, or as much as is not protected.  The paper gives later layers more;
    here all have the same.
    """

    name: ClassVar[str] = "scissorhands"
    title: ClassVar[str] = "Persistence"
    reproducible: ClassVar[bool] = True

    sinks: int = sinks_setting(0)
    recent: int = recent_setting(10, low=1)
    interval: int = setting(0, "Tokens between two evictions; 0: half of the budget, as in the paper.", low=0)
    history: int = setting(400, "Newest queries that are asked.", low=1, high=1024)

    def __post_init__(self) -> None:
        sizes = self.budget, self.sinks, self.recent, self.block
        if self.interval == 0 and all(isinstance(x, int) for x in sizes) and self.block > 0:
            object.__setattr__(self, "interval", self._half)
        super().__post_init__()

    @property
    def _half(self) -> int:
        """Tokens that leave at a time as in the paper."""
        return max(1, min(self.budget // 2, self.budget - self.protected_slots))

    @override
    def at_budget(self, tokens: int) -> "Ranked":
        recent, interval = min(self.recent, tokens // 4), 0 if self.interval == self._half else self.interval
        return replace(self, budget=tokens, recent=recent, interval=interval)

    @property
    @override
    def observation_window(self) -> int:
        return self.history

    @override
    def score(self, state: LayerState) -> "Tensor":
        import torch

        assert state.recent_attention is not None, "it was asked for"
        given = state.recent_attention.float()
        # Comparisons that give numbers are several times as fast as those that give truth values.  A query gives
        # nothing to what it did not reach, so what it reached is counted from the other end.
        reached = given.sign()
        even = (1 - tolerance(state.keys.dtype)) / reached.sum(-1, keepdim=True)
        important = torch.ge(given, even, out=torch.empty_like(given))
        return (important - reached).sum(1)
