"""What a fresh start needs, made in a thread while a browser still loads the frame around the first page.

It would otherwise be made when it is asked for, one after the other.  No Streamlit in here.
"""

import threading
from importlib import import_module

from analysis.runs import trash

from . import recordings
from .libraries import LIBRARIES

PARTS = ("pandas", "PIL.Image")
"""What Streamlit imports when it draws its first page."""


def begin() -> None:
    """Make it, in a thread of its own."""
    threading.Thread(target=_prepare, name="first page", daemon=True).start()


def _prepare() -> None:
    recordings.prepare(recordings.FIRST)
    for name in PARTS:
        import_module(name)
    # Last, and at once: whoever presses soon waits for the rest of it only.
    LIBRARIES.begin()
    # What was written when this was ended last may be as large as a cache, and nothing may be kept for long.
    trash.sweep()
