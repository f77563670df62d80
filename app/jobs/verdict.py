"""The verdict: which cache to choose, cell after cell of policies at budgets."""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from analysis import texts
from analysis.experiments.grid import take_over
from analysis.experiments.verdict import Plan, Verdict
from analysis.experiments.verdict.kept import Cell, kept_cells
from analysis.runs import library

from .. import parameters
from .base import Unwanted
from .loading import Models
from .paces import Paces
from .result import ResultJob

if TYPE_CHECKING:
    from analysis.figures.inputs import FigureInput

TOLD_EVERY = 0.5
"""Seconds between two snapshots while one cell is computed."""


@dataclass(frozen=True)
class VerdictSnapshot:
    """What is known so far."""

    found: Verdict | None = None
    """What those cells say that are whole; None before one is."""
    done: int = 0
    """Cells that are whole."""
    total: int = 0
    """Cells in all."""
    share: float = 0.0
    """Of all tokens, those that were read."""
    seconds_left: float | None = None
    """An estimate; None before anything was read."""


class VerdictJob(ResultJob):
    """Compares policies at budgets, dense first; what cells say is on the page soon after they are whole.

    `like`: the name of a result in the library, whose cells are taken over as far as they are the same.  Raises
    ValueError where the plan would read a file.
    """

    noun = keeps = figures_need = "verdict"
    snapshot: VerdictSnapshot

    def __init__(self, plan: Plan, models: Models, like: str = "", resumes: str = "") -> None:
        parameters.check_plan(plan)
        super().__init__(plan.spec, plan.text, models, resumes)
        self.plan, self._like = plan, like
        self._paces: Paces | None = None
        self._told = 0.0
        self.snapshot = self._found = VerdictSnapshot()

    @property
    def settings(self) -> dict[str, Any]:
        """What is compared, besides the Spec."""
        return self.plan.settings

    def figure_input(self) -> "FigureInput":
        """The verdict, as it lies in the library."""
        from analysis.figures.inputs import open_input

        if self.kept.problem:
            raise ValueError(f"{self.kept.problem} A figure is made of its folder: make room, and begin once more")
        return open_input(library.home() / self.id, self.figures_need)

    def take_snapshot(self) -> VerdictSnapshot:
        """What is known so far."""
        return self._found

    def _steps(self) -> Generator[None, None, None]:
        model = self._load()
        self._open(model, self._tokenize(texts.read(self.plan.texts[0]), model))
        cells = self.plan.cells
        place = None if self._result.folder is None else self._result.folder.path
        if place is not None and self._like:
            take_over(cells, library.home() / self._like, model.sha256, place)
        self._paces, self._found = Paces(cells), VerdictSnapshot(total=len(cells))
        self._set("running")
        with closing(kept_cells(self._result.write, model, self.plan, place, self._hear, self._say)) as whole:
            for cell in whole:
                self._paces.end(cell)
                self._found = replace(self._found, done=self._found.done + 1, **self._paces.said)
                yield

    def _hear(self, cell: Cell, tokens: int) -> None:
        """So many tokens of a cell were read just now: obey, and tell now and then how far it is."""
        if self.unwanted:
            raise Unwanted
        assert self._paces is not None, "nothing is read before the cells are known"
        self._paces.read(cell, tokens)
        if time.monotonic() - self._told > TOLD_EVERY:
            self._told = time.monotonic()
            self._found = replace(self._found, **self._paces.said)
            self._publish()
        if self.unwatched:
            self._pause()
            self._paces.rest()

    def _say(self, found: Verdict) -> None:
        """Let pages see what the cells say."""
        self._found = replace(self._found, found=found)

    def _let_go(self) -> None:
        super()._let_go()
        self._paces = None
