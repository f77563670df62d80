"""One GPU for each worker on a machine: a worker takes one that no other has, and then sees no other."""

import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

held: FileLock | None = None
"""Says that this process has a GPU; the system releases it when the process ends."""


def take_one() -> None:
    """Let this process see one GPU that no other worker has taken, where there are any, and nobody has chosen yet."""
    global held
    if held is not None or "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    for number in range(count()):
        lock = FileLock(Path(tempfile.gettempdir()) / f"sinkscope-gpu-{number}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        held, os.environ["CUDA_VISIBLE_DEVICES"] = lock, str(number)
        return


def count() -> int:
    """How many NVIDIA GPUs this machine has; asked without CUDA, which could not be told afterwards which to use."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
