"""The base of jobs whose result is tables in the library: what one of them stopped at, another completes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import texts
from analysis.runs.spec import Spec

from .base import TextJob
from .kept import ResultKeeper
from .loading import Models

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel


class ResultJob(TextJob):
    """A job that finds its result part by part, and puts each into the library as it comes.

    `resumes`: the name of a result in the library that is completed under its name; empty: a new one begins.
    """

    def __init__(self, spec: Spec, text: texts.Text, models: Models, resumes: str = "") -> None:
        super().__init__(spec, models, resumes)
        self.text, self._resumes = text, resumes
        self.kept = self._result = ResultKeeper(self.id)

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked besides the Spec, as its folder says it."""
        return {}

    @property
    def text_sha256(self) -> str:
        """Of the text."""
        return self.text.sha256

    def _open(self, model: "LanguageModel", read: texts.Tokenized) -> Path | None:
        """Begin the folder, or open that of the result that is completed; where what is known of it lies, if it is.

        Raises ValueError where it cannot be completed so.
        """
        self._use(model)
        if self._resumes:
            return self._result.go_on(self.keeps, self.spec, model, self.text, self.settings)
        self._result.begin_result(self.keeps, self.spec, model, self.text, read, self.settings)
        return None
