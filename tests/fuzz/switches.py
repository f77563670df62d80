"""Switches without end, in a run and in a conversation, while frames of them are made in other threads.

Some are part of the tests (test_jobs.py); for more: `make fuzz`.
"""

import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

from analysis import texts
from analysis.policies import POLICIES, parse
from analysis.runs.spec import Sampling, Spec
from app.frames.chat import ChatSender, ChatView
from app.frames.reading import ReadingSender
from app.jobs.base import Job
from app.jobs.chat import ChatJob
from app.jobs.reading import ReadingJob
from app.jobs.registry import Registry
from app.view import MODES, PAINTS, View

from .parsers import Row

SMALL = {"start": 2, "window": 9, "budget": 16, "recent": 5, "stride": 2, "sinks": 4, "steepness": 1, "history": 4}
ODD = ("window:window=16,knockout=values,heads=99.0", "streaming:sinks=4,window=12,first=bos", "duo:full=100")
Make = Callable[[random.Random], None]
LANES, WORDS = 3, "to be or not to be that is the question "


def policies() -> list[str]:
    """One of each kind, small, and some that this model cannot have."""
    small = []
    for name, kind in POLICIES.items():
        own = {f.name for f in kind.settings()}
        more = ",".join(f"{key}={value}" for key, value in SMALL.items() if key in own)
        small.append(f"{name}:{more}" if more else name)
    return [*small, *ODD]


@contextmanager
def looking(make: Make, seed: int) -> Iterator[tuple[list[str], list[int]]]:
    """Two threads that make frames all the while: what went wrong, and how many frames there were."""
    wrong, frames, done = [], [0], threading.Event()

    def look(own: int) -> None:
        chance = random.Random(own)
        while not done.is_set():
            try:
                make(chance)
                frames[0] += 1
            except Exception as e:
                wrong.append(f"{type(e).__name__}: {e}")

    threads = [threading.Thread(target=look, args=(seed + i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield wrong, frames
    finally:
        done.set()
        for thread in threads:
            thread.join()


def storm(
    job: Job, make: Callable[[random.Random], None], again: Callable[[], None], tries: int, seed: int
) -> list[str]:
    """So many switches of any lane to anything, with and without pins; what went wrong while frames were made."""
    chance, all_of, end = random.Random(seed), policies(), time.monotonic() + 60 + tries
    while job.status == "loading" and time.monotonic() < end:
        time.sleep(0.01)
    with looking(make, seed) as (wrong, frames):
        for _ in range(tries):
            job.renew_lease()
            job.switch(chance.randrange(LANES), parse(chance.choice(all_of)), chance.random() < 0.5)
            again()
            time.sleep(chance.choice((0, 0, 0.002, 0.01)))
        while (frames[0] < 20 or not job.requests_done) and not wrong and time.monotonic() < end:
            job.renew_lease()
            time.sleep(0.01)
    if not job.live:
        wrong.append(f"the job has {job.status}: {job.note}")
    return wrong if frames[0] else [*wrong, "no frame was made"]


def reading(registry: Registry, model: str, tries: int, seed: int) -> list[str]:
    """A run that reads a long text."""
    ids = np.random.default_rng(seed).integers(0, 97, 60_000).astype(np.int32)
    spec = Spec(model, "ids.npy", ("dense", "window:window=16", "streaming:sinks=4,window=12"), chunk=16, device="cpu")
    run = registry.start(partial(ReadingJob, spec, texts.Text("ids.npy", "ids", None, ids, "")))
    # Slow enough that it does not end.
    run.set_pace(2_000)

    def make(chance: random.Random) -> None:
        head = (chance.randrange(2), chance.randrange(4)) if chance.random() < 0.5 else None
        view = View(chance.choice(MODES), chance.choice(PAINTS), chance.randrange(LANES), chance.randrange(LANES), head)
        shown = run.snapshot
        ReadingSender().frame(run, view)
        for track, lane in zip(shown.tracks, shown.lanes, strict=bool(shown.lanes)):
            # One moment and not two: what was learned, and how far the lane had read by then.
            assert len(track.nll) == lane.position - 1 == len(track.sums) - 1 == len(track.compute)
            assert not track.spans or track.spans[-1][1] == lane.position
            assert 0 <= lane.sinks <= lane.position

    wrong = storm(run, make, lambda: None, tries, seed)
    wrong += [f"lane {lane} stands still: {e!r}" for lane, e in run.halted.items()]
    if not any(event["what"] == "switch" for event in run.run.events):
        wrong.append("no lane was switched")
    registry.free(run.id)
    return wrong


def talking(registry: Registry, model: str, tries: int, seed: int) -> list[str]:
    """A conversation that answers all the while."""
    spec = Spec(model, "typed", ("dense", "window:window=16", "streaming:sinks=4,window=12"), device="cpu",
                sampling=Sampling(max_new=40, temperature=1.0))  # fmt: skip
    talk = registry.start(partial(ChatJob, spec))

    def make(chance: random.Random) -> None:
        view = ChatView(
            chance.randrange(LANES), (1, chance.randrange(4)), (chance.randrange(LANES), chance.randrange(40))
        )
        shown = talk.snapshot
        ChatSender().frame(talk, view)
        for lane in shown:
            assert lane.start + len(lane.pieces) >= lane.read - 1 and lane.sinks <= lane.read
            assert len(lane.costs.positions) == len(lane.costs.bytes) == len(lane.costs.seconds)

    def again() -> None:
        if talk.idle:
            talk.say(WORDS)

    wrong = storm(talk, make, again, tries, seed)
    wrong += [f"{lane.policy} failed" for lane in talk.lanes if any(turn.why == "failed" for turn in lane.turns)]
    registry.free(talk.id)
    return wrong


def rows(model: str, seed: int, tries: int) -> Generator[Row]:
    """A row for each kind of job that can be switched."""
    registry = Registry()
    try:
        for name, kind in (("reading", reading), ("chat", talking)):
            yield Row(f"{name}, switched", tries, 0, kind(registry, model, tries, seed))
    finally:
        registry.close()
