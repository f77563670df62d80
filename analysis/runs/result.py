"""The run folder of work that has tables for a result and no lanes: knock-outs, measures, costs, captured stretches.

It says in run.json what was asked and how it ended, as the folder of a run does; which tables lie beside, whoever makes
them knows.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from .about import about_of, spec_of
from .checkpoint import Checkpoints
from .claim import claimed, claimed_new
from .folder import described, write_about
from .run import Run
from .status import RUNNING, here
from .stopped import Stopped, refuse_written

KINDS = ("knockouts", "measures", "costs", "recall", "verdict")
"""Kinds of results of which parts are known before all is."""


@dataclass(frozen=True)
class StoppedResult(Stopped):
    """A result of which something is missing."""

    kind: str
    settings: dict[str, Any]
    """What was asked besides the Spec."""

    @property
    def known(self) -> Path | None:
        """Where what is known of it lies; None where nothing is, since nobody knows of which weights it is."""
        return self.path if self.weights_sha256 else None


def stopped(path: Path) -> StoppedResult:
    """The result in a folder, which can be completed.  Raises ValueError where there is none, or nothing is missing."""
    about = about_of(path)
    if (kind := about.get("kind")) not in KINDS:
        raise ValueError(f"{path} holds no {', '.join(KINDS[:-1])} or {KINDS[-1]} that could be completed")
    refuse_written(path, about.get("status", ""), about.get("process"))
    if about.get("status") == "finished":
        raise ValueError(f"{path} is whole, and nothing of it is missing: begin a new run")
    digests = about.get("text_sha256"), about.get("weights_sha256")
    return StoppedResult(path, spec_of(path), *digests, kind, about.get("settings") or {})


class ResultFolder:
    """A folder for tables; `kind`: of what, as a library says it; `settings`: what was asked besides the Spec.

    `run`: has the Spec, and what is known of model and text.  `new`: whether it must hold nothing yet.  Raises
    ValueError where it does, holds something of another kind, somebody writes it, or it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        run: Run,
        *,
        text_sha256: str,
        weights_sha256: str,
        settings: dict[str, Any] | None = None,
        new: bool = True,
    ) -> None:
        about = described(run, text_sha256, weights_sha256) | {"kind": kind, "settings": settings or {}}
        with claimed_new(path) if new else claimed(path):
            if not new and os.path.exists(path / "run.json"):
                there = about_of(path)
                if there.get("kind") != kind:
                    raise ValueError(f"{path} holds a run of another kind already: choose another folder for --out")
                refuse_written(path, there.get("status", ""), there.get("process"))
            self._open(path, about)

    @classmethod
    def reopened(cls, path: Path) -> "ResultFolder":
        """The folder of a result that stopped, to be completed.

        Raises ValueError where somebody completes it by now, or the disk does not take it.
        """
        folder = object.__new__(cls)
        with claimed(path):
            folder._open(stopped(path).path, about_of(path))
        return folder

    def _open(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self._about, self.checkpoints = path, about, Checkpoints(path)
        try:
            files.reserve(path)
            self._write(RUNNING)
        except OSError as e:
            files.release(path)
            raise files.unwritten(path, e) from e

    def _write(self, status: str) -> None:
        about = self._about | {"status": status, "process": here()}
        if status != RUNNING:
            del about["process"]
        write_about(self.path, about)

    @property
    def weights_sha256(self) -> str:
        """The digest of the weights; empty before it is known."""
        return str(self._about["weights_sha256"])

    def know(self, *, weights_sha256: str) -> None:
        """Write down the digest of the weights: what comes without it is not believed when the work goes on.

        Raises ValueError where the disk does not take it.
        """
        self._about["weights_sha256"] = weights_sha256
        self._write(RUNNING)

    def finish(self, status: str) -> None:
        """Say how the work ended: finished, interrupted or failed.

        Raises ValueError where the disk does not take it.
        """
        files.release(self.path)
        self._write(status)
        if status == "finished":
            # Nothing is missing.
            self.checkpoints.remove()

    def discard(self) -> None:
        """Leave nothing of a folder whose work could not begin."""
        files.release(self.path)
        with suppress(OSError):
            (self.path / "run.json").unlink()
            # Whatever else is in it stays.
            self.path.rmdir()


Keep = Callable[[Callable[[ResultFolder], object]], object]
"""Lets a folder take in something, where there still is one."""
