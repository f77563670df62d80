"""Key norm: keys that are short get much attention, so long ones go (Devoto et al. 2024, arXiv:2406.11430)."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, Ranked, recent_setting, sinks_setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KNorm(Ranked):
    """Keeps the tokens whose keys have the smallest L2 norm; reads no attention at all.

    As in the paper the first two layers keep everything, so memory grows with the text; `skip` 0 gives all layers the
    same budget.  No token is protected.  A rotation does not change a key's norm.
    """

    name: ClassVar[str] = "knorm"
    title: ClassVar[str] = "Key norm"

    sinks: int = sinks_setting(0)
    recent: int = recent_setting(0, low=0)
    skip: int = setting(2, "First layers that keep everything.", low=0)

    @override
    def budget_of(self, layer: int, layers: int) -> int:
        return sys.maxsize if layer < self.skip else self.budget

    @override
    def score(self, state: LayerState) -> "Tensor":
        return -state.keys.float().norm(dim=-1)

    @property
    @override
    def plain(self) -> str:
        layers = "layer" if self.skip == 1 else f"{self.skip} layers"
        return super().plain + (f", first {layers} whole" if self.skip else "")

    @property
    @override
    def capacity(self) -> int | None:
        return None if self.skip else self.budget
