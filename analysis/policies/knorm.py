"""Key norm: keys that are short get much attention, so long ones go (Devoto et al. 2024, arXiv:2406.11430)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .ranked import Ranked, Seen


@dataclass(frozen=True)
class KNorm(Ranked):
    """Keeps the tokens whose keys have the smallest L2 norm; reads no attention at all.

    The paper leaves the first two layers whole; here all layers have the same budget.
    """

    name: ClassVar[str] = "knorm"
    title: ClassVar[str] = "Key norm"

    def score(self, seen: Seen) -> Tensor:
        return -seen.keys.float().norm(dim=-1)
