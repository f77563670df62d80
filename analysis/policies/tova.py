"""TOVA, token omission via attention: what the last query ignored goes (Oren et al. 2024, arXiv:2401.06104)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import setting
from .ranked import Ranked, Seen


@dataclass(frozen=True)
class TOVA(Ranked):
    """Drops the token that the newest query gave the least attention; nothing else is safe but that query's own token.

    The paper averages over all heads of a layer, so that all drop the same token; here each KV head drops its own.
    """

    name: ClassVar[str] = "tova"
    title: ClassVar[str] = "Last query"

    sinks: int = setting(0, "First tokens that are safe whatever their score.", low=0, high=1024)
    recent: int = setting(1, "Newest tokens that are safe whatever their score.", low=1)

    @property
    def looks_back(self) -> int:
        return 1

    def score(self, seen: Seen) -> Tensor:
        return seen.rows[:, -1]
