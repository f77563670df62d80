"""How work that writes a folder ended: what the folder says, and what has become of the process that said it."""

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ..files import UNTOUCHED

RUNNING = "running"
CAPTURING = ".capturing"
"""The file that says who captures a stretch into a folder, and what was asked for, until that has ended."""
COMPUTING = ".computing-"
"""What the files are called that say, in a folder of runs that has no run.json, who computes what it lacks, or how that
ended."""
CLAIM = ".claim-"
"""What the files are called by which a folder is held for a moment (claim.py)."""
LABEL, PREVIEW = "label.json", "summary.json"
"""Files that the library puts into a folder: no news of the work."""
TRIES = 3
"""How often a folder is read or packed anew whose work ended, or went on, meanwhile."""
STOPPED = ("interrupted", "failed", "killed")
"""What a folder says of work that can go on."""


def here() -> dict[str, Any]:
    """This process, as a folder says who writes it."""
    began = {"began": psutil.Process().create_time(), "boot": _boot(), "booted": psutil.boot_time()}
    return {"pid": os.getpid(), "host": platform.node(), **began}


def _boot() -> str:
    """What tells this start of the machine from all others; empty where the system does not say it."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def status_of(about: Mapping[str, Any], path: Path) -> str:
    """The status that a folder really has, which says this of itself; empty where it says none.  `path`: the folder, or
    the one file of it that says this.

    Killed, where it says running and its process, on this machine, is not any more; where that was on another machine,
    or on one that had another name (a container has a new one each time), once nothing has been written for a day.
    """
    status, process = about.get("status"), about.get("process")
    if status != RUNNING:
        return status if isinstance(status, str) else ""
    if not isinstance(process, Mapping) or process.get("host") != platform.node():
        return "killed" if time.time() - _written(path) > UNTOUCHED else RUNNING
    pid, began, boot = (process.get(name) for name in ("pid", "began", "boot"))
    try:
        # Where the clock was set since, all moments of the past are others now.
        later = psutil.boot_time() - process.get("booted") if boot and boot == _boot() else 0
        # Numbers of processes are given again: the one that has it now may be another.
        alive = abs(psutil.Process(pid).create_time() - later - began) < 2
    except (psutil.Error, TypeError, ValueError, OverflowError):
        alive = False
    return RUNNING if alive else "killed"


def _written(path: Path) -> float:
    """When a file, or one of the work in a folder, was last written, as seconds since 1970; now, where there is none.

    Who claims a folder, to look whether somebody still writes there, has not written the work.
    """
    found = []
    with suppress(OSError):
        if path.is_file():
            found.append(path.stat().st_mtime)
    for folder, _, names in os.walk(path):
        for name in set(names) - {LABEL, PREVIEW}:
            if name.startswith(CLAIM):
                continue
            with suppress(OSError):
                found.append(os.stat(os.path.join(folder, name), follow_symlinks=False).st_mtime)
    return max(found, default=time.time())
