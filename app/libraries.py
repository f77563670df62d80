"""What takes seconds to import: torch, transformers, and what computes with them.

A page is on screen before.  They are imported by a thread of their own or by that of a job, whichever is first, and by
one at a time.  Never calls Streamlit.
"""

import gc
import sys
import threading
from collections.abc import Callable
from importlib import import_module

from analysis import SETUP, chat, engine, experiments
from analysis.models import garbage, lean

PARTS = {
    "torch": "PyTorch",
    "transformers": "transformers",
    f"{engine.__name__}.stream": "what reads",
    f"{chat.__name__}.conversation": "what answers",
    f"{experiments.__name__}.measures": "what measures",
}
"""What is imported, in this order, and what a person calls it."""


class Libraries:
    """The libraries of this process: how many are there, and what comes next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.there = len(PARTS) if all(name in sys.modules for name in PARTS) else 0
        self.problem = ""

    @property
    def ready(self) -> bool:
        """Whether all of them are imported."""
        return self.there == len(PARTS)

    @property
    def share(self) -> float:
        """How much of them is there, from 0 to 1."""
        return self.there / len(PARTS)

    @property
    def said(self) -> str:
        """What is being waited for."""
        return "" if self.ready else f"Loading {list(PARTS.values())[self.there]}"

    def load(self, tell: Callable[[str], None] = lambda said: None) -> None:
        """Import what is not there yet; `tell` hears what is being waited for.  Raises what an import raises."""
        while not self._lock.acquire(timeout=0.2):
            tell(self.said)
        try:
            if self.ready:
                return
            with garbage.seldom():
                for at, name in enumerate(PARTS):
                    self.there = at
                    tell(self.said)
                    if name == "transformers":
                        lean.import_transformers()
                    else:
                        import_module(name)
            # What they left behind is never looked through again, which would stop every stream.
            gc.freeze()
            self.there = len(PARTS)
        finally:
            self._lock.release()

    def begin(self) -> None:
        """Load in a thread of its own, unless that has begun."""
        if self._thread is None and not self.ready:
            self._thread = threading.Thread(target=self._load, name="libraries", daemon=True)
            self._thread.start()

    def _load(self) -> None:
        try:
            self.load()
        except BaseException as e:
            self.problem = f"{self.said} failed ({type(e).__name__}: {e}): run {SETUP}, and start the app again."
            raise


LIBRARIES = Libraries()
"""Of this process: what is imported is there for all of its pages and jobs."""
