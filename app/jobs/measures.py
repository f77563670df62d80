"""Measures: what every head does over many short texts, sample after sample."""

from collections.abc import Generator

from analysis import texts
from analysis.experiments.measures import Measured, joined, measure, samples_of_text, separators_of
from analysis.runs.spec import Spec

from .base import TextJob
from .loading import Models


class MeasuresJob(TextJob):
    """Measures heads over samples of a text; what is measured is kept when the job is stopped."""

    noun = "measures"

    def __init__(self, spec: Spec, text: texts.Text, samples: int, first: int, models: Models) -> None:
        super().__init__(spec, models)
        self.text, self.samples, self.first = text, samples, first
        self.measured: Measured | None = None

    @property
    def done(self) -> int:
        """How many samples are measured."""
        return 0 if self.measured is None else len(self.measured.median)

    def _steps(self) -> Generator[None, None, None]:
        model = self._load()
        self.tokenized = samples_of_text(self.text, model.tokenizer, self.spec, self.samples)
        apart = separators_of(model.tokenizer, model.vocabulary)
        self._use(model)
        self._set("running")
        for part in measure(model, self.tokenized.ids, first=self.first, separators=apart):
            self.measured = part if self.measured is None else joined([self.measured, part])
            yield
