"""PyramidKV: lower layers, which spread their attention, get larger budgets (Cai et al. 2024, arXiv:2406.02069)."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from .base import setting
from .h2o import H2O
from .keydiff import KeyDiff
from .knorm import KNorm
from .ranked import Ranked, Seen
from .snapkv import SnapKV
from .tova import TOVA

SCORERS: dict[str, type[Ranked]] = {p.name: p for p in (SnapKV, H2O, TOVA, KNorm, KeyDiff)}


@dataclass(frozen=True)
class Pyramid(Ranked):
    """Gives each layer a budget that falls evenly with depth; `budget` is their mean.  The `scorer` ranks the slots.

    The paper takes the scores of SnapKV, and the topmost layer gets 1/`steepness` of the mean (its β).  Budgets are
    rounded so that all layers evict after the same token.
    """

    name: ClassVar[str] = "pyramid"
    title: ClassVar[str] = "Pyramid"

    recent: int = setting(16, "Newest tokens that are safe whatever their score.", low=1)
    scorer: str = setting("snapkv", "What ranks the slots.", choices=tuple(SCORERS))
    steepness: int = setting(
        4, "How many times smaller than the mean the top budget is; 1: no pyramid.", low=1, high=64
    )

    @property
    def totals(self) -> bool:
        return SCORERS[self.scorer].totals

    @property
    def looks_back(self) -> int:
        return self._ranking.looks_back

    @cached_property
    def _ranking(self) -> Ranked:
        return SCORERS[self.scorer](
            budget=self.budget, sinks=self.sinks, recent=self.recent, interval=self.interval, positions=self.positions
        )

    @property
    def smallest(self) -> int:
        return self._at(1.0)

    def budget_of(self, layer: int, layers: int) -> int:
        return self._at(layer / max(1, layers - 1))

    def _at(self, depth: float) -> int:
        top = self.budget / self.steepness
        step = round((self.budget - top) * (2 * depth - 1) / self.interval)
        return self.budget - step * self.interval

    def score(self, seen: Seen) -> Tensor:
        return self._ranking.score(seen)

    @property
    def plain(self) -> str:
        return f"{super().plain}, {SCORERS[self.scorer].title.lower()}"
