"""Exceptions of any kind at any step of any job: the n-th call of our own code in a job's thread raises one.

A few dozen are part of the tests (test_jobs.py); for more: `make fuzz`.
"""

import errno
import logging
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from analysis import texts
from analysis.experiments.recall.asked import Asked
from analysis.experiments.verdict import Plan
from analysis.lab.recipe import Recipe
from analysis.runs.spec import Sampling, Spec
from app.frames.chat import ChatSender, ChatView
from app.frames.reading import ReadingSender
from app.jobs.ablation import AblationJob
from app.jobs.base import Job
from app.jobs.capture import CaptureJob
from app.jobs.chat import ChatJob
from app.jobs.costs import CostsJob
from app.jobs.measures import MeasuresJob
from app.jobs.reading import ReadingJob
from app.jobs.recall import RecallJob
from app.jobs.registry import Registry
from app.jobs.training import TrainingJob
from app.jobs.verdict import VerdictJob
from app.jobs.whereabouts import WhereaboutsJob
from app.view import View

from .parsers import Row

OURS = tuple(f"{Path(__file__).parents[2] / package}/" for package in ("analysis", "app"))
TINY = {"width": 16, "vocabulary": 24, "length": 24, "batch": 8, "steps": 60}
LEFT_ALONE = "_work", "_load", "<genexpr>"
"""Functions that are a thread's own, before there is anything that could catch; and what Python calls to end it."""
WORDS = "to be or not to be that is the question " * 12


class Panic(BaseException):
    """As the tokenizers' own panics are: no Exception at all."""


class Silent(Exception):
    """Has nothing to say."""

    def __str__(self) -> str:
        return ""


THROWN: list[Callable[[], BaseException]] = [
    lambda: KeyError("parts"),
    lambda: AttributeError("'LayerCache' object has no attribute 'parts'"),
    lambda: IndexError("index out of range in self"),
    lambda: ZeroDivisionError("division by zero"),
    AssertionError,
    lambda: TypeError("unhashable type: 'list'"),
    lambda: NotImplementedError("no such op"),
    lambda: RecursionError("too deep"),
    StopIteration,
    GeneratorExit,
    lambda: SystemExit(3),
    KeyboardInterrupt,
    lambda: Panic("slice index starts at 3"),
    Silent,
    lambda: OSError(errno.ENOSPC, "No space left on device", "/full/queries.npy"),
    lambda: PermissionError(errno.EACCES, "Permission denied", "/locked"),
    MemoryError,
    lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    lambda: RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: ValueError("the text is too short: take another"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    lambda: Exception("a\nlong\n\nstory " * 500),
]


def kinds(model: str, folder: Path) -> dict[str, Callable[..., Job]]:
    """Every kind of job, small; `model`: a folder with a tokenizer, `folder`: where a capture may be kept."""
    text = texts.from_bytes(WORDS.encode(), "words.txt")
    spec = Spec(model, "words.txt", ("dense", "window:window=16"), 60, chunk=16, device="cpu")
    one = Spec(model, "words.txt", ("streaming:sinks=4,window=12",), 60, chunk=16, device="cpu")
    short = Spec(model, "words.txt", ("dense",), 20, device="cpu")
    asked = Asked("passkey", (600,), (5.0, 95.0), 1, 0)
    said = Spec(model, "typed", spec.policies, device="cpu", sampling=Sampling(max_new=3))
    return {
        "reading": partial(ReadingJob, spec, text),
        "chat": partial(ChatJob, said, script=["to be", "or not to be"]),
        "capture": partial(CaptureJob, one, text, str(folder / "stretch")),
        "measures": partial(MeasuresJob, short, text, 3, 2),
        "knock-outs": partial(AblationJob, one, text, "values", 0),
        "costs": partial(CostsJob, spec, text),
        "recall": partial(RecallJob, spec, asked),
        "whereabouts": partial(WhereaboutsJob, asked.cells(one)[0]),
        "verdict": partial(VerdictJob, Plan(short, ("window",), (16,), ("kl",), ("hamlet",), (), ())),
        "training": partial(TrainingJob, [Recipe("softmax", **TINY), Recipe("relu", **TINY)]),
    }


@contextmanager
def throwing(e: BaseException | None, at: int, counted: Counter):
    """Raise `e` in the `at`-th call of our own code in threads that are begun in here, and count these calls."""

    def look(frame, event, _):
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(OURS) or code.co_name in LEFT_ALONE:
            return
        counted["calls"] += 1
        if counted["calls"] == at and e is not None:
            counted["thrown"] += 1
            raise e

    threading.setprofile(look)
    try:
        yield
    finally:
        threading.setprofile(None)


def settled(job: Job) -> bool:
    """Whether it has ended, or waits for somebody: for words, or for a lane that ran out of memory to be switched."""
    if isinstance(job, ChatJob) and job.status in ("waiting", "paused"):
        return bool(job.snapshot) and not job.playing and not job.busy
    lanes = job.snapshot.lanes if isinstance(job, ReadingJob) else ()
    still = all(lane.done or i in job.halted for i, lane in enumerate(lanes))
    return not job.live or ("out of memory" in job.note and still)


def once(registry: Registry, make: Callable[..., Job], e: BaseException | None, at: int) -> tuple[Job, Counter, list]:
    """One job in which something is raised; the job, counts of calls, and what the log then holds."""
    counted, lines = Counter(), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("sinkscope")
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        with throwing(e, at, counted):
            job = registry.start(make)
            end = time.monotonic() + 60
            while not settled(job):
                assert time.monotonic() < end, f"waits for ever: {job.status}, {job.note!r}"
                job.renew_lease()
                time.sleep(0.005)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
    return job, counted, lines


def check(registry: Registry, job: Job, counted: Counter, lines: list[str]) -> str:
    """Raises AssertionError where a page would wait for ever, say nothing, or say more than a sentence."""
    if job.status == "failed":
        assert counted["thrown"], job.note
        assert job.note, "nothing is said"
        assert any(job.id in line for line in lines), (job.note, lines)
        assert job.id not in {holder.id for holder in registry.holders()}
    assert len(job.note) < 900 and "\n" not in job.note and "Traceback" not in job.note, job.note
    assert not job.note or job.note[-1] in ".!?…" or job.status in ("loading", "stopped"), job.note
    if isinstance(job, ReadingJob):
        ReadingSender().frame(job, View())
        for track in job.snapshot.tracks:
            assert len(track.nll) <= len(track.sums) - 1 and not np.isnan(track.nll.view()).any()
    if isinstance(job, ChatJob):
        ChatSender().frame(job, ChatView())
    if isinstance(job, CaptureJob) and job.status == "failed":
        place = Path(job.folder)
        assert not place.exists() or (place / "stretch.json").exists(), list(place.iterdir())
    return job.status


def storm(model: str, name: str, tries: int, seed: int) -> tuple[Counter, list[str]]:
    """So many exceptions in a kind of job, at places and of types that a seed chooses: how the jobs ended, and what was
    wrong with how they did."""
    chance, ends, wrong = random.Random(seed), Counter(), []
    registry = Registry()
    try:
        with tempfile.TemporaryDirectory() as folder:
            job, counted, _ = once(registry, kinds(model, Path(folder))[name], None, 0)
        assert job.status in ("finished", "waiting"), (name, job.status, job.note)
        registry.free(job.id)
        for _ in range(tries):
            # Early calls are many steps of their own; the late ones are the same over and over.
            at = chance.choice((chance.randint(1, 60), chance.randint(1, counted["calls"])))
            e = chance.choice(THROWN)()
            try:
                with tempfile.TemporaryDirectory() as folder:
                    job, calls, lines = once(registry, kinds(model, Path(folder))[name], e, at)
                    ends[check(registry, job, calls, lines)] += 1
                registry.free(job.id)
            except Exception as bad:
                wrong.append(f"call {at}, {type(e).__name__}: {bad}")
    finally:
        registry.close()
    return ends, wrong


def rows(model: str, seed: int, tries: int) -> Generator[Row]:
    """A row for each kind of job."""
    for name in kinds(model, Path()):
        ends, wrong = storm(model, name, tries, seed)
        yield Row(f"{name}, thrown into", tries, ends["failed"], wrong)


def model_with_words(folder: Path) -> str:
    """A tiny model that has a tokenizer, in a folder."""
    from tests import tokenizers
    from tests.test_bos import tiny

    tiny().save_pretrained(folder)
    tokenizers.gemma_like().save_pretrained(folder)
    return str(folder)
