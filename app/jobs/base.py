"""The base of all jobs: work in a thread of its own that pages watch.

A page requests what a job should do, renews its lease, and reads the snapshot that it has published.  Only the job's
own thread touches what it works with.  Never calls Streamlit.
"""

import secrets
import threading
import time
from collections.abc import Callable, Generator, Hashable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from analysis import texts
from analysis.errors import LOG, error_message, log
from analysis.runs.facts import ModelFacts
from analysis.runs.spec import Spec

from .. import address
from .kept import Keeper
from .loading import Models

if TYPE_CHECKING:
    from analysis.figures.inputs import FigureInput
    from analysis.models.language_model import LanguageModel
    from analysis.runs.resume import StoppedRun

Made = TypeVar("Made")
PAUSE_AFTER = 10.0
"""Seconds without a renewed lease after which a job pauses."""
HISTORY = 1024
"""Newest tokens whose queries and keys are kept for maps."""
ENDED = {"finished": "finished", "stopped": "interrupted", "failed": "failed"}
"""Statuses of a job that is over, and what its folder says then."""


class Tab(Protocol):
    """A page from which somebody watches."""

    @property
    def open(self) -> bool:
        """Whether this page can still renew a lease."""
        ...


@dataclass(frozen=True)
class Steering:
    """Who may tell a job what to do, as one page that watches sees it."""

    mine: bool
    """Whether this page may."""
    owner: int
    """The number of the page that steers; 0: none that is still open."""
    viewer: int
    """The number of this page: pages are numbered as they come."""
    viewers: int
    """Pages that are open."""


class Unwanted(Exception):
    """Raised in a job's own thread when it should end while it waits for something."""


class Job:
    """Work in a thread of its own that people watch.

    A subclass says what is done: in `_steps`, piece by piece, or in `_run` where it obeys in a way of its own.
    `snapshot` is the state that pages see: immutable, made by `take_snapshot` in the job's thread, and replaced as a
    whole.  `version` grows with each.  Whatever the work raises ends the job with one sentence in `note`.
    """

    noun: ClassVar[str] = "a job"
    """What a job of this kind is called on a page that did not start it."""
    keeps: ClassVar[str] = ""
    """What the library calls its result, where a page shows that again as a result of that kind."""
    figures_need: ClassVar[str] = ""
    """What it has for figures, as they say what they need: a run, or a stretch; empty: nothing."""

    def __init__(self, models: Models, name: str = "") -> None:
        # Also the name of its folder in the library, where they stand in the order in which they began.
        self.id = name or f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
        self.status, self.note = "loading", ""
        self.begun = False
        """Whether it has ever been more than loading."""
        self.snapshot: Any = None
        self.version, self.published = 0, time.time()
        self.renewed = time.monotonic()
        """When the lease was last renewed."""
        self.kept: Keeper[Any] = Keeper(self.id)
        """What of the job lies in the library."""
        self._models, self._requested = models, "running"
        self._wake, self._announcing = threading.Condition(), threading.Lock()
        self._tabs, self._arrived = dict[Tab, int](), 0
        """Pages that watch, and their numbers."""
        self._owner: Tab | None = None
        self._watching, self._sharing = threading.Lock(), threading.Lock()
        self._shared: tuple[int, dict[Hashable, Any]] = 0, {}
        """What pages have made of a version."""
        self._thread = threading.Thread(target=self._work, name=f"job {self.id}", daemon=True)

    def figure_input(self) -> "FigureInput":
        """What figures are made of it with.  Raises ValueError where there is nothing yet, or it cannot be kept."""
        raise ValueError(f"no figures are made of {self.noun}: choose a run or a stretch")

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def live(self) -> bool:
        """Whether the job is not over."""
        return self.status not in ENDED

    @property
    def unwanted(self) -> bool:
        """Whether the job was asked to end."""
        return self._requested in ("stopped", "freed")

    @property
    def freed(self) -> bool:
        """Whether the job is no longer kept in memory for anybody."""
        return self._requested == "freed"

    @property
    def stopping(self) -> bool:
        """Whether the job ends after its present step."""
        return self.live and self.unwanted

    @property
    def about(self) -> str:
        """What the job does, in a few words."""
        return self.noun

    @property
    def seconds_unwatched(self) -> float:
        """Seconds since the lease was last renewed."""
        return time.monotonic() - self.renewed

    @property
    def unwatched(self) -> bool:
        """Whether the lease has run out, so that the job should pause."""
        return self.seconds_unwatched > PAUSE_AFTER

    @property
    def abandoned(self) -> bool:
        """Whether the lease has run out and every page that renewed it is closed."""
        with self._watching:
            return self.unwatched and not any(tab.open for tab in self._tabs)

    def renew_lease(self, tab: Tab | None = None) -> None:
        """Tell the job that somebody watches it, from this page."""
        self.renewed = time.monotonic()
        if tab is not None:
            with self._watching:
                self._number(tab)

    def steering(self, tab: Tab) -> Steering:
        """Who may tell the job what to do, as this page sees it."""
        with self._watching:
            number, owner = self._number(tab), self._owner
            steered = owner is not None and owner.open
            of_owner = self._tabs.get(owner, 0) if owner is not None and steered else 0
            return Steering(not steered or owner == tab, of_owner, number, self._watchers())

    @property
    def viewers(self) -> int:
        """Pages that watch the job and are open."""
        with self._watching:
            return self._watchers()

    def _watchers(self) -> int:
        return sum(tab.open for tab in self._tabs)

    def steer(self, tab: Tab) -> bool:
        """Whether this page may tell the job what to do: the one that began it, or took it over, and is open.

        Where that one is gone, the first that asks takes its place.
        """
        with self._watching:
            if self._owner is None or not self._owner.open:
                self._owner = tab
            return self._owner == tab

    def take_over(self, tab: Tab) -> None:
        """Let this page tell the job what to do, in place of the one that did."""
        with self._watching:
            self._owner = tab
            number = self._number(tab)
        LOG.info("job %s: page %d steers", self.id, number)

    def _number(self, tab: Tab) -> int:
        if tab not in self._tabs:
            # Pages that were closed are not kept: thirty people may come and go.
            self._tabs = {known: number for known, number in self._tabs.items() if known.open}
            self._arrived += 1
            self._tabs[tab] = self._arrived
        return self._tabs[tab]

    def request(self, status: str) -> None:
        """Ask for `running`, `paused`, `stopped`, or `freed`, which ends the thread."""
        with self._wake:
            self._requested = status
            self._wake.notify_all()

    def _request_pause(self) -> bool:
        """Pause by itself; False where something else has just been asked for, which then holds."""
        with self._wake:
            if self._requested != "running":
                return False
            self._requested = "paused"
            return True

    @property
    def working(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait until the thread has ended, at most 15 seconds."""
        self._thread.join(timeout=15)

    def tell(self, note: str) -> None:
        """Put one sentence on the page."""
        self.note = note
        self._publish()

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` makes of the present version, once for all pages that give the same key: what it depends on."""
        with self._sharing:
            if self._shared[0] != self.version:
                self._shared = self.version, {}
            made = self._shared[1]
            if key not in made:
                made[key] = make()
            return made[key]

    def take_snapshot(self) -> Any:
        """The present state in a form that never changes.  Called in the job's own thread."""
        return None

    def _publish(self) -> None:
        self._refresh()
        self._announce()

    def _refresh(self) -> None:
        if threading.current_thread() is self._thread:
            self.snapshot = self.take_snapshot()

    def _announce(self) -> None:
        with self._announcing:
            self.version += 1
            self.published = time.time()

    @property
    def said(self) -> str:
        """The note, and why the job is kept in memory only, where it is."""
        return " ".join(filter(None, (self.note, self.kept.problem)))

    def _set(self, status: str, note: str = "") -> None:
        if status in ENDED:
            self.kept.finish(ENDED[status])
        self.begun |= status not in ("loading", *ENDED)
        self.note = note
        self._refresh()
        # Last, so that whoever waits for it finds what belongs to it.
        self.status = status
        self._announce()

    def _work(self) -> None:
        try:
            self._run()
            if self.live:
                self._end("stopped", "")
        except Unwanted:
            self._end("stopped", "")
        except BaseException as e:
            # Of any kind: otherwise a page would wait for ever, and the slot would stay taken.
            log(e, f"job {self.id}")
            self._end("failed", error_message(e, f"job {self.id}"))
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Hold no longer what takes memory, once the thread has ended: the first job of a process is never collected,
        since what was there when the libraries had come is frozen."""

    def _end(self, status: str, note: str) -> None:
        """End the job, even where its last state cannot be shown."""
        try:
            self._set(status, note)
        except BaseException as e:
            log(e, f"job {self.id}")
        self.note, self.status = note, status
        self._announce()

    def _pause_while_unwatched(self) -> None:
        """Leave the processor to other jobs while nobody watches this one."""
        while self.unwatched and self._requested == "running":
            with self._wake:
                self._wake.wait(0.5)

    def _pause(self) -> None:
        """Wait while a pause is requested or nobody watches."""
        self._pause_while_unwatched()
        while self._requested == "paused":
            if self.status != "paused":
                self._set("paused", self.note)
            with self._wake:
                self._wake.wait(0.5)
        if self.status == "paused" and self._requested == "running":
            self._set("running", self.note)

    def _run(self) -> None:
        """Work step by step; obey requests between two steps."""
        status = "finished"
        with closing(self._steps()) as steps:
            for _ in steps:
                self._publish()
                self._pause()
                if self._requested != "running":
                    status = "stopped"
                    break
        # What the work leaves behind is tidied up by now; the last note is still true.
        self._set(status, self.note)

    def _steps(self) -> Generator[None, None, object]:
        """The work; yields after each piece.  A `finally` tidies up when the job is stopped."""
        raise NotImplementedError


class TextJob(Job):
    """A job in which a model reads a text, or talks, as a spec says.

    `name`: of the run in the library that goes on; empty for a new one.  Raises ValueError for a policy that would read
    a file.
    """

    def __init__(self, spec: Spec, models: Models, name: str = "") -> None:
        for written in spec.policies:
            # Whatever way the policy came here.
            address.policy(written)
        super().__init__(models, name)
        self.spec = spec
        self.model: LanguageModel | None = None
        """The model, once it is loaded."""
        self.facts: ModelFacts | None = None
        """What pages say of the model, once it is loaded."""
        self.tokenized: texts.Tokenized | None = None
        """How the text became tokens, once that is known."""

    def _stopped(self, name: str) -> "StoppedRun":
        """The run in the library that this goes on.  Raises ValueError where there is none, or it cannot go on here: it
        may be from other hands, and a lane of it may have been switched to a policy that reads a file."""
        from analysis.runs import library, resume

        asked = resume.stopped(library.find(name))
        for written in asked.policies:
            address.policy(written)
        return asked

    @property
    def about(self) -> str:
        """What the job does and with which text, in a few words."""
        return f"{self.noun} of {texts.titled(self.spec.text)}"

    def _let_go(self) -> None:
        self.model = None

    def _load(self) -> "LanguageModel":
        """The model that the spec names."""
        return self._models.get(self.spec, self._loading)

    def _use(self, model: "LanguageModel") -> None:
        """Work with this model, and let pages say what it is."""
        self.model, self.facts = model, ModelFacts.of(model)

    def _loading(self, progress: str) -> None:
        if self.unwanted:
            raise Unwanted
        if progress != self.note:
            self.tell(progress)

    def _tokenize(self, text: texts.Text, model: "LanguageModel") -> texts.Tokenized:
        """A text as tokens, read as the spec says."""
        self.tokenized = read = self.spec.tokenized(text, model.tokenizer)
        return read

    @property
    def begins(self) -> str:
        """How the text begins, such as "with <bos>"; empty before that is known."""
        return "" if self.tokenized is None else texts.with_bos(self.tokenized.begins)

    @property
    def text_note(self) -> str:
        """A sentence about control tokens in the text, where there is one to say."""
        return "" if self.tokenized is None else self.tokenized.note
