"""Live runs that are started and stopped again and again: resident memory, and threads that are left."""

import gc
import os
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import psutil

from .report import head, line, said
from .sizes import size

TIMES = size(200, 12)
TENTH = 10
"""The run after which memory is compared: what is made once is there by then."""


def main() -> None:
    head(f"Live runs, {TIMES} of them started and stopped")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SINKSCOPE_RUNS"] = f"{folder}/runs"
        lives(Path(folder))


def lives(folder: Path) -> None:
    """Start and stop runs of a tiny model one after the other, each kept in a library."""
    from app.jobs.registry import Registry
    from tests.fuzz.jobs import kinds, model_with_words

    registry, process = Registry(), psutil.Process()
    reading = kinds(model_with_words(folder), folder)["reading"]
    threads, resident = set[threading.Thread](), []
    for i in range(TIMES):
        job = registry.start(partial(reading.func, *reading.args))
        # Some are read to their end, others are stopped in the middle.
        while job.live and (i % 2 or not job.snapshot.seconds):
            job.renew_lease()
            time.sleep(0.05)
        registry.free(job.id)
        job.join()
        del job
        gc.collect()
        resident.append(process.memory_info().rss)
        if i == TENTH - 1:
            # Of libraries, and the one that frees what nobody watches.
            threads = set(threading.enumerate())
    registry.close()
    left = [t.name for t in threading.enumerate() if t not in threads and t.is_alive()]
    grown = resident[-1] / resident[TENTH - 1]
    said(
        "resident after the tenth and after the last", f"{resident[TENTH - 1] / 1e6:,.1f}, {resident[-1] / 1e6:,.1f} MB"
    )
    line("the last, times the tenth", grown, "at most 1.05", good=grown <= 1.05)
    line("threads left", len(left), f"none {' '.join(left)}", good=not left, digits=0)
