"""Measures: what every head does over many short texts, sample after sample."""

from collections.abc import Generator
from typing import Any

from analysis import texts
from analysis.experiments.measures import Measured, joined, measure, samples_of_text, separators_of, write
from analysis.runs.spec import Spec

from .base import TextJob
from .kept import ResultKeeper
from .loading import Models


class MeasuresJob(TextJob):
    """Measures heads over samples of a text; what is measured is kept when the job is stopped."""

    noun = "measures"

    def __init__(self, spec: Spec, text: texts.Text, samples: int, first: int, models: Models) -> None:
        super().__init__(spec, models)
        self.text, self.samples, self.first = text, samples, first
        self.kept = self._result = ResultKeeper(self.id)
        self.measured: Measured | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked besides the spec, as run.json and addresses say it."""
        return {"samples": self.samples, "first": self.first}

    @property
    def text_sha256(self) -> str:
        """Of the text."""
        return self.text.sha256

    @property
    def done(self) -> int:
        """How many samples are measured."""
        return 0 if self.measured is None else len(self.measured.median)

    def _steps(self) -> Generator[None, None, None]:
        model = self._load()
        self.tokenized = samples_of_text(self.text, model.tokenizer, self.spec, self.samples)
        apart = separators_of(model.tokenizer, model.vocabulary)
        self._use(model)
        self._result.begin_result("measures", self.spec, model, self.text, self.tokenized, self.settings)
        self._set("running")
        for part in measure(model, self.tokenized.ids, first=self.first, separators=apart):
            self.measured = part if self.measured is None else joined([self.measured, part])
            measured = self.measured
            self._result.write(lambda folder, measured=measured: write(measured, folder.path / "measures.npz"))
            yield
