"""What is live in this process: an engine thread each, found again by id, paused when nobody looks, freed later.

Never calls Streamlit: a page asks for a run, sends it wishes, and reads what it has learned.  A run's thread is the
only one that touches its lanes; wishes are carried out between two steps.
"""

import atexit
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from analysis import texts
from analysis.models import LanguageModel, load
from analysis.record import Spec

MOST_LIVE = 4
UNSEEN_PAUSE = 10.0
"""Seconds without a look after which a run pauses."""
UNSEEN_FREE = 600.0
"""Seconds without a look after which its memory is freed."""
HOLD = 1024
"""Tokens of which queries and keys are kept for maps."""
ENDED = ("finished", "stopped", "failed")


class Models:
    """Models in memory, shared by runs; the one that was used longest ago makes room."""

    def __init__(self, most: int = 2) -> None:
        self._most, self._lock = most, threading.Lock()
        self._loaded: OrderedDict[tuple, LanguageModel] = OrderedDict()

    def get(self, spec: Spec, progress: Callable[[str], None]) -> LanguageModel:
        """The model of a run, loaded at most once.  Raises ValueError with what to do."""
        with self._lock:
            key = (spec.model, spec.dtype, spec.device, spec.weights, spec.kv_heads)
            if key not in self._loaded:
                # Room is made before it is needed.
                while len(self._loaded) >= self._most:
                    self._loaded.popitem(last=False)
                self._loaded[key] = load(
                    spec.model,
                    dtype=spec.dtype,
                    device=spec.device,
                    weights=spec.weights,
                    kv_heads=spec.kv_heads,
                    progress=progress,
                )
            self._loaded.move_to_end(key)
            return self._loaded[key]


class Live:
    """Something that works in a thread of its own while people look at it.

    `version` grows whenever there is something new to see.  What it does is said by the subclass, in `_run`.
    """

    def __init__(self, spec: Spec | None, models: Models) -> None:
        self.id = secrets.token_urlsafe(6)
        self.spec = spec
        self.status, self.note = "loading", ""
        self.model: LanguageModel | None = None
        self.read_as: texts.Tokenized | None = None
        """How what is read became tokens, as soon as that is known."""
        self.version, self.published = 0, time.time()
        self._models, self._wanted = models, "running"
        self._wake, self._news = threading.Condition(), threading.Condition()
        self._seen = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"run {self.id}", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    @property
    def live(self) -> bool:
        return self.status not in ENDED

    @property
    def unseen(self) -> float:
        """Seconds since somebody looked."""
        return time.monotonic() - self._seen

    @property
    def unwatched(self) -> bool:
        """Whether nobody has looked for so long that it should not go on."""
        return self.unseen > UNSEEN_PAUSE

    def look(self) -> None:
        """Somebody is looking: the lease is renewed."""
        self._seen = time.monotonic()

    def wish(self, what: str) -> None:
        """What the run should be; freed: then its thread ends."""
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

    def _tokens(self, text: texts.Text, model: LanguageModel) -> NDArray[np.int32]:
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
        with self._news:
            self.version += 1
            self.published = time.time()
            self._news.notify_all()

    def _set(self, status: str, note: str = "") -> None:
        self.status = status
        self.tell(note)

    def _work(self) -> None:
        try:
            self._run()
        except ValueError as e:
            self._set("failed", sentence(e))
        except (MemoryError, RuntimeError) as e:
            logging.getLogger(__name__).exception("run %s", self.id)
            short = "memory" in str(e).lower() or isinstance(e, MemoryError)
            advice = "use smaller caches, fewer lanes or bfloat16" if short else "restart it, or choose another model"
            self._set("failed", f"Reading stopped, {'out of memory' if short else 'the model failed'}: {advice}.")

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
                self._set("paused")
            with self._wake:
                self._wake.wait(0.5)
        if self.status == "paused" and self._wanted == "running":
            self._set("running")

    def _run(self) -> None:
        raise NotImplementedError


def sentence(e: Exception | str) -> str:
    """What an exception says, as a sentence."""
    text = " ".join(str(e).split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


class Registry:
    """All runs of this process."""

    def __init__(self) -> None:
        self._runs: dict[str, Live] = {}
        self._ending: list[Live] = []
        """Freed, and perhaps still in the middle of a step."""
        self._lock = threading.Lock()
        self._models = Models()

    def start(self, make: Callable[[Models], Live]) -> Live:
        """Begin a run.  Raises ValueError where there are enough already."""
        with self._lock:
            self._sweep()
            live = [r for r in self._runs.values() if r.live]
            unseen = [r for r in live if r.unwatched]
            if len(live) >= MOST_LIVE and unseen:
                self._free(max(unseen, key=lambda r: r.unseen))
            elif len(live) >= MOST_LIVE:
                raise ValueError(
                    f"{MOST_LIVE} runs are live already: stop one of them, or close its tab, and press Start again"
                )
            run = make(self._models)
            self._runs[run.id] = run
            run.begin()
            return run

    def model(self, spec: Spec, progress: Callable[[str], None]) -> LanguageModel:
        """A model for a page that asks it something at once.  Raises ValueError with what to do."""
        return self._models.get(spec, progress)

    def models(self) -> set[str]:
        """The names of models that runs in memory were begun with."""
        with self._lock:
            return {run.spec.model for run in self._runs.values() if run.spec is not None}

    def free(self, run_id: str) -> None:
        """End a run and forget it."""
        with self._lock:
            if run_id in self._runs:
                self._free(self._runs[run_id])

    def get(self, run_id: str | None) -> Live | None:
        with self._lock:
            self._sweep()
            return self._runs.get(run_id or "")

    def _sweep(self) -> None:
        for run in list(self._runs.values()):
            if run.unseen > UNSEEN_FREE:
                self._free(run)

    def _free(self, run: Live) -> None:
        run.wish("freed")
        del self._runs[run.id]
        self._ending = [r for r in self._ending if r.working] + [run]

    def close(self) -> None:
        """End all runs and wait for their threads: a process must not end under a thread that multiplies matrices."""
        for run in list(self._runs.values()):
            self._free(run)
        for run in self._ending:
            run.join()


REGISTRY = Registry()
atexit.register(REGISTRY.close)
