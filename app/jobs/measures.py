"""Live measures: what every head does over many short texts, sample after sample."""

from collections.abc import Iterator

from analysis import texts
from analysis.experiments.measures import Measured, joined, measure, samples_of_text, separators_of
from analysis.runs.folder import Spec

from .runner import Job, Models


class Measuring(Job):
    """Measures heads over samples of a text; what is known grows, and is kept when it is stopped."""

    called = "measures"

    def __init__(self, spec: Spec, text: texts.Text, samples: int, first: int, models: Models) -> None:
        super().__init__(spec, models)
        self.text, self.samples, self.first = text, samples, first
        self.measured: Measured | None = None

    @property
    def done(self) -> int:
        """Samples that are measured."""
        return 0 if self.measured is None else len(self.measured.median)

    def _steps(self) -> Iterator[None]:
        model = self._load()
        self.read_as = samples_of_text(self.text, model.tokenizer, self.spec, self.samples)
        apart = separators_of(model.tokenizer, model.network.get_input_embeddings().num_embeddings)
        self.model = model
        self._set("running")
        for part in measure(model, self.read_as.ids, first=self.first, separators=apart):
            self.measured = part if self.measured is None else joined([self.measured, part])
            yield
