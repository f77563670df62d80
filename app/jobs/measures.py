"""Measures: what every head does over many short texts, sample after sample."""

from collections.abc import Generator
from typing import Any

from analysis import texts
from analysis.experiments.measures import Measured, kept_measures, samples_of_text, separators_of
from analysis.runs.spec import Spec

from .loading import Models
from .result import ResultJob


class MeasuresJob(ResultJob):
    """Measures heads over samples of a text; what is measured is kept when the job is stopped."""

    noun = keeps = "measures"

    def __init__(
        self, spec: Spec, text: texts.Text, samples: int, first: int, models: Models, resumes: str = ""
    ) -> None:
        super().__init__(spec, text, models, resumes)
        self.samples, self.first = samples, first
        self.measured: Measured | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """How many samples are read, and how many first tokens count."""
        return {"samples": self.samples, "first": self.first}

    @property
    def done(self) -> int:
        """How many samples are measured."""
        return 0 if self.measured is None else len(self.measured.median)

    def _steps(self) -> Generator[None, None, None]:
        model = self._load()
        self.tokenized = samples_of_text(self.text, model.tokenizer, self.spec, self.samples)
        apart = separators_of(model.tokenizer, model.vocabulary)
        known = self._open(model, self.tokenized)
        self._set("running")
        how: dict[str, Any] = {"first": self.first, "separators": apart, "known": known}
        for measured in kept_measures(self._result.write, model, self.tokenized.ids, **how):
            self.measured = measured
            yield
