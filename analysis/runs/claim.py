"""Who of several processes that would write a run folder at the same moment may: the first.

A folder says in run.json who writes it; between reading that and writing it another process may have done both.
"""

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from .. import files
from .status import CLAIM, RUNNING, here, status_of
from .stopped import refuse_written

JUST = 10.0
"""Seconds for which a claim that does not say yet whose it is counts as somebody's."""


@contextmanager
def claimed(path: Path) -> Generator[Path]:
    """While it is held no other thread or process holds it of this folder: what was looked up in it stays true.  It is
    a file there, which whoever moves the folder has to remove.

    Raises ValueError where somebody holds it, or the folder cannot be written.
    """
    for number in count(1):
        file = path / f"{CLAIM}{number}"
        try:
            with file.open("x", encoding="utf-8") as f:
                json.dump(here(), f)
            break
        except FileExistsError:
            # Nobody removes that of a process that was killed: who took it for dead a moment later would remove
            # another one's.  The next number is free for one of all who look.
            _refuse_held(file)
        except OSError as e:
            with suppress(OSError):
                file.unlink(missing_ok=True)
            raise files.unwritten(path, e) from e
    try:
        # What was passed over while it was given back may be somebody's again by now.
        for other in path.glob(f"{CLAIM}*"):
            if other != file:
                _refuse_held(other)
        yield file
    finally:
        with suppress(OSError):
            file.unlink()


def _refuse_held(file: Path) -> None:
    """Raises ValueError where who made this claim may live."""
    try:
        process = files.record(file, dict[str, Any], "a claim")
        status = status_of({"status": RUNNING, "process": process}, file)
    except ValueError:
        # It is just being written, or given back; or the machine stopped at that moment.
        with suppress(OSError):
            if time.time() - file.stat().st_mtime < JUST:
                raise ValueError(f"{file.parent} is just being opened by another process: try again") from None
        return
    refuse_written(file.parent, status, process)


@contextmanager
def claimed_new(path: Path, what: str = "something") -> Generator[None]:
    """The same of a folder that is made, and holds nothing.  Raises ValueError where it holds something, too.

    `what`: what that would be, in that sentence.  A folder that was made here, and in which nothing begins, is removed.
    """
    new = not os.path.lexists(path)
    files.new_folder(path, what)
    try:
        with claimed(path):
            # Somebody may have begun there since.
            files.new_folder(path, what)
            yield
    except BaseException:
        if new:
            with suppress(OSError):
                # Only where it is empty.
                path.rmdir()
        raise
