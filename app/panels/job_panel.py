"""A job in front of a person: its buttons, its progress, and what keeps it from beginning.

All pages, panels and chapters that start a job use this one class.  Which job it is stands in the session of the tab.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

import streamlit as st

from analysis.errors import sentence

from .. import recordings
from ..controls import problem
from ..feed import paced
from ..jobs.base import Job
from ..jobs.cells import CellsSnapshot
from ..jobs.loading import Models
from ..jobs.registry import REGISTRY
from ..plain import plain
from . import slots, steering

LOST = (
    "What that address names is no longer in memory and not in the library, or belongs to another page: begin again, "
    "or find it on the page Runs, which imports its .zip, too."
)


class Found(Protocol):
    """What is known of a result."""

    @property
    def about(self) -> str:
        """What was done, in a few words."""
        ...

    @classmethod
    def of_job(cls, run: Any, /) -> Self:
        """What a job has found so far."""
        ...

    @classmethod
    def of_result(cls, kept: recordings.Result, /) -> Self:
        """What the library keeps.  Raises ValueError where it is damaged."""
        ...


Known = TypeVar("Known", bound=Found)
Kind = TypeVar("Kind", bound=Job)
Maker = Callable[[Models], Kind]
"""Makes a job that was not begun yet."""
SENT = 0.05
"""Seconds after which what a page drew has been sent to the browser: several times as long as Streamlit waits."""


@dataclass(frozen=True)
class JobPanel(Generic[Kind]):
    """The place of one job on a page.

    `name`: of the place, unlike all others; `kind`: what a job must be to stand there; `page`: whose problems it says,
    where several places of one page share them; `keeps`: of what kind its results are in the library.
    """

    name: str
    kind: type[Kind]
    page: str = ""
    keeps: str = ""

    @property
    def run_key(self) -> str:
        """Where the session keeps the id of the job."""
        return f"{self.name}_run"

    @property
    def problem_key(self) -> str:
        """Where the session keeps what is wrong."""
        return f"{self.page or self.name}_problem"

    @property
    def job(self) -> Kind | None:
        """The job that stands here and is still in memory."""
        return REGISTRY.find(st.session_state.get(self.run_key), self.kind)

    @property
    def id(self) -> str:
        """The id of the job that was put here, whether or not it is still in memory; empty before one was."""
        return st.session_state.get(self.run_key, "")

    @property
    def kept(self) -> recordings.Result | None:
        """What the library keeps of the job that was put here, or of an earlier one of that name."""
        return recordings.result(self.id, self.keeps) if self.id else None

    def find(self, name: str | None) -> Kind | recordings.Result | None:
        """What a name is of: a job in memory that can stand here, or what the library keeps of one; None where neither
        has it."""
        return REGISTRY.find(name, self.kind) or recordings.result(name, self.keeps)

    @property
    def problem(self) -> str:
        """What keeps a job from beginning, as a sentence; empty where nothing does."""
        return st.session_state.get(self.problem_key, "")

    def say(self, wrong: Exception | str) -> None:
        """Keep a problem to be shown."""
        st.session_state[self.problem_key] = sentence(wrong) if isinstance(wrong, Exception) else wrong

    def put(self, job_id: str) -> None:
        """Let a job stand here that was begun elsewhere; an empty id: none."""
        st.session_state[self.run_key] = job_id

    @property
    def busy(self) -> bool:
        """Whether there will be something new without a press."""
        return (job := self.job) is not None and job.live

    def pace(self, every: float) -> float | None:
        """Seconds from one drawing of the page to the next: `every`, or more where many watch the job that stands here.
        None where there will be nothing new without a press."""
        return paced(self.job, every) if self.busy else None

    def begin(
        self, prepare: Callable[[], Maker[Kind]], again: Callable[[], None], *, keep: bool = False
    ) -> Kind | None:
        """Begin a job; the one that stood here ends, unless it is to be kept.  None, and a problem, where it cannot be.

        `prepare`: reads what is set, and raises ValueError where it does not go together; `again`: what a person does
        to begin once more, for the offer of a slot.
        """
        # A run that another page steers goes on without this one.
        old = "" if keep or not self.steers else self.id
        try:
            job = slots.start(prepare(), again, old)
        except ValueError as e:
            self.say(e)
            return None
        self.say("")
        self.put(job.id)
        return job

    def stop(self) -> None:
        """Ask the job to stop, if this page steers it; what it has found is kept."""
        if (job := self.steered) is not None:
            job.request("stopped")

    @property
    def steers(self) -> bool:
        """Whether this page may tell the job that stands here what to do."""
        return self.steered is not None

    @property
    def steered(self) -> Kind | None:
        """The job that stands here, if this page may tell it what to do."""
        job = self.job
        return job if job is not None and job.steer(slots.this_page()) else None

    def gives_way(self, find: Callable[[], object]) -> bool:
        """Whether the job failed that was to go on with a run of the library, before it began: then it is freed, why
        is said, and what `find` finds of the run stands here again."""
        job = self.job
        if job is None or job.status != "failed" or job.begun or find() is None:
            return False
        self.say(job.note)
        REGISTRY.free(job.id)
        return True

    def end(self) -> None:
        """Free the job, if this page steers it: it is no longer needed."""
        if self.steers:
            REGISTRY.free(self.id)
        self.put("")

    @property
    def stopped(self) -> recordings.Result | None:
        """The same, where nobody computes what is missing of it."""
        kept = None if self.busy else self.kept
        return kept if kept is not None and kept.goes_on else None

    def resume(self, make: Callable[[recordings.Result], Maker[Kind]]) -> None:
        """Compute what is missing of what stopped here; `make`: the job for that, and raises ValueError where it cannot
        be."""

        def prepared() -> Maker[Kind]:
            """The job that completes the run, made when it begins: the run may have gone by then."""
            if (kept := self.stopped) is None:
                raise ValueError("that run is no longer in the library, or goes on: start again")
            return make(kept)

        self.begin(prepared, partial(self.resume, make))

    def found(self, kind: type[Known]) -> Known | None:
        """What is known of the result that stands here.  None where there is none, or it is damaged: that is said."""
        self.gives_way(lambda: self.kept)
        try:
            if (job := self.job) is not None:
                return kind.of_job(job)
            return kind.of_result(kept) if (kept := self.kept) is not None else None
        except ValueError as e:
            self.say(e)
            return None

    def head(
        self, kind: type[Known], label: str, icon: str, start: Callable[[], None], resume: Callable[[], None]
    ) -> Known | None:
        """The buttons, what is known of the result in a few words, and what is wrong; returns that as `found` does."""
        found = self.found(kind)
        with st.container(horizontal=True, vertical_alignment="center"):
            self.buttons(label if found is None else f"{label} again", icon, start, resume)
            if found is not None:
                st.caption(plain(found.about))
        self.watch()
        return found

    def buttons(
        self, label: str, icon: str, start: Callable[[], None], resume: Callable[[], None] | None = None
    ) -> None:
        """Start, stop, and resume, where something stopped here that can be completed."""
        carry_out()
        begin = partial(press, partial(self.unless_busy, start))
        st.button(label, type="primary", icon=f":material/{icon}:", on_click=begin, disabled=self.busy)
        if resume is not None and self.stopped is not None:
            go_on = partial(press, partial(self.unless_busy, resume))
            st.button("Resume", icon=":material/resume:", on_click=go_on, help="Compute only what is missing")
        job = self.job
        mine = job is not None and job.steering(slots.this_page()).mine
        st.button("Stop", icon=":material/stop:", on_click=self.stop, disabled=not (self.busy and mine))

    def unless_busy(self, start: Callable[[], None]) -> None:
        """Begin, unless a press just before has: two in a row are one, and leave one run in the library."""
        if not self.busy:
            start()

    def watch(self) -> Kind | None:
        """Say what is wrong, and renew the lease of the job, if there is one."""
        problem(self.problem)
        if (job := self.job) is not None:
            slots.renew_lease(job)
            steering.say(job)
        return job

    def progress_of_cells(self, found: CellsSnapshot) -> None:
        """How far a job is that computes cells, or why it ended."""
        loading = self.job is not None and self.job.status == "loading"
        cells = f"{found.done} of {found.total} cells"
        words = "Loading the model" if loading else cells + time_left(found.seconds_left)
        self.progress(found.share, words, stopped_after(found.done, cells, "They are kept."))

    def progress(self, share: float, words: str, stopped: str = "") -> None:
        """How far the job is, or why it ended; `stopped`: what to say where somebody stopped it."""
        job = self.job
        if job is None:
            return
        if job.live:
            st.progress(min(1.0, share), "Stopping …" if job.stopping else plain(job.note) or words)
        elif job.status == "failed":
            problem(job.note)
        elif job.status == "stopped" and stopped:
            st.info(stopped)
        if job.kept.problem:
            st.caption(plain(job.kept.problem))


def press(action: Callable[[], None]) -> None:
    """Have something done that a person pressed, once the page has read what is set: where somebody writes and presses
    at once, Streamlit calls back for the press before the page has read what was written."""
    st.session_state.setdefault("pressed", []).append(action)


def carry_out() -> None:
    """Do what was pressed, where what it needs has been read, and draw the page anew: all that was drawn before knows
    nothing of it."""
    if actions := st.session_state.pop("pressed", ()):
        for action in actions:
            action()
        st.rerun()


def time_left(seconds: float | None) -> str:
    """An estimate as words that follow others; none where it is not known."""
    if not seconds:
        return ""
    return f", about {seconds:.0f} s left" if seconds < 90 else f", about {seconds / 60:.0f} min left"


def stopped_after(done: int, words: str, kept: str) -> str:
    """What to say where somebody stopped a job that had done so much, in words; `kept`: what is said of that."""
    return f"Stopped after {words}. {kept}" if done else "Stopped before anything was found."


def redraw(draw: Callable[[], None], pace: Callable[[], float | None]) -> None:
    """Draw a part of the page, and again after as many seconds as `pace` says; None: not until the page runs again.

    Where that changes, or a slot is offered, the whole page runs again and sets the pace anew.
    """
    began = pace()

    def part() -> None:
        """Draw this part alone, or have the whole page run again where it must."""
        draw()
        if pace() != began or slots.news():
            st.rerun()

    st.fragment(part, run_every=began)()
    # Streamlit forgets what a run of the whole page drew of a part and has not sent, where the part is to run again.
    # Then the browser takes the part off the page, with an open form and whatever is pressed meanwhile.
    time.sleep(SENT)
