"""The run folder of work that has tables for a result and no lanes: knock-outs, measures, costs, captured stretches.

It says in run.json what was asked and how it ended, as the folder of a run does; which tables lie beside, whoever makes
them knows.
"""

from pathlib import Path
from typing import Any

from .. import files
from .folder import described, write_about
from .run import Run
from .status import RUNNING, here


class ResultFolder:
    """A folder for tables; `kind`: of what, as a library says it; `settings`: what was asked besides the Spec.

    `run`: has the Spec, and what is known of model and text.  `new`: whether it must hold nothing yet.  Raises
    ValueError where it does, or cannot be written.
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
        self.path = path
        self._about = described(run, text_sha256, weights_sha256) | {"kind": kind, "settings": settings or {}}
        if new:
            files.new_folder(path)
        try:
            files.reserve(path)
        except OSError as e:
            raise files.unwritten(path, e) from e
        write_about(path, {**self._about, "process": here(), "status": RUNNING})

    @property
    def weights_sha256(self) -> str:
        """The digest of the weights; empty before it is known."""
        return str(self._about["weights_sha256"])

    def know(self, *, weights_sha256: str) -> None:
        """Take in the digest of the weights, to be written at the end."""
        self._about["weights_sha256"] = weights_sha256

    def finish(self, status: str) -> None:
        """Say how the work ended: finished, interrupted or failed.

        Raises ValueError where the disk does not take it.
        """
        files.release(self.path)
        write_about(self.path, {**self._about, "status": status})
