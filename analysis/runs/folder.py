"""The folder on disk that holds a run: its Spec, what it learned, and what happened.

The folder is readable at every moment: tables grow by whole chunks, and a process that is killed loses at most the
chunk that it was writing.  A disk that is full costs no more than that.  This module knows nothing of models or
screens.
"""

import json
import os
import platform
import signal
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .. import files
from . import preview
from .about import about_of
from .claim import claimed_new
from .run import Run, Track
from .status import RUNNING, here
from .stopped import refuse_written
from .switches import Switch
from .tables import (
    PIECES,
    piece_row,
    piece_rows,
    schema_of,
    sink_rows,
    sink_schema_of,
    token_rows,
    write_pieces,
    write_tables,
)

if TYPE_CHECKING:
    from ..engine.step import Step

GROWING = ("tokens.arrow", "sinks.arrow")
FINISHED = ("tokens.parquet", "sinks.npz")
BYTES = 64
"""On disk, of a token of a lane, about; once while it runs and once more at its end."""


class Folder:
    """The run folder: takes in every step and event as they come, and is finished once.

    `tokens`: as many as each lane will read, where that is known; `maps`: heads, written layer.head, whose maps are
    recorded beside it; `switches`: what is to happen to its lanes.  Raises ValueError where the folder holds something
    already, cannot be written, or has no room for the run.
    """

    def __init__(
        self,
        path: Path,
        run: Run,
        *,
        text_sha256: str,
        weights_sha256: str,
        tokens: int = 0,
        maps: Sequence[str] = (),
        switches: Sequence[Switch] = (),
    ) -> None:
        self.path, self.run = path, run
        files.check_room(path, 2 * BYTES * tokens * len(run.tracks), "this run")
        asked = {"maps": list(maps), "switches": [asdict(switch) for switch in switches]}
        self._about = {**described(run, text_sha256, weights_sha256), **asked, "process": here()}
        with claimed_new(path, "a run" if (path / "run.json").exists() else "something"):
            self._begin()

    def _begin(self) -> None:
        """Say in the folder who writes it, and open its files.  Raises ValueError where the disk does not take it."""
        path, run = self.path, self.run
        try:
            files.reserve(path)
            self._write_about(RUNNING)
            self._files = [(path / name).open("wb") for name in GROWING]
            self._pieces: pa.RecordBatchStreamWriter | None = None
            self._events = (path / "events.jsonl").open("a", encoding="utf-8")
            schemas = schema_of(run), sink_schema_of(run)
            self._tokens, self._sinks = map(pa.ipc.new_stream, self._files, schemas)
        except OSError as e:
            files.release(path)
            # It would say that this process writes it, as long as that lives; and then be listed as damaged.
            for name in ("run.json", *GROWING, "events.jsonl"):
                (path / name).unlink(missing_ok=True)
            raise files.unwritten(path, e) from e

    @classmethod
    def reopened(cls, path: Path, run: Run) -> "Folder":
        """The folder of a run that was loaded from it and goes on: `run.spec` may ask for more than it did.

        Raises ValueError where the disk does not take it; what was learned is then there as it was.
        """
        folder = object.__new__(cls)
        folder.path, folder.run = path, run
        about = about_of(path)
        folder._about = {**about, "spec": asdict(run.spec)}
        folder._pieces, folder._files = None, []
        try:
            files.reserve(path)
            for track in run.tracks:
                if track.sink_mass:
                    folder._about["heads"] = list(track.sink_mass[0].shape)
            folder._about["process"] = here()
            # First, so that nobody else opens it meanwhile, and since sink masses that grow are not understood without
            # the numbers of heads.
            folder._write_about(RUNNING)
            with _undisturbed():
                folder._grow_again()
            files.write(path / "events.jsonl", "".join(json.dumps(event) + "\n" for event in run.events))
            folder._events = (path / "events.jsonl").open("a", encoding="utf-8")
        except BaseException as e:
            files.release(path)
            # Tables that grow may be there by now, which are not understood without the numbers of heads.
            heads = {name: said for name, said in folder._about.items() if name == "heads"}
            with suppress(ValueError):
                write_about(path, about | heads)
            if isinstance(e, OSError):
                raise files.unwritten(path, e) from e
            raise
        for name in FINISHED:
            (path / name).unlink(missing_ok=True)
        return folder

    def _grow_again(self) -> None:
        """Put what was learned into tables that grow: whole, each under its name at once."""
        tracks = [(lane, track) for lane, track in enumerate(self.run.tracks) if len(track.nll)]
        rows = {
            # Whoever finds tokens that grow looks for sink masses that do, so these come first.
            "sinks.arrow": (sink_schema_of(self.run), [sink_rows(self.run, lane, track) for lane, track in tracks]),
            "tokens.arrow": (schema_of(self.run), [token_rows(self.run, lane, track) for lane, track in tracks]),
        }
        self._sinks, self._tokens = (self._rewritten(name, *of) for name, of in rows.items())
        if any(self.run.pieces):
            self._pieces = self._rewritten("pieces.arrow", PIECES, piece_rows(self.run))

    def _rewritten(self, name: str, schema: pa.Schema, rows: list[pa.RecordBatch]) -> pa.RecordBatchStreamWriter:
        """A table of these rows in place of the one of that name, which takes in more."""
        draft = files.draft_of(self.path / name)
        file = draft.open("wb")
        try:
            stream = pa.ipc.new_stream(file, schema)
            for row in rows:
                stream.write_batch(row)
            file.flush()
            os.fsync(file.fileno())
            # The open file goes on under its new name.
            os.replace(draft, self.path / name)
        except BaseException:
            # What could not be written would be tried, and complained of, once more when Python frees the file.
            with suppress(OSError):
                file.close()
            draft.unlink(missing_ok=True)
            raise
        self._files.append(file)
        return stream

    def append(self, step: "Step") -> None:
        """Take in a step, in the run and on disk; a signal that ends the program waits until it is in both.

        Raises ValueError where the disk does not take it; the run then ends with the step before.
        """
        with _undisturbed():
            seconds = time.perf_counter() - self.run.began
            self.write(step, seconds)
            self.run.append(step, seconds)

    def write(self, step: "Step", seconds: float) -> None:
        """Put a step on disk that the run takes in elsewhere, `seconds` after it began.

        Raises ValueError where the disk does not take it.
        """
        try:
            self._write(step, seconds)
        except OSError as e:
            raise files.unwritten(self.path, e) from e

    def _write(self, step: "Step", seconds: float) -> None:
        chunk = Track()
        chunk.append(step, seconds)
        if "heads" not in self._about:
            # Before the numbers, which are not understood without.
            self._about["heads"] = list(step.sink_mass.shape[:2])
            self._write_about(RUNNING)
        self._tokens.write_batch(token_rows(self.run, step.lane, chunk, step.start))
        self._sinks.write_batch(sink_rows(self.run, step.lane, chunk))
        for file in self._files:
            file.flush()

    def event(self, what: str, **more: Any) -> None:
        """Note an event, in the run and on disk.  Raises ValueError where the disk does not take it."""
        self.write_event(self.run.event(what, **more))

    def write_event(self, entry: dict[str, Any]) -> None:
        """Put an event of the run on disk.  Raises ValueError where the disk does not take it."""
        try:
            self._events.write(json.dumps(entry) + "\n")
            self._events.flush()
        except OSError as e:
            raise files.unwritten(self.path, e) from e

    def pieces(self, lane: int, start: int, pieces: Sequence[str]) -> None:
        """Take in the texts of a lane's tokens from position `start` on, in the run and on disk; lane -1: of all lanes.

        What comes later wins.  Raises ValueError where the disk does not take it.
        """
        self.run.take_pieces(lane, start, pieces)
        with _undisturbed():
            try:
                if self._pieces is None:
                    self._files.append(file := (self.path / "pieces.arrow").open("wb"))
                    self._pieces = pa.ipc.new_stream(file, PIECES)
                self._pieces.write_batch(piece_row(lane, start, pieces))
                self._files[-1].flush()
            except OSError as e:
                raise files.unwritten(self.path, e) from e

    def know(self, *, weights_sha256: str) -> None:
        """Write down the digest of the weights, which may take longer than the beginning of a run.

        Raises ValueError where the disk does not take it.
        """
        self._about["weights_sha256"] = weights_sha256
        self._write_about(RUNNING)

    @property
    def weights_sha256(self) -> str:
        """The digest of the weights; empty before it is known."""
        return str(self._about["weights_sha256"])

    @property
    def open(self) -> bool:
        """Whether it takes in more: it was not finished yet."""
        return "process" in self._about

    def finish(self, status: str) -> None:
        """Put the tables that grew into tokens.parquet and sinks.npz; status: finished, interrupted or failed.

        Raises ValueError where the disk has no room for these: the run is then kept as it grew, and has failed.
        """
        streams = [s for s in (self._tokens, self._sinks, self._pieces) if s is not None]
        for closing in (*streams, *self._files, self._events):
            with suppress(OSError):
                closing.close()
        files.release(self.path)
        self._about.pop("process", None)
        try:
            write_tables(self.run, self.path)
            self._write_about(status)
        except BaseException:
            # Whatever it is: as long as this process lives, a folder that it seems to write can only be looked at.
            with suppress(ValueError):
                self._write_about("failed")
            raise
        for name in GROWING:
            (self.path / name).unlink()
        preview.keep(self.path, self.run)

    def _write_about(self, status: str) -> None:
        write_about(self.path, {**self._about, "status": status})


def save(run: Run, path: Path, *, text_sha256: str, weights_sha256: str) -> None:
    """Put a run that is kept in memory into a folder, or what it has learned since.

    Raises ValueError where the folder holds another run, or more of this one, or something else, where somebody writes
    it, or it cannot be written.
    """
    path = Path(path)
    if (path / "run.json").exists():
        _check_saved(run, path, about_of(path))
    else:
        files.new_folder(path)
    write_tables(run, path)
    # Of a run that was killed here: whoever found these would read them, and not what is saved.
    for name in GROWING:
        (path / name).unlink(missing_ok=True)
    write_pieces(run, path)
    lines = "".join(json.dumps(event) + "\n" for event in list(run.events))
    files.write(path / "events.jsonl", lines)
    write_about(path, {**described(run, text_sha256, weights_sha256), "status": "saved"})
    preview.keep(path, run)


def _check_saved(run: Run, path: Path, about: dict[str, Any]) -> None:
    """Raises ValueError where a run may not be saved over the one that a folder holds, which says this of itself."""
    from .reader import load

    if about["spec"] != json.loads(run.spec.to_json()):
        raise ValueError(f"{path} holds another run: choose another folder")
    refuse_written(path, about.get("status", ""), about.get("process"))
    try:
        there = load(path)
    except ValueError:
        # Nothing of it can be read, so nothing is lost.
        return
    # An answer that is given again may be shorter.
    for track, known in zip(run.tracks, there.tracks, strict=True):
        if run.kind == "reading" and len(track.nll) < len(known.nll):
            raise ValueError(
                f"{path} holds {len(known.nll) + 1:,} tokens of a lane, and what would be saved over them has "
                f"{len(track.nll) + 1 if len(track.nll) else 0:,}: choose another folder"
            )


def described(run: Run, text_sha256: str, weights_sha256: str) -> dict[str, Any]:
    """What a run folder says of itself."""
    return {
        "kind": run.kind,
        "spec": asdict(run.spec),
        "arithmetic": run.spec.arithmetic,
        "model": asdict(run.model) if run.model else None,
        "begins": run.begins,
        "as_text": list(run.as_text),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in ("torch", "transformers")}},
        "text_sha256": text_sha256,
        "weights_sha256": weights_sha256,
        "started": run.started,
    }


def write_about(path: Path, about: dict[str, Any]) -> None:
    """Write what a run folder says of itself.  Raises ValueError where the disk does not take it."""
    files.write(path / "run.json", json.dumps(about, indent=2) + "\n")


@contextmanager
def _undisturbed() -> Generator[None]:
    """Ctrl-C and a request to end wait until the block has ended: they would cut what it does in two."""
    if threading.current_thread() is not threading.main_thread():
        # Signals come to the main thread alone.
        yield
        return
    came: list[tuple] = []
    handlers = ((number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM))
    # None: not Python's, and so nothing that could come in between.
    before = {number: handler for number, handler in handlers if handler is not None}
    try:
        for number in before:
            signal.signal(number, lambda *about: came.append(about))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, _ in came:
            # As if it came now, whatever is to be done then.
            signal.raise_signal(number)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
