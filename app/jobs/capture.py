"""Capture: queries and keys of a stretch of text on disk, from which any map of it can be drawn."""

import os
import tempfile
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import files, texts
from analysis.maps.atlas import Atlas
from analysis.maps.capture import capture, tokenized
from analysis.maps.stretch import Stretch
from analysis.runs import library
from analysis.runs.spec import Spec

from .base import TextJob
from .kept import ResultKeeper
from .loading import Models

if TYPE_CHECKING:
    from analysis.figures.inputs import FigureInput
    from analysis.models.language_model import LanguageModel


class CaptureJob(TextJob):
    """Reads a text and keeps what maps need, in `folder` or in the library; opens what an earlier capture left.

    `text`: None, where `folder` holds a stretch.
    """

    noun = "capture"
    figures_need = "stretch"

    def __init__(self, spec: Spec, text: texts.Text | None, folder: str, models: Models) -> None:
        # One of the library is found again by its own name.
        kept = folder and text is None and Path(folder).parent == library.home()
        super().__init__(spec, models, Path(folder).name if kept else "")
        self.text, self.folder = text, folder
        self.kept = self._result = ResultKeeper(self.id)
        self.read = self.total = 0
        self.atlas: Atlas | None = None
        self.pieces: list[str] = []
        """The text of each token."""
        self._place: tempfile.TemporaryDirectory | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked besides the spec: nothing."""
        return {}

    @property
    def text_sha256(self) -> str:
        """Of the text; empty where it is not known, or not yet."""
        if self.text is not None:
            return self.text.sha256
        return str(self.atlas.stretch.about.get("text_sha256") or "") if self.atlas is not None else ""

    @property
    def opened(self) -> Atlas:
        """The atlas of what was captured.  Raises ValueError before there is one."""
        if self.atlas is None:
            raise ValueError("nothing is captured yet: wait until the stretch is read")
        return self.atlas

    def figure_input(self) -> "FigureInput":
        """The atlas, and where its stretch lies."""
        from analysis.figures.inputs import FigureInput

        stretch = self.opened.stretch
        return FigureInput(stretch.path, self.opened, stretch.about)

    def _steps(self) -> Generator[None, None, None]:
        place = Path(self.folder) if self.folder else None
        if place and os.path.exists(place / "stretch.json"):
            stretch = Stretch(place)
            self.spec = stretch.spec
            model = self._load()
        else:
            if place and os.path.exists(place) and (not place.is_dir() or any(place.iterdir())):
                # A capture that is stopped removes its folder, so nothing else may lie there.
                raise ValueError(f"{place} is not empty and holds no stretch: name a new folder")
            model = self._load()
            stretch = yield from self._capture(model)
        self._use(model)
        self.pieces = texts.token_texts(model.tokenizer, stretch.token_ids)
        self.read = self.total = stretch.tokens
        begins, as_text = texts.begins(model.tokenizer, stretch.token_ids), stretch.about.get("as_text", ())
        self.tokenized = texts.Tokenized(stretch.token_ids, begins, tuple(as_text))
        self.atlas = Atlas(stretch, model)

    def _capture(self, model: "LanguageModel") -> Generator[None, None, Stretch]:
        """Read the text; a capture that is stopped or fails leaves nothing behind."""
        assert self.text is not None
        self.tokenized = tokenized(self.text, model.tokenizer, self.spec)
        ids = self.tokenized.ids
        place = Path(self.folder) if self.folder else self._in_library()
        self.total = len(ids) - 1
        self._set("running")
        how, sha256, chunk = self.tokenized, self.text.sha256, self.spec.chunk
        try:
            with closing(capture(model, ids, self.spec, place, text_sha256=sha256, read=how, chunk=chunk)) as reading:
                for read in reading:
                    self.read = read
                    yield
        except BaseException:
            # What was captured is removed by then; what others put there since this began is theirs.
            with suppress(OSError):
                place.rmdir()
            raise
        stretch = Stretch(place)
        if not self.folder and self._place is None:
            self._result.begin_result("capture", self.spec, model, self.text, how, place=place)
        return stretch

    def _in_library(self) -> Path:
        """A new folder of the library; one that is removed with this job where that cannot be written."""
        place = library.home() / self.id
        try:
            files.new_folder(place)
        except ValueError as e:
            self.kept.lose(e)
            self._place = tempfile.TemporaryDirectory(prefix="sinkscope-stretch-")
            place = Path(self._place.name) / "stretch"
        return place
