"""The verdict: which cache to choose, cell after cell of policies at budgets."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from analysis import texts
from analysis.experiments.recall.cells import RecallCell, check_room
from analysis.experiments.verdict import Plan, Verdict
from analysis.experiments.verdict.kept import kept_cells

from .. import parameters
from .cells import CellsJob, CellsSnapshot
from .loading import Models


@dataclass(frozen=True)
class VerdictSnapshot(CellsSnapshot):
    """What is known so far."""

    found: Verdict | None = None
    """What those cells say that are whole; None before one is."""


class VerdictJob(CellsJob):
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
        self.snapshot = self._found = VerdictSnapshot()

    @property
    def settings(self) -> dict[str, Any]:
        """What is compared, besides the Spec."""
        return self.plan.settings

    def _steps(self) -> Generator[None, None, None]:
        model = self._load()
        # What cannot be asked leaves nothing in the library, which nobody could complete.
        check_room((cell for cell in self.plan.cells if isinstance(cell, RecallCell)), model.tokenizer)
        self._open(model, self._tokenize(texts.read(self.plan.texts[0]), model))
        place = self._begin_cells(self.plan.cells, model)
        assert self._paces is not None, "they were begun"
        with closing(kept_cells(self._result.write, model, self.plan, place, self._hear, self._say)) as whole:
            for cell in whole:
                self._paces.end(cell)
                self._found = replace(self._found, done=self._found.done + 1, **self._paces.said)
                yield

    def _say(self, found: Verdict) -> None:
        """Let pages see what the cells say."""
        self._found = replace(self._found, found=found)
