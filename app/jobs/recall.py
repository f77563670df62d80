"""Recall: what each policy gives back of what was said in a text, cell after cell of a map."""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import files
from analysis.experiments.recall.asked import Answered, Asked, kept_answers, take_over
from analysis.experiments.recall.cells import RecallCell, Row
from analysis.experiments.recall.own import QUESTIONS
from analysis.runs import library
from analysis.runs.spec import Spec
from analysis.texts import Text

from .base import Unwanted
from .loading import Models
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
        self._paces: _Paces | None = None
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
        self._paces, self._found = _Paces(cells), RecallSnapshot(total=len(cells))
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


class _Paces:
    """How far the cells are, and how fast each policy reads: some take many times as long as others."""

    def __init__(self, cells: list[RecallCell]) -> None:
        self._left, self._total = Counter[str](), 0
        """Tokens that are still to be read under each policy, and in all at first."""
        for cell in cells:
            self._left[cell.spec.policies[0]] += cell.size
            self._total += cell.size
        self._seconds, self._read, self._of_cell = defaultdict[str, float](float), Counter[str](), 0
        self._began = time.monotonic()

    def read(self, cell: RecallCell, tokens: int) -> None:
        """So many tokens of a cell were read since the last were."""
        policy, now = cell.spec.policies[0], time.monotonic()
        # A text may have more tokens than anybody knew.
        tokens = min(tokens, cell.size - self._of_cell)
        self._left[policy] -= tokens
        self._read[policy] += tokens
        self._of_cell += tokens
        self._seconds[policy] += now - self._began
        self._began = now

    def end(self, cell: RecallCell) -> None:
        """A cell is whole, or was known."""
        self._left[cell.spec.policies[0]] -= cell.size - self._of_cell
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
