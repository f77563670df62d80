"""Recall: what each policy gives back of what was said in a text, cell after cell of a map."""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import files
from analysis.experiments.recall.asked import Answered, Asked, kept_answers
from analysis.experiments.recall.cells import RecallCell, Row, check_room
from analysis.experiments.recall.own import QUESTIONS
from analysis.runs import library
from analysis.runs.spec import Spec
from analysis.texts import Text

from .cells import CellsJob, CellsSnapshot
from .loading import Models

if TYPE_CHECKING:
    from analysis.runs.result import ResultFolder


@dataclass(frozen=True)
class RecallSnapshot(CellsSnapshot):
    """What is known so far."""

    rows: tuple[Row, ...] = ()
    now: RecallCell | None = None
    """The cell that is read just now."""


class RecallJob(CellsJob):
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
        self.snapshot = self._found = RecallSnapshot()

    @property
    def about(self) -> str:
        """What is asked, in a few words: others read it too, and not where a file of somebody's own lies."""
        return f"{self.noun} of {self.asked.of_task.title}"

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked besides the Spec."""
        return self.asked.settings

    def _steps(self) -> Generator[None, None, None]:
        model = self._load()
        beginning = self.asked.beginning(self.spec, model.tokenizer)
        if not self._questions:
            # What cannot be asked leaves nothing in the library, which nobody could complete.
            check_room(self.asked.cells(self.spec), model.tokenizer)
        self._open(model, beginning)
        if self._questions:
            self._result.write(self._keep_questions)
        cells = self.asked.cells(self.spec)
        place = self._begin_cells(cells, model)
        rows: dict[str, Sequence[Row]] = {}
        for answered in kept_answers(self._result.write, model, cells, place, self._hear):
            rows[answered.cell.name] = answered.rows
            self._take(answered, [row for cell in cells for row in rows.get(cell.name, ())])
            yield

    def _keep_questions(self, folder: "ResultFolder") -> None:
        files.write(Path(folder.path) / QUESTIONS, self._questions.decode())

    def _reading(self, cell: RecallCell) -> dict[str, Any]:
        return {"now": cell}

    def _take(self, answered: Answered, rows: list[Row]) -> None:
        assert self._paces is not None, "nothing is read before the cells are known"
        if answered.whole:
            self._paces.end(answered.cell)
        now = None if answered.whole else answered.cell
        done = self._found.done + answered.whole
        self._found = replace(self._found, rows=tuple(rows), done=done, now=now, **self._paces.said)
