"""H2O, the heavy-hitter oracle: what got the most attention stays (Zhang et al. 2023, arXiv:2306.14048)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .ranked import LayerState, Ranked, recent_setting, sinks_setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class H2O(Ranked):
    """Keeps the tokens that got the most attention so far, added up over all queries, and the newest ones.

    As in the paper half of the budget are heavy hitters and half newest tokens, and no first token is protected: they
    earn their place.  The paper's heads have a key each; where query heads share one, their mean is added up.
    """

    name: ClassVar[str] = "h2o"
    title: ClassVar[str] = "Heavy hitters"
    accumulates_attention: ClassVar[bool] = True

    sinks: int = sinks_setting(0)
    recent: int = recent_setting(128, low=1)

    @override
    def at_budget(self, tokens: int) -> "Ranked":
        # The two parts stay as large to each other as they are.
        return replace(self, budget=tokens, recent=max(1, self.recent * tokens // self.budget))

    @override
    def score(self, state: LayerState) -> "Tensor":
        assert state.accumulated_attention is not None, "it was asked for"
        return state.accumulated_attention
