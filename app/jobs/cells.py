"""The base of jobs that compute the cells of a grid one after the other, and put each into the library."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.experiments.grid import take_over
from analysis.runs import library

from .base import Unwanted
from .paces import Paces
from .result import ResultJob

if TYPE_CHECKING:
    from analysis.figures.inputs import FigureInput
    from analysis.models.language_model import LanguageModel

TOLD_EVERY = 0.5
"""Seconds between two snapshots while one cell is computed."""


@dataclass(frozen=True)
class CellsSnapshot:
    """How far the cells are."""

    done: int = 0
    """Cells that are whole."""
    total: int = 0
    """Cells in all."""
    share: float = 0.0
    """Of all tokens, those that were read."""
    seconds_left: float | None = None
    """An estimate; None before anything was read."""


class CellsJob(ResultJob):
    """A job whose result is a folder of cells.  Before its steps `_found` is an empty snapshot of its kind, and `_like`
    the name of a result in the library whose cells are taken over as far as they are the same."""

    _found: Any
    _like: str
    _paces: Paces | None = None
    _told = 0.0

    def figure_input(self) -> "FigureInput":
        """What was found, as it lies in the library."""
        from analysis.figures.inputs import open_input

        if self.kept.problem:
            raise ValueError(f"{self.kept.problem} A figure is made of its folder: make room, and begin once more")
        return open_input(library.home() / self.id, self.figures_need)

    def take_snapshot(self) -> Any:
        """What is known so far."""
        return self._found

    def _begin_cells(self, cells: Sequence[Any], model: "LanguageModel") -> Path | None:
        """Take over what another result has of these cells; where they lie, if they are kept."""
        place = None if self._result.folder is None else self._result.folder.path
        if place is not None and self._like:
            take_over(cells, library.home() / self._like, model.sha256, place)
        self._paces, self._found = Paces(cells), replace(self._found, total=len(cells))
        self._set("running")
        return place

    def _hear(self, cell: Any, tokens: int) -> None:
        """So many tokens of a cell were read just now: obey, and tell now and then how far it is."""
        if self.unwanted:
            raise Unwanted
        assert self._paces is not None, "nothing is read before the cells are known"
        self._paces.read(cell, tokens)
        if time.monotonic() - self._told > TOLD_EVERY:
            self._told = time.monotonic()
            self._found = replace(self._found, **self._reading(cell), **self._paces.said)
            self._publish()
        if self.unwatched:
            self._pause()
            self._paces.rest()

    def _reading(self, cell: Any) -> dict[str, Any]:
        """What a snapshot says of the cell that is read just now, besides how far all are."""
        return {}

    def _let_go(self) -> None:
        super()._let_go()
        self._paces = None
