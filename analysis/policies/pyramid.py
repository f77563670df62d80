"""PyramidKV: lower layers, which spread their attention, get larger budgets (Cai et al. 2024, arXiv:2406.02069)."""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from .base import setting
from .h2o import H2O
from .keydiff import KeyDiff
from .knorm import KNorm
from .ranked import LayerState, Ranked, recent_setting, sinks_setting
from .snapkv import SnapKV
from .tova import TOVA

if TYPE_CHECKING:
    from torch import Tensor

SCORERS: dict[str, type[Ranked]] = {p.name: p for p in (SnapKV, H2O, TOVA, KNorm, KeyDiff)}


@dataclass(frozen=True)
class Pyramid(Ranked):
    """Gives each layer a budget that falls evenly with depth; `budget` is their mean.  The `scorer` ranks the slots.

    As in the paper the scores are SnapKV's, every layer keeps the newest tokens, and of the rest of the budget the
    topmost layer gets 1/`steepness` of the mean (its β).  Differences between layers are whole intervals (and blocks),
    rounded towards the mean, so that all layers evict after the same token and their budgets' mean is `budget` and no
    more.
    """

    name: ClassVar[str] = "pyramid"
    title: ClassVar[str] = "Pyramid"

    sinks: int = sinks_setting(0)
    recent: int = recent_setting(8, low=1)
    scorer: str = setting("snapkv", "What ranks the slots.", choices=tuple(SCORERS))
    steepness: int = setting(
        20, "How many times smaller than the mean the top budget is; 1: no pyramid.", low=1, high=64
    )
    kernel: int = setting(7, "Slots that a score of snapkv is pooled over; an odd number.", low=1, high=63)
    pooling: str = setting("max", "What is taken of them: their mean, or their maximum.", choices=("mean", "max"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise ValueError(f"{self.name}: kernel must be an odd number, not {self.kernel}")

    @property
    @override
    def accumulates_attention(self) -> bool:
        return SCORERS[self.scorer].accumulates_attention

    @property
    @override
    def reproducible(self) -> bool:
        return SCORERS[self.scorer].reproducible

    @property
    @override
    def scale(self) -> float:
        return SCORERS[self.scorer].scale

    @property
    @override
    def observation_window(self) -> int:
        return self._ranking.observation_window

    @cached_property
    def _ranking(self) -> Ranked:
        more: dict[str, Any] = {"kernel": self.kernel, "pooling": self.pooling} if self.scorer == "snapkv" else {}
        return SCORERS[self.scorer](
            budget=self.budget,
            sinks=self.sinks,
            recent=self.recent,
            interval=self.interval,
            positions=self.positions,
            **more,
        )

    @property
    @override
    def smallest(self) -> int:
        return self.budget - self._most(Fraction(1))

    @override
    def budget_of(self, layer: int, layers: int) -> int:
        if layers == 1:
            return self.budget
        return self.budget - self._most(Fraction(2 * layer - layers + 1, layers - 1))

    def _most(self, share: Fraction) -> int:
        """Slots by which a budget is below the mean, at a depth from −1 (bottom) to 1 (top)."""
        free = max(0, self.budget - self.interval + 1 - self.protected_slots)
        return int(share * free * (self.steepness - 1) / (self.steepness * self.every)) * self.every

    @override
    def with_room(self, tokens: int) -> "Ranked":
        # The top layer gets least of what is added.
        return replace(self, budget=self.budget + self.steepness * (tokens + self.every))

    @override
    def score(self, state: LayerState) -> "Tensor":
        return self._ranking.score(state)

    @property
    @override
    def plain(self) -> str:
        return f"{super().plain}, {SCORERS[self.scorer].title.lower()}"
