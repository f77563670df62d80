"""What stopped and can go on, whatever it is: nobody writes its folder, and text and weights are those that it had."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import texts
from ..settings import quoted
from .spec import Spec
from .status import RUNNING


@dataclass(frozen=True)
class Stopped:
    """Something in a folder that can go on, and what it is asked for now."""

    path: Path
    spec: Spec
    text_sha256: str | None
    weights_sha256: str | None

    def check(self, text_sha256: str, weights_sha256: str) -> None:
        """Raises ValueError where the text or the weights are not those that it was begun with."""
        for what, then, now in (
            (f"the text {self.spec.text}", self.text_sha256, text_sha256),
            (f"the model {self.spec.model}", self.weights_sha256, weights_sha256),
        ):
            # Of weights whose digest was not yet known nothing is believed that is not read again.
            if then and then != now:
                raise ValueError(
                    f"{what} is not the one that this run was read with (sha256 {_short(then)} then, {_short(now)} "
                    "now): it goes on with the same only"
                )


def text_of(name: str) -> texts.Text:
    """The text by which something was begun that goes on.  Raises ValueError where it is not here, or cannot be
    read."""
    if name in texts.plays() or os.path.exists(name):
        return texts.read(name)
    raise ValueError(
        f"the text {quoted(name)} of this run is not here: begin the command in the folder where the run was begun, or "
        "put the same text there under this name; what was pasted or uploaded goes on from the page of the run, too"
    )


def _short(digest: str | None) -> str:
    return (digest or "unknown")[:12]


def refuse_written(path: Path, status: str, process: Mapping[str, Any] | None) -> None:
    """Raises ValueError where a process writes a folder, which has this status and says this of who writes it."""
    if status == RUNNING:
        by = process or {}
        raise ValueError(
            f"{path} is being written by process {by.get('pid')} on {by.get('host')}: end it first, or wait until it "
            "has finished"
        )
