"""Whereabouts: one cell of a map of recall is read once more, and its heads are asked where the fact is."""

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from analysis import texts
from analysis.experiments.recall.cells import RecallCell

from .base import TextJob, Unwanted
from .loading import Models

if TYPE_CHECKING:
    from analysis.experiments.recall.whereabouts import Whereabouts


class WhereaboutsJob(TextJob):
    """Reads the text of a cell up to its question, and says which heads look at the fact, and which can reach it."""

    noun = "a look into a cell"

    def __init__(self, cell: RecallCell, models: Models) -> None:
        super().__init__(cell.spec, models)
        self.cell = cell
        self.found: Whereabouts | None = None
        """What was found, once it is."""
        self.read, self.total = 0, len({"dense", *cell.spec.policies}) * cell.size
        """Tokens that were read, of how many, about."""
        self.text: texts.Text | None = None
        """The text of the cell, up to the end of its answer, once it is made."""

    def _steps(self) -> Generator[None, None, None]:
        from analysis.experiments.recall.whereabouts import whereabouts

        model = self._load()
        self._use(model)
        self._set("running")
        found = whereabouts(model, self.cell, model.tokenizer, self._hear)
        place = self.cell.place
        name = f"{self.cell.task.replace(':', ' ')} {place.length} tokens, text {place.repeat + 1}.txt"
        self.text = replace(texts.from_bytes(found.content.encode(), name), title=name.removesuffix(".txt"))
        self.found = found
        yield

    def _hear(self, tokens: int) -> None:
        if self.unwanted:
            raise Unwanted
        self.read += tokens
        self._publish()
        self._pause_while_unwatched()
