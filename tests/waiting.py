"""Wait for a job that works behind the tests, and see what a kill would leave of it."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path


def until(run, condition: Callable[[], object], seconds: float = 300) -> None:
    """Look at a job until something is true that comes for sure; how soon is the machine's, and no test's, to say.

    A job that failed is waited for no longer.
    """
    end = time.monotonic() + seconds
    while True:
        failed = run.status == "failed"
        if condition():
            return
        assert not failed and time.monotonic() < end, f"{run.status}: {run.note}"
        run.renew_lease()
        time.sleep(0.02)


def told(job, seconds: float = 0.3) -> int:
    """The job's version, once it has not grown for so long: a job shows what is new just before it says that something
    is, so a test that waits for a state can be a moment ahead of the version."""
    version, since = job.version, time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.02)
        if job.version != version:
            version, since = job.version, time.monotonic()
    return version


def copied(live: Path, to: Path) -> Path:
    """A copy of a folder as a kill leaves it; it may be written into meanwhile, so files of the list can be gone."""
    while True:
        try:
            return shutil.copytree(live, to)
        except shutil.Error:
            shutil.rmtree(to)
