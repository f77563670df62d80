"""What a job keeps in the library: it is written as the job goes, and where the disk takes no more the job goes on.

Only the job's own thread calls this.  Nothing in here ends a job.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from analysis import files, texts
from analysis.errors import LOG, log, mendable
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.runs.switches import Switch

if TYPE_CHECKING:
    # The job's thread imports what reads and writes runs: a page is on screen before.
    from analysis.engine.step import Step
    from analysis.maps.recent import HeadMap
    from analysis.models.language_model import LanguageModel
    from analysis.runs.checkpoint import Saver
    from analysis.runs.folder import Folder as RunFolder
    from analysis.runs.maps import MapsFile
    from analysis.runs.result import ResultFolder
    from analysis.runs.resume import Made


class Kept(Protocol):
    """A folder that takes in what a job finds, and is finished once."""

    def finish(self, status: str) -> None:
        """Write what is left to be written; status: finished, interrupted or failed."""
        ...


Folder = TypeVar("Folder", bound=Kept)


class Keeper(Generic[Folder]):
    """The folder of a job, until it is finished or the disk takes no more; `problem` then says so in a sentence."""

    def __init__(self, name: str) -> None:
        self.name, self.problem = name, ""
        self.folder: Folder | None = None

    def open(self, make: Callable[[Path], Folder]) -> None:
        """Begin a folder in the library; `make` is given its path, which bears the id of the job."""
        from analysis.runs import library

        try:
            self.folder = make(library.home() / self.name)
        except Exception as e:
            self.lose(e)
        self.keep_within_size()

    def keep_within_size(self) -> None:
        """Let the oldest runs of the library go where it is larger than it may be."""
        from analysis.runs import trash

        try:
            # The page of runs says what had to go.
            trash.free(keep=self.name)
        except Exception as e:
            log(e, f"job {self.name}")

    def write(self, what: Callable[[Folder], object]) -> None:
        """Let the folder take in something, if there still is one."""
        if self.folder is None:
            return
        try:
            what(self.folder)
        except Exception as e:
            lost = self.folder
            self.lose(e)
            try:
                # What was written stands there, and says that it is not all.
                lost.finish("failed")
            except Exception as more:
                log(more, f"job {self.name}")

    def finish(self, status: str) -> bool:
        """Finish the folder, if there still is one; whether that was done."""
        self.write(lambda folder: folder.finish(status))
        done, self.folder = self.folder is not None, None
        return done

    def lose(self, e: Exception) -> None:
        """Go on without a folder, since it cannot be written, or takes no more."""
        begun, self.folder = self.folder is not None, None
        log(e, f"job {self.name}")
        if isinstance(e, OSError):
            e = files.unwritten(Path(self.name), e)
        # What to do about it is said to who names a folder on a command line.
        why = str(e).rpartition(": ")[0] if mendable(e) else ""
        where = "The library has what was written before, and the rest is kept" if begun else "Kept"
        self.problem = f"{where} in memory only: {' '.join(why.split()) or 'it could not be written'}."


class ModelKeeper(Keeper[Any]):
    """A folder that says with the weights of which model it was made.

    The digest of large weights takes a while: it is written down when it is there.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._model: LanguageModel | None = None

    def begin(self, model: "LanguageModel", make: "Callable[[Path], RunFolder | ResultFolder]") -> None:
        """Begin a folder of what is done with a model."""
        self._model = model
        self.open(make)

    def finish(self, status: str) -> bool:
        """Finish the folder, if there still is one; whether that was done."""
        self.know(wait=True)
        done = super().finish(status)
        self._model = None
        return done

    def know(self, *, wait: bool = False) -> None:
        """Write down the digest of the weights, where it is there or worth waiting for."""
        if self.folder is None or self._model is None or self.folder.weights_sha256:
            return
        if wait or "sha256" in vars(self._model):
            # Of files that are no longer there, or are others by now, the run is still worth keeping.
            with suppress(OSError, ValueError):
                digest = self._model.sha256
                super().write(lambda folder: folder.know(weights_sha256=digest))


class RunKeeper(ModelKeeper):
    """The folder of a run: of lanes that read, or that talk; with checkpoints from which it can go on."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._saver: Saver | None = None
        self._unsaved = ""
        """The sentence that stands on the page because a checkpoint could not be written."""
        self._maps: MapsFile | None = None

    def begin_run(
        self,
        run: "Run",
        model: "LanguageModel",
        *,
        text_sha256: str,
        tokens: int = 0,
        switches: Sequence[Switch] = (),
    ) -> None:
        """Begin the folder of a run, which takes in itself what it learns; `tokens`: that each lane will read;
        `switches`: what is to happen to its lanes."""
        from analysis.runs.folder import Folder

        of: dict[str, Any] = {"text_sha256": text_sha256, "weights_sha256": "", "tokens": tokens, "switches": switches}
        self.begin(model, lambda path: Folder(path, run, **of))
        self._begin_checkpoints()

    def go_on(self, folder: "RunFolder", model: "LanguageModel") -> None:
        """Take over the folder of a run that goes on."""
        self._model, self.folder = model, folder
        self._begin_checkpoints()
        self.keep_within_size()

    def map(self, lane: int, read: int, total: int, drawn: "HeadMap") -> None:
        """Keep a map of a head that somebody looks at, now and then: drawn after `read` of `total` tokens."""
        self.write(lambda folder: self._keep_map(folder, lane, read, total, drawn))

    def _keep_map(self, folder: "RunFolder", lane: int, read: int, total: int, drawn: "HeadMap") -> None:
        from analysis.maps.recorder import recorded_map
        from analysis.runs.maps import MapsFile

        if self._maps is None:
            self._maps = MapsFile(folder.path, len(folder.run.tracks), total)
        if self._maps.due(lane, drawn.layer, drawn.head, read):
            self._maps.add(recorded_map(lane, read, drawn))

    def step(self, step: "Step", seconds: float) -> None:
        """Write a step that the run has taken in `seconds` after it began."""
        self.know()
        self.write(lambda folder: folder.write(step, seconds))

    def event(self, entry: dict[str, Any]) -> None:
        """Write an event of the run."""
        self.write(lambda folder: folder.write_event(entry))

    def pieces(self, lane: int, start: int, pieces: Sequence[str]) -> None:
        """Write the texts of a lane's tokens from a position on; lane -1: of all lanes."""
        self.write(lambda folder: folder.pieces(lane, start, pieces))

    def save(self, make: "Callable[[], Made]", *, now: bool = False) -> None:
        """Write a checkpoint of what `make` gives where the last is old; `now`: at once, and wait until it is there."""
        if self._saver is None or self.folder is None:
            return
        try:
            if now:
                self._warn(self._saver.close(make))
            else:
                self._saver.save(make)
        except Exception as e:
            # What cannot be put into a checkpoint costs the run nothing but that.
            log(e, f"job {self.name}")

    def finish(self, status: str, *, over: bool = False) -> bool:
        """Finish the folder, if there still is one; whether that was done.  `over`: nothing is left that could go on,
        so that its checkpoints go."""
        if (saver := self._saver) is not None:
            self._warn(saver.close())
            self._saver = None
        done = super().finish(status)
        # Last, and only where all is written: what lacks something goes on from them.
        if over and done and saver is not None:
            self._warn("")
            saver.checkpoints.remove()
        return done

    def _begin_checkpoints(self) -> None:
        from analysis.runs.checkpoint import Checkpoints, Saver

        if self.folder is not None:
            self._saver = Saver(Checkpoints(self.folder.path), self._warn)

    def _warn(self, wrong: str) -> None:
        """Say that no checkpoint could be written, or no longer say so: the record goes on."""
        if wrong:
            LOG.warning("job %s: %s", self.name, wrong)
            # What to do about it is said to who names a folder on a command line.
            why = wrong.rpartition(": ")[0] or wrong
            wrong = f"{why[0].upper()}{why[1:]}."
        if self.problem == self._unsaved:
            self.problem = wrong
        self._unsaved = wrong


class ResultKeeper(ModelKeeper):
    """The folder of a result that is tables."""

    def begin_result(
        self,
        kind: str,
        spec: Spec,
        model: "LanguageModel",
        text: texts.Text,
        read: texts.Tokenized,
        settings: dict[str, Any] | None = None,
        place: Path | None = None,
    ) -> None:
        """Begin the folder of a `kind` of result over a text, as it was read; `place`: one that is there already."""
        from analysis.runs.facts import ModelFacts
        from analysis.runs.result import ResultFolder

        run = Run(spec)
        run.model, run.begins, run.as_text = ModelFacts.of(model), read.begins, read.as_text
        how: dict[str, Any] = {"text_sha256": text.sha256, "weights_sha256": "", "settings": settings}
        self.begin(model, lambda path: ResultFolder(place or path, kind, run, new=place is None, **how))

    def go_on(
        self, kind: str, spec: Spec, model: "LanguageModel", text: texts.Text, settings: dict[str, Any]
    ) -> Path | None:
        """Open the folder of a result that stopped; where what is known of it lies, if anything is.

        Raises ValueError where it is whole, somebody writes it, or it was asked for something else.
        """
        from analysis.runs import library, result

        asked = result.stopped(library.find(self.name))
        if (asked.kind, asked.spec, asked.settings) != (kind, spec, settings):
            raise ValueError("the run in the library was asked for something else: begin a new one")
        asked.check(text.sha256, model.sha256)
        self.begin(model, result.ResultFolder.reopened)
        return asked.known

    def write(self, what: Callable[[Any], object]) -> None:
        """Let the folder take in something, if there still is one; first of all, the digest of the weights: without it
        nothing of a result is believed when it is completed."""
        self.know(wait=True)
        super().write(what)
