"""The jobs of this process: started, found again by id, and freed when nobody watches them.

Never calls Streamlit.
"""

import atexit
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from analysis.engine import allocator
from analysis.runs.spec import Spec

from .base import Job, TextJob
from .loading import Models

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel
    from analysis.texts import Text

Kind = TypeVar("Kind", bound=Job)
MAX_LIVE = 4
"""Jobs that may be live at a time."""
FREE_AFTER = 600.0
"""Seconds without a renewed lease after which a job's memory is freed."""
SWEEP_EVERY = 1.0
"""Seconds between two searches for leases that have run out."""


@dataclass(frozen=True)
class Holder:
    """A job that holds a slot: what it does, and for how many seconds nobody has watched it."""

    id: str
    about: str
    seconds_unwatched: float
    unwatched: bool

    @classmethod
    def of(cls, job: Job) -> "Holder":
        """The holder that a job is just now."""
        return cls(job.id, job.about, job.seconds_unwatched, job.unwatched)

    def __str__(self) -> str:
        seconds = self.seconds_unwatched
        since = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        watched = f"unwatched for {since}" if self.unwatched else "watched"
        return f"{self.about} ({watched})"


class Full(ValueError):
    """All slots are held."""

    def __init__(self, holders: list[Holder]) -> None:
        self.holders = holders
        unwatched = any(h.unwatched for h in holders)
        advice = "take over one that nobody watches" if unwatched else "stop one of them, or close its tab"
        held = ", ".join(map(str, holders))
        super().__init__(f"{len(holders)} runs are live already: {held}; {advice}, and press Start again")


class Registry:
    """All jobs of this process, and the models that they share."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._ending: list[Job] = []
        """Freed, and perhaps still in the middle of a step."""
        self._lock = threading.Lock()
        self._models = Models()
        self._closed = threading.Event()
        self._sweeper: threading.Thread | None = None

    def start(self, make: Callable[[Models], Kind], instead: str = "") -> Kind:
        """Begin a job; the one whose id is `instead` is freed when the new one has begun.

        Raises Full where all slots are held, and none by a job that is abandoned.
        """
        with self._lock:
            self._sweep()
            if len(holding := [j for j in self._holding() if j.id != instead]) >= MAX_LIVE:
                abandoned = [j for j in holding if j.abandoned]
                if not abandoned:
                    raise Full([Holder.of(j) for j in holding])
            job = make(self._models)
            if (same := self._jobs.get(job.id)) is not None and same.live:
                raise ValueError("this run goes on already: reload the page to see it")
            job.begin()
            if len(holding) >= MAX_LIVE:
                self._free(max(abandoned, key=lambda j: j.seconds_unwatched))
            # It may go on with a run that has ended, under the same id.
            for replaced in {instead, job.id} & self._jobs.keys():
                self._free(self._jobs[replaced])
            self._jobs[job.id] = job
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._sweep_often, name="sweeper", daemon=True)
                self._sweeper.start()
            return job

    def model(self, spec: Spec, progress: Callable[[str], None]) -> "LanguageModel":
        """The model of a spec, for a page that needs it at once.  Raises ValueError with what to do."""
        return self._models.get(spec, progress)

    def models(self) -> set[str]:
        """Names of the models that jobs in memory use: they were loaded."""
        with self._lock:
            return {job.spec.model for job in self._jobs.values() if isinstance(job, TextJob) and job.facts is not None}

    def text(self, sha256: str) -> "Text | None":
        """The text of a job in memory whose SHA-256 begins so; None where there is none."""
        with self._lock:
            found = (getattr(job, "text", None) for job in self._jobs.values())
            return next((text for text in found if text is not None and text.sha256.startswith(sha256)), None)

    def free(self, job_id: str) -> None:
        """End a job and forget it."""
        with self._lock:
            if job_id in self._jobs:
                self._free(self._jobs[job_id])

    def take_over(self, job_id: str) -> bool:
        """Free the slot of a job that nobody watches; False where somebody watches it again."""
        with self._lock:
            if (job := self._jobs.get(job_id)) is None or not job.unwatched:
                return job is None
            self._free(job)
            return True

    def holders(self) -> list[Holder]:
        """The jobs that hold a slot."""
        with self._lock:
            return [Holder.of(job) for job in self._holding()]

    def get(self, job_id: str | None) -> Job | None:
        """The job of an id; None where there is none."""
        with self._lock:
            self._sweep()
            return self._jobs.get(job_id or "")

    def find(self, job_id: str | None, kind: type[Kind]) -> Kind | None:
        """The job of an id; None where there is none, or one of another kind."""
        job = self.get(job_id)
        return job if isinstance(job, kind) else None

    def close(self) -> None:
        """End all jobs and wait for their threads: a process must not end under a thread that multiplies matrices."""
        self._closed.set()
        with self._lock:
            for job in list(self._jobs.values()):
                self._free(job)
            ending = list(self._ending)
        for job in ending:
            job.join()
        if self._sweeper is not None:
            self._sweeper.join(timeout=15)
        self._models.close()

    def _holding(self) -> list[Job]:
        return [j for j in self._jobs.values() if j.live]

    def _sweep_often(self) -> None:
        """Sweep again and again, whether or not anybody asks for a job."""
        freeing = False
        while not self._closed.wait(SWEEP_EVERY):
            with self._lock:
                freeing |= self._sweep()
                # Whoever comes back after so long waits for the model once more.
                freeing |= not self._jobs and self._models.forget(FREE_AFTER)
                ended = not self._ending
            if freeing and ended:
                # What lanes and models hold comes back now, and not when Python next looks through all that is old.
                gc.collect()
                allocator.give_back()
                freeing = False

    def _sweep(self) -> bool:
        """Free the jobs that nobody watches, and forget those that have ended; whether any was freed."""
        unwatched = [job for job in self._jobs.values() if job.seconds_unwatched > FREE_AFTER]
        for job in unwatched:
            self._free(job)
        self._ending = [j for j in self._ending if j.working]
        return bool(unwatched)

    def _free(self, job: Job) -> None:
        job.request("freed")
        del self._jobs[job.id]
        self._ending.append(job)


REGISTRY = Registry()
atexit.register(REGISTRY.close)
