"""How far a job is that reads cell after cell, and how long it will take."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Protocol

from analysis.runs.spec import Spec


class Sized(Protocol):
    """A cell that is read under the last of its policies."""

    @property
    def spec(self) -> Spec:
        """What decides its numbers."""
        ...

    @property
    def size(self) -> int:
        """Tokens that are read, about."""
        ...


class Paces:
    """How far the cells are, and how fast each policy reads: some take many times as long as others."""

    def __init__(self, cells: Sequence[Sized]) -> None:
        self._left, self._total = Counter[str](), 0
        """Tokens that are still to be read under each policy, and in all at first."""
        for cell in cells:
            self._left[cell.spec.policies[-1]] += cell.size
            self._total += cell.size
        self._seconds, self._read, self._of_cell = defaultdict[str, float](float), Counter[str](), 0
        self._began = time.monotonic()

    def read(self, cell: Sized, tokens: int) -> None:
        """So many tokens of a cell were read since the last were."""
        policy, now = cell.spec.policies[-1], time.monotonic()
        # A text may have more tokens than anybody knew.
        tokens = min(tokens, cell.size - self._of_cell)
        self._left[policy] -= tokens
        self._read[policy] += tokens
        self._of_cell += tokens
        self._seconds[policy] += now - self._began
        self._began = now

    def end(self, cell: Sized) -> None:
        """A cell is whole, or was known."""
        self._left[cell.spec.policies[-1]] -= cell.size - self._of_cell
        self._of_cell = 0

    def rest(self) -> None:
        """What went by was not spent reading."""
        self._began = time.monotonic()

    @property
    def said(self) -> dict[str, float | None]:
        """What a snapshot says of it."""
        read, left = sum(self._read.values()), self._total and sum(self._left.values()) / self._total
        if not read:
            return {"share": 1 - left, "seconds_left": None}
        usual = sum(self._seconds.values()) / read
        pace = {p: self._seconds[p] / self._read[p] if self._read[p] else usual for p in self._left}
        return {"share": 1 - left, "seconds_left": sum(self._left[p] * pace[p] for p in self._left)}
