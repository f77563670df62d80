"""How work that writes a folder ended: what the folder says, and what has become of the process that said it."""

import os
import platform
from collections.abc import Mapping
from typing import Any

import psutil

RUNNING = "running"
CAPTURING = ".capturing"
"""The file that says who captures a stretch into a folder, and what was asked for, until that has ended."""
STOPPED = ("interrupted", "failed", "killed")
"""What a folder says of work that can go on."""


def here() -> dict[str, Any]:
    """This process, as a folder says who writes it."""
    return {"pid": os.getpid(), "host": platform.node(), "began": psutil.Process().create_time()}


def status_of(about: Mapping[str, Any]) -> str:
    """The status that a folder has: killed, where it says running and its process, on this machine, is not any more.

    Empty where it says none.
    """
    status, process = about.get("status"), about.get("process")
    if status != RUNNING or not isinstance(process, Mapping) or process.get("host") != platform.node():
        return status if isinstance(status, str) else ""
    pid, began = process.get("pid"), process.get("began")
    try:
        # Numbers of processes are given again: the one that has it now may be another.
        alive = abs(psutil.Process(pid).create_time() - began) < 2
    except (psutil.Error, TypeError, ValueError, OverflowError):
        alive = False
    return RUNNING if alive else "killed"
