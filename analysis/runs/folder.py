"""The folder on disk that holds a run: its Spec, what it learned, and what happened.

The folder is readable at every moment: tables grow by whole chunks, and a process that is killed loses at most the
chunk that it was writing.  A disk that is full costs no more than that.  This module knows nothing of models or
screens.
"""

import json
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from .reader import ROLE, SINKS, TOKENS, about_of
from .run import ROLES, Run, spent_on
from .status import RUNNING, here

if TYPE_CHECKING:
    from ..engine.context import Step

GROWING = ("tokens.arrow", "sinks.arrow")
BYTES = 64
"""On disk, of a token of a lane, about; once while it runs and once more at its end."""


class Folder:
    """The run folder: takes in every step and event as they come, and is finished once.

    `tokens`: as many as each lane will read, where that is known.  Raises ValueError where the folder holds something
    already, cannot be written, or has no room for the run.
    """

    def __init__(self, path: Path, run: Run, *, text_sha256: str, weights_sha256: str, tokens: int = 0) -> None:
        self.path, self.run = path, run
        files.check_room(path, 2 * BYTES * tokens * len(run.tracks), "this run")
        files.new_folder(path, "a run" if (path / "run.json").exists() else "something")
        self._about = {**_about(run, text_sha256, weights_sha256), "process": here()}
        self._schema = TOKENS if run.spec.sampling is None else TOKENS.append(ROLE)
        try:
            files.reserve(path)
            self._write_about(RUNNING)
            self._files = [(path / name).open("wb") for name in GROWING]
            self._events = (path / "events.jsonl").open("a", encoding="utf-8")
            self._tokens, self._sinks = (
                pa.ipc.new_stream(f, schema) for f, schema in zip(self._files, (self._schema, SINKS), strict=True)
            )
        except OSError as e:
            raise files.unwritten(path, e) from e

    def append(self, step: "Step") -> None:
        """Take in a step, in the run and on disk; a signal that ends the program waits until it is in both.

        Raises ValueError where the disk does not take it; the run then ends with the step before.
        """
        with _undisturbed():
            try:
                self._append(step)
            except OSError as e:
                raise files.unwritten(self.path, e) from e

    def _append(self, step: "Step") -> None:
        first, seconds = step.start == 1, time.perf_counter() - self.run.began
        known = seconds - step.seconds + spent_on(step)
        count = len(step.nll) + first
        ids, nll, kept, size = step.token_ids, step.nll, step.cache_tokens, step.cache_bytes
        if first:
            # Token 0 is read by every lane and predicted by none.
            ids = np.concatenate(([self.run.first_token or 0], ids)).astype(np.int32)
            nll, kept, size = (np.concatenate(([0], a)).astype(a.dtype) for a in (nll, kept, size))
        unknown = np.zeros(count, bool)
        unknown[0] = first
        columns = [
            np.full(count, step.lane, np.int32),
            pa.array([str(step.policy)] * count),
            np.arange(step.stop - count, step.stop),
            ids,
            pa.array(nll, mask=unknown),
            kept,
            size,
            np.concatenate((known[:1], known)) if first else known,
        ]
        if step.roles is not None:
            roles = [self.run.first_role] * first + step.roles.tolist()
            columns.append(pa.array([ROLES[role] for role in roles]))
        if "heads" not in self._about:
            # Before the numbers, which are not understood without.
            self._about["heads"] = list(step.sink_mass.shape[:2])
            self._write_about(RUNNING)
        self._tokens.write_batch(pa.record_batch(columns, schema=self._schema))
        mass = pa.array([step.sink_mass.mean(-1, dtype=np.float32).ravel()], SINKS.field("sink_mass").type)
        self._sinks.write_batch(
            pa.record_batch(
                [np.array([step.lane], np.int32), np.array([step.start]), np.array([step.stop]), mass], schema=SINKS
            )
        )
        for file in self._files:
            file.flush()
        self.run.tracks[step.lane].append(step, seconds)

    def event(self, what: str, **more: Any) -> None:
        """Note an event, in the run and on disk.  Raises ValueError where the disk does not take it."""
        try:
            self._events.write(json.dumps(self.run.event(what, **more)) + "\n")
            self._events.flush()
        except OSError as e:
            raise files.unwritten(self.path, e) from e

    def finish(self, status: str) -> None:
        """Put the tables that grew into tokens.parquet and sinks.npz; status: finished, interrupted or failed.

        Raises ValueError where the disk has no room for these: the run is then kept as it grew, and has failed.
        """
        for closing in (self._tokens, self._sinks, *self._files, self._events):
            with suppress(OSError):
                closing.close()
        files.release(self.path)
        del self._about["process"]
        try:
            _write_tables(self.run, self.path)
            self._write_about(status)
        except ValueError:
            with suppress(ValueError):
                self._write_about("failed")
            raise
        for name in GROWING:
            (self.path / name).unlink()

    def _write_about(self, status: str) -> None:
        _write_about(self.path, {**self._about, "status": status})


def save(run: Run, path: Path, *, text_sha256: str, weights_sha256: str) -> None:
    """Put a run that is kept in memory into a folder, or what it has learned since.

    Raises ValueError where the folder holds another run, or something else, or cannot be written.
    """
    path = Path(path)
    if (path / "run.json").exists():
        if about_of(path)["spec"] != json.loads(run.spec.to_json()):
            raise ValueError(f"{path} holds another run: choose another folder")
    else:
        files.new_folder(path)
    _write_tables(run, path)
    lines = "".join(json.dumps(event) + "\n" for event in list(run.events))
    files.write(path / "events.jsonl", lines)
    _write_about(path, {**_about(run, text_sha256, weights_sha256), "status": "saved"})


def _write_tables(run: Run, path: Path) -> None:
    """What the lanes have learned, as tokens.parquet and sinks.npz."""
    parts, arrays, schema = [], {}, TOKENS if run.spec.sampling is None else TOKENS.append(ROLE)
    for lane, track in enumerate(run.tracks):
        count = len(track.nll)
        if not count:
            continue
        first = {"token_ids": run.first_token or 0, "nll": 0, "cache_tokens": 0, "cache_bytes": 0}
        column = {name: np.concatenate(([value], getattr(track, name).view()[:count])) for name, value in first.items()}
        known = track.seconds.view()[:count]
        policies = np.empty(count + 1, object)
        for position, policy in track.policies:
            policies[position if position > 1 else 0 :] = policy
        columns = [
            np.full(count + 1, lane, np.int32),
            pa.array(policies.tolist(), pa.string()),
            np.arange(count + 1),
            column["token_ids"].astype(np.int32),
            pa.array(column["nll"].astype(np.float32), mask=np.arange(count + 1) == 0),
            column["cache_tokens"].astype(np.int32),
            column["cache_bytes"].astype(np.int64),
            np.concatenate((known[:1], known)),
        ]
        if run.spec.sampling is not None:
            roles = [run.first_role, *track.roles.view()[:count].tolist()]
            columns.append(pa.array([ROLES[role] for role in roles]))
        parts.append(pa.table(columns, schema=schema))
        spans = [span for span in track.spans[:] if span[1] <= count + 1]
        arrays[f"mass_{lane}"], arrays[f"span_{lane}"] = np.stack(track.sink_mass[: len(spans)]), np.array(spans)
    with files.written(path / "sinks.npz") as f:
        np.savez_compressed(f, **arrays)
    with files.written(path / "tokens.parquet") as f:
        pq.write_table(pa.concat_tables(parts) if parts else schema.empty_table(), f, write_page_checksum=True)


def _about(run: Run, text_sha256: str, weights_sha256: str) -> dict[str, Any]:
    """What a run folder says of itself."""
    return {
        "spec": asdict(run.spec),
        "arithmetic": run.spec.arithmetic,
        "begins": run.begins,
        "as_text": list(run.as_text),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in ("torch", "transformers")}},
        "text_sha256": text_sha256,
        "weights_sha256": weights_sha256,
        "started": run.started,
    }


def _write_about(path: Path, about: dict[str, Any]) -> None:
    files.write(path / "run.json", json.dumps(about, indent=2) + "\n")


@contextmanager
def _undisturbed() -> Iterator[None]:
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
