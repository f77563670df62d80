"""Scissorhands: what was important stays important (Liu et al. 2023, arXiv:2305.17118)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import setting
from .ranked import Ranked, Seen


@dataclass(frozen=True)
class Scissorhands(Ranked):
    """Drops the tokens that most of the newest `history` queries found unimportant: gave less than an even share.

    An even share is one divided by those of the slots held that the query reached.  The paper drops half of its budget
    at a time, which is an `interval` of half the budget here.
    """

    name: ClassVar[str] = "scissorhands"
    title: ClassVar[str] = "Persistence"

    recent: int = setting(10, "Newest tokens that are safe whatever their score.", low=1)
    history: int = setting(64, "Newest queries that are asked.", low=1, high=1024)

    @property
    def looks_back(self) -> int:
        return self.history

    def score(self, seen: Seen) -> Tensor:
        # A query gives nothing to what it did not reach, so what it reached is counted from the other end.
        reached = (seen.rows > 0).sum(-1, keepdim=True)
        unimportant = (seen.rows > 0) & (seen.rows * reached < 1)
        return -unimportant.sum(1).float()
