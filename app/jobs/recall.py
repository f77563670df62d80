"""Recall: what each policy gives back of what was said in a text, cell after cell of a map."""

import hashlib
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import files
from analysis.experiments.grid import take_over
from analysis.experiments.recall.asked import Answered, Asked, kept_answers
from analysis.experiments.recall.cells import RecallCell, Row
from analysis.experiments.recall.own import QUESTIONS
from analysis.runs import library
from analysis.runs.spec import Spec
from analysis.texts import Text

from .base import Unwanted
from .loading import Models
from .paces import Paces
from .result import ResultJob

if TYPE_CHECKING:
    from analysis.figures.inputs import FigureInput
    from analysis.runs.result import ResultFolder

TOLD_EVERY = 0.5
"""Seconds between two snapshots while one cell is read."""


@dataclass(frozen=True)
class RecallSnapshot:
    """What is known so far."""

    rows: tuple[Row, ...] = ()
    done: int = 0
    """Cells that are whole."""
    total: int = 0
    """Cells in all."""
    now: RecallCell | None = None
    """The cell that is read just now."""
    share: float = 0.0
    """Of all tokens, those that were read."""
    seconds_left: float | None = None
    """An estimate; None before anything was read."""


class RecallJob(ResultJob):
    """Asks under each policy for what was said in texts, dense first; an answer is on the page as soon as it is given.

    `questions`: the lines of a file of one's own, which was uploaded; `like`: the name of a result in the library,
    whose cells are taken over as far as they are the same.
    """

    noun = keeps = figures_need = "recall"
    snapshot: RecallSnapshot

    def __init__(
        self, spec: Spec, asked: Asked, models: Models, questions: bytes = b"", like: str = "", resumes: str = ""
    ) -> None:
        # Where questions were uploaded they are a file only once there is a folder.
        text = (
            Text(QUESTIONS, QUESTIONS, None, None, hashlib.sha256(questions).hexdigest()) if questions else asked.text
        )
        super().__init__(spec, text, models, resumes)
        if questions:
            asked = replace(asked, task=f"jsonl:file={library.home().absolute() / self.id / QUESTIONS}")
        self.asked, self.spec = asked, replace(spec, text=asked.task)
        self._questions, self._like = questions, like
        self._paces: Paces | None = None
        self._told = 0.0
        self.snapshot = self._found = RecallSnapshot()

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked besides the Spec."""
        return self.asked.settings

    def figure_input(self) -> "FigureInput":
        """The table, as it lies in the library."""
        from analysis.figures.inputs import open_input

        if self.kept.problem:
            raise ValueError(f"{self.kept.problem} A figure is made of its folder: make room, and begin once more")
        return open_input(library.home() / self.id, self.figures_need)

    def take_snapshot(self) -> RecallSnapshot:
        """What is known so far."""
        return self._found

    def _steps(self) -> Generator[None, None, None]:
        model = self._load()
        self._open(model, self.asked.beginning(self.spec, model.tokenizer))
        if self._questions:
            self._result.write(self._keep_questions)
        cells = self.asked.cells(self.spec)
        place = None if self._result.folder is None else self._result.folder.path
        if place is not None and self._like:
            take_over(cells, library.home() / self._like, model.sha256, place)
        self._paces, self._found = Paces(cells), RecallSnapshot(total=len(cells))
        self._set("running")
        rows: dict[str, Sequence[Row]] = {}
        for answered in kept_answers(self._result.write, model, cells, place, self._hear):
            rows[answered.cell.name] = answered.rows
            self._take(answered, [row for cell in cells for row in rows.get(cell.name, ())])
            yield

    def _keep_questions(self, folder: "ResultFolder") -> None:
        files.write(Path(folder.path) / QUESTIONS, self._questions.decode())

    def _hear(self, cell: RecallCell, tokens: int) -> None:
        """So many tokens of a cell were read just now: obey, and tell now and then how far it is."""
        if self.unwanted:
            raise Unwanted
        assert self._paces is not None, "nothing is read before the cells are known"
        self._paces.read(cell, tokens)
        if time.monotonic() - self._told > TOLD_EVERY:
            self._told = time.monotonic()
            self._found = replace(self._found, now=cell, **self._paces.said)
            self._publish()
        if self.unwatched:
            self._pause()
            self._paces.rest()

    def _take(self, answered: Answered, rows: list[Row]) -> None:
        assert self._paces is not None, "nothing is read before the cells are known"
        if answered.whole:
            self._paces.end(answered.cell)
        now = None if answered.whole else answered.cell
        done = self._found.done + answered.whole
        self._found = replace(self._found, rows=tuple(rows), done=done, now=now, **self._paces.said)

    def _let_go(self) -> None:
        super()._let_go()
        self._paces = None
