"""SnapKV: an observation window of queries chooses what stays (Li et al. 2024, arXiv:2404.14469)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import setting
from .ranked import Ranked, Seen, smoothed


@dataclass(frozen=True)
class SnapKV(Ranked):
    """Keeps the tokens that the newest queries look at, smoothed over neighbours so that details keep their context.

    The paper compresses a prompt once, when it has been read; here the newest `recent` tokens are the observation
    window at every eviction, and their attention counts as they gave it.  Neighbours are slots, not places in the text.
    """

    name: ClassVar[str] = "snapkv"
    title: ClassVar[str] = "Observation window"

    recent: int = setting(32, "Newest tokens, whose queries choose; they themselves are safe.", low=1)
    kernel: int = setting(5, "Slots that a score is averaged over; an odd number.", low=1, high=63)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise ValueError(f"{self.name}: kernel must be an odd number, not {self.kernel}")

    @property
    def looks_back(self) -> int:
        return self.recent

    def score(self, seen: Seen) -> Tensor:
        return smoothed(seen.rows.mean(1), self.kernel)
