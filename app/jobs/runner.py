"""What is live in this process: jobs, each with a thread of its own, found again by id, paused when nobody looks, freed
later.

Never calls Streamlit: a page asks for a job, tells it what is wanted, and reads what it has published.  A job's thread
is the only one that touches what it works with.
"""

import atexit
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from analysis import texts
from analysis.errors import log, told
from analysis.runs.folder import Spec

from .. import address
from .loading import Models

if TYPE_CHECKING:
    from analysis.models.loading import LanguageModel

MOST_LIVE = 4
UNSEEN_PAUSE = 10.0
"""Seconds without a look after which a job pauses."""
UNSEEN_FREE = 600.0
"""Seconds without a look after which its memory is freed."""
SWEEP = 1.0
"""Seconds between two looks at who is still looked at."""
HOLD = 1024
"""Tokens of which queries and keys are kept for maps."""
ENDED = ("finished", "stopped", "failed")


class Tab(Protocol):
    """From where somebody looks."""

    @property
    def open(self) -> bool:
        """Whether they can still look again."""


class Unwanted(Exception):
    """Raised in a job's own thread where it waits for something, and nobody wants it any more."""


class Job:
    """Something that works in a thread of its own while people look at it.

    What it does is said by the subclass: in `_steps`, piece by piece, or in `_run` where it obeys in a way of its own.
    `shown` is what there is to see of it: an immutable snapshot, made by `_snapshot` in the job's thread and replaced
    at once, so that a page never meets what is being changed.  `version` grows with each.  Whatever is raised in there
    ends the job with one sentence.
    """

    called: ClassVar[str] = "a job"
    """What it is, to somebody who did not start it."""

    def __init__(self, spec: Spec | None, models: Models) -> None:
        for written in spec.policies if spec is not None else ():
            # Whatever way it came here, no page lets a policy read files.
            address.policy(written)
        self.id = secrets.token_urlsafe(6)
        self.spec = spec
        self.status, self.note = "loading", ""
        self.model: LanguageModel | None = None
        self.read_as: texts.Tokenized | None = None
        """How what is read became tokens, as soon as that is known."""
        self.shown: Any = None
        self.version, self.published = 0, time.time()
        self._models, self._wanted = models, "running"
        self._wake, self._news = threading.Condition(), threading.Condition()
        self._seen = time.monotonic()
        self._tabs = set[Tab]()
        self._thread = threading.Thread(target=self._work, name=f"job {self.id}", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    @property
    def live(self) -> bool:
        return self.status not in ENDED

    @property
    def stopping(self) -> bool:
        """Whether it will end as soon as the step that it is in has."""
        return self.live and self._wanted in ("stopped", "freed")

    @property
    def about(self) -> str:
        """What it is and of what, in a few words."""
        return self.called if self.spec is None else f"{self.called} of {self.spec.text}"

    @property
    def unseen(self) -> float:
        """Seconds since somebody looked."""
        return time.monotonic() - self._seen

    @property
    def unwatched(self) -> bool:
        """Whether nobody has looked for so long that it should not go on."""
        return self.unseen > UNSEEN_PAUSE

    @property
    def abandoned(self) -> bool:
        """Whether nobody looks, and no page is open that did."""
        return self.unwatched and not any(tab.open for tab in list(self._tabs))

    def look(self, tab: Tab | None = None) -> None:
        """Somebody is looking: the lease is renewed."""
        self._seen = time.monotonic()
        if tab is not None:
            self._tabs.add(tab)

    def wish(self, what: str) -> None:
        """What the job should be; freed: then its thread ends."""
        with self._wake:
            self._wanted = what
            self._wake.notify_all()

    @property
    def working(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout=15)

    def _load(self) -> "LanguageModel":
        """The model that the spec names."""
        return self._models.get(self.spec, self._loading)

    def _loading(self, said: str) -> None:
        if self._wanted in ("stopped", "freed"):
            raise Unwanted
        if said != self.note:
            self.tell(said)

    def _tokens(self, text: texts.Text, model: "LanguageModel") -> NDArray[np.int32]:
        """Token ids of a text, as the spec has it read."""
        how = {"bos": self.spec.bos, "special": self.spec.special, "limit": self.spec.tokens}
        self.read_as = texts.tokenized(text, model.tokenizer, **how)
        return self.read_as.ids

    @property
    def begins(self) -> str:
        """What it begins with, in two words; empty before that is known."""
        return "" if self.read_as is None else texts.with_bos(self.read_as.begins)

    @property
    def said(self) -> str:
        """What there is to say of control tokens in the text, as a sentence."""
        return "" if self.read_as is None else self.read_as.note

    def tell(self, note: str) -> None:
        """Put one sentence on the page."""
        self.note = note
        self._publish()

    def wait(self, version: int, seconds: float) -> None:
        """Wait until there is something newer than `version` to see, at most so many seconds."""
        with self._news:
            self._news.wait_for(lambda: self.version != version, seconds)

    def _publish(self) -> None:
        if threading.current_thread() is self._thread:
            self.shown = self._snapshot()
        self._announce()

    def _announce(self) -> None:
        with self._news:
            self.version += 1
            self.published = time.time()
            self._news.notify_all()

    def _snapshot(self) -> Any:
        """What there is to see just now, in a form that never changes."""
        return None

    def _set(self, status: str, note: str = "") -> None:
        self.status = status
        self.tell(note)

    def _work(self) -> None:
        try:
            self._run()
            if self.live:
                self._end("stopped", "")
        except Unwanted:
            self._end("stopped", "")
        except BaseException as e:
            # Whatever it is: whoever looks would wait for ever, and nobody else would get the slot.
            log(e, f"job {self.id}")
            self._end("failed", told(e, f"job {self.id}"))

    def _end(self, status: str, note: str) -> None:
        """Be over, even where it cannot be shown any more what was."""
        try:
            self._set(status, note)
        except BaseException as e:
            log(e, f"job {self.id}")
        self.status, self.note = status, note
        self._announce()

    def _pause_while_unwatched(self) -> None:
        """Nobody looks: somebody else may need the processor."""
        while self.unwatched and self._wanted == "running":
            with self._wake:
                self._wake.wait(0.5)

    def _stand_still(self) -> None:
        """As long as that is wished for, or nobody looks."""
        self._pause_while_unwatched()
        while self._wanted == "paused":
            if self.status != "paused":
                self._set("paused", self.note)
            with self._wake:
                self._wake.wait(0.5)
        if self.status == "paused" and self._wanted == "running":
            self._set("running", self.note)

    def _run(self) -> None:
        """Work step by step, and between two of them obey."""
        with closing(self._steps()) as steps:
            for _ in steps:
                self._publish()
                self._stand_still()
                if self._wanted != "running":
                    self._set("stopped", self.note)
                    return
        # What was said of it is still true.
        self._set("finished", self.note)

    def _steps(self) -> Iterator[None]:
        """The work, yielding after each piece of it.  What is to be tidied up when it is stopped, a `finally` does."""
        raise NotImplementedError


@dataclass(frozen=True)
class Holder:
    """Who holds a slot: a job, what it is, and for how many seconds nobody has looked at it."""

    id: str
    about: str
    unseen: float
    unwatched: bool

    @classmethod
    def of(cls, job: Job) -> "Holder":
        return cls(job.id, job.about, job.unseen, job.unwatched)

    def __str__(self) -> str:
        since = f"{self.unseen:.0f} s" if self.unseen < 90 else f"{self.unseen / 60:.0f} min"
        looked = f"nobody has looked for {since}" if self.unwatched else "somebody looks"
        return f"{self.about} ({looked})"


class Full(ValueError):
    """All slots are held."""

    def __init__(self, holders: list[Holder]) -> None:
        self.holders = holders
        unwatched = any(h.unwatched for h in holders)
        advice = "take over one where nobody looks" if unwatched else "stop one of them, or close its tab"
        held = ", ".join(map(str, holders))
        super().__init__(f"{len(holders)} runs are live already: {held}; {advice}, and press Start again")


class Registry:
    """All jobs of this process."""

    def __init__(self) -> None:
        self._runs: dict[str, Job] = {}
        self._ending: list[Job] = []
        """Freed, and perhaps still in the middle of a step."""
        self._lock = threading.Lock()
        self._models = Models()
        self._closed = threading.Event()
        self._sweeper: threading.Thread | None = None

    def start(self, make: Callable[[Models], Job], instead: str = "") -> Job:
        """Begin a job; the one that it is `instead` of is freed when it has begun.

        Raises Full where all slots are held, and none by a job that is abandoned.
        """
        with self._lock:
            self._sweep()
            if len(holding := [j for j in self._holding() if j.id != instead]) >= MOST_LIVE:
                abandoned = [j for j in holding if j.abandoned]
                if not abandoned:
                    raise Full([Holder.of(j) for j in holding])
            job = make(self._models)
            job.begin()
            self._runs[job.id] = job
            if instead in self._runs:
                self._free(self._runs[instead])
            elif len(holding) >= MOST_LIVE:
                self._free(max(abandoned, key=lambda j: j.unseen))
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._tend, name="sweeper", daemon=True)
                self._sweeper.start()
            return job

    def model(self, spec: Spec, progress: Callable[[str], None]) -> "LanguageModel":
        """A model for a page that asks it something at once.  Raises ValueError with what to do."""
        return self._models.get(spec, progress)

    def models(self) -> set[str]:
        """The names of models that jobs in memory were begun with."""
        with self._lock:
            return {job.spec.model for job in self._runs.values() if job.spec is not None}

    def free(self, job_id: str) -> None:
        """End a job and forget it."""
        with self._lock:
            if job_id in self._runs:
                self._free(self._runs[job_id])

    def take_over(self, job_id: str) -> bool:
        """Free the slot of a job at which nobody looks; whether it was: somebody may look again."""
        with self._lock:
            if (job := self._runs.get(job_id)) is None or not job.unwatched:
                return job is None
            self._free(job)
            return True

    def holders(self) -> list["Holder"]:
        """Who holds a slot."""
        with self._lock:
            return [Holder.of(job) for job in self._holding()]

    def get(self, job_id: str | None) -> Job | None:
        with self._lock:
            self._sweep()
            return self._runs.get(job_id or "")

    def _holding(self) -> list[Job]:
        return [j for j in self._runs.values() if j.live]

    def _tend(self) -> None:
        """Whether or not anybody asks: what nobody looks at is freed, and what has ended is forgotten."""
        while not self._closed.wait(SWEEP):
            with self._lock:
                self._sweep()

    def _sweep(self) -> None:
        for job in list(self._runs.values()):
            if job.unseen > UNSEEN_FREE:
                self._free(job)
        self._ending = [j for j in self._ending if j.working]

    def _free(self, job: Job) -> None:
        job.wish("freed")
        del self._runs[job.id]
        self._ending.append(job)

    def close(self) -> None:
        """End all jobs and wait for their threads: a process must not end under a thread that multiplies matrices."""
        self._closed.set()
        with self._lock:
            for job in list(self._runs.values()):
                self._free(job)
            ending = list(self._ending)
        for job in ending:
            job.join()
        self._models.close()


REGISTRY = Registry()
atexit.register(REGISTRY.close)
