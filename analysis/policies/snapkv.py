"""SnapKV: an observation window of queries chooses what stays (Li et al. 2024, arXiv:2404.14469)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, Ranked, pooled, sinks_setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SnapKV(Ranked):
    """Keeps the tokens that the newest queries look at, pooled over neighbours so that details keep their context.

    As in the authors' code only what stands before the observation window is pooled, with zeros beyond its ends, and no
    first token is protected.  The paper compresses a prompt once, when it has been read; here the newest `recent`
    tokens are the observation window at every eviction, and their attention counts as they gave it.  Neighbours are
    slots, not positions in the text.  The paper's heads have a key each; of query heads that share one the mean counts.
    """

    name: ClassVar[str] = "snapkv"
    title: ClassVar[str] = "Observation window"

    sinks: int = sinks_setting(0)
    recent: int = setting(32, "Newest tokens, whose queries choose; they themselves are protected.", low=1)
    kernel: int = setting(5, "Slots that a score is pooled over; an odd number.", low=1, high=63)
    pooling: str = setting("mean", "What is taken of them: their mean, or their maximum.", choices=("mean", "max"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise ValueError(f"{self.name}: kernel must be an odd number, not {self.kernel}")

    @property
    @override
    def observation_window(self) -> int:
        return self.recent

    @override
    def score(self, state: LayerState) -> "Tensor":
        assert state.recent_attention is not None, "it was asked for"
        given = state.recent_attention.float().mean(1)
        given[:, max(0, given.shape[1] - self.recent) :] = 0
        return pooled(given, self.kernel, self.pooling)
