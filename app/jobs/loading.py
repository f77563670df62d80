"""Models in memory, shared by jobs: each is loaded at most once, in a thread of its own."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from analysis.runs.spec import Spec

from ..libraries import LIBRARIES

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel

ASK_EVERY = 0.1
"""Seconds between two questions whether a model that loads is still wanted."""


class _Progress:
    """What is being waited for.  Libraries hold on to whoever they tell it, so that it must not hold a model."""

    def __init__(self) -> None:
        self.text = "Loading the model"

    def tell(self, text: str) -> None:
        self.text = text


class _Loading:
    """A model that is being loaded: its progress, and at last the model or an error."""

    def __init__(self, name: str, load: Callable[["_Loading"], None]) -> None:
        self.progress = _Progress()
        self.future: Future[LanguageModel] = Future()
        self.thread = threading.Thread(target=load, args=(self,), name=f"load {name}", daemon=True)


class Models:
    """Keeps the models that were used last; a model that a job still uses is found again even after it was dropped."""

    def __init__(self, most: int = 2) -> None:
        self._most, self._lock = most, threading.Lock()
        self._kept: OrderedDict[tuple, LanguageModel] = OrderedDict()
        self._alive: WeakValueDictionary[tuple, LanguageModel] = WeakValueDictionary()
        self._coming: dict[tuple, _Loading] = {}
        self._asked = time.monotonic()

    def get(self, spec: Spec, progress: Callable[[str], None]) -> "LanguageModel":
        """The model of a spec; `progress` hears what is being waited for, and may raise to end the waiting.

        Raises ValueError with what to do, and whatever else loading raised.
        """
        key = *spec.loading.items(), _stamps(spec.model)
        with self._lock:
            self._asked = time.monotonic()
            if (model := self._alive.get(key)) is not None:
                self._keep(key, model)
                return model
            if (coming := self._coming.get(key)) is None:
                coming = self._coming[key] = _Loading(spec.model, partial(self._load, key, spec))
                coming.thread.start()
        while not wait([coming.future], ASK_EVERY).done:
            progress(coming.progress.text)
        return coming.future.result()

    def forget(self, unused: float) -> bool:
        """Drop all models where none was asked for during so many seconds; whether there were any."""
        with self._lock:
            old = bool(self._kept) and time.monotonic() - self._asked > unused
            if old:
                self._kept.clear()
            return old

    def close(self) -> None:
        """Wait for the models that are being loaded, at most 15 seconds each."""
        for coming in list(self._coming.values()):
            coming.thread.join(timeout=15)

    def _load(self, key: tuple, spec: Spec, coming: _Loading) -> None:
        try:
            LIBRARIES.load(coming.progress.tell)
            from analysis.models.loading import load

            model = load(**spec.loading, progress=coming.progress.tell, make_room=self._make_room)
        except BaseException as e:
            with self._lock:
                del self._coming[key]
            coming.future.set_exception(e)
            return
        with self._lock:
            self._keep(key, model)
            del self._coming[key]
        coming.future.set_result(model)
        # Folders of runs say it; whoever waits for the model need not wait for this.
        with suppress(OSError, ValueError):
            _ = model.sha256

    def _make_room(self) -> None:
        """Drop models before a new one is in memory; called once it is known that there is such a model."""
        with self._lock:
            while len(self._kept) >= self._most:
                self._kept.popitem(last=False)

    def _keep(self, key: tuple, model: "LanguageModel") -> None:
        self._alive[key] = self._kept[key] = model
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)


def _stamps(name: str) -> tuple[tuple[str, int, int], ...]:
    """Sizes and times of the files of a model that lies at a path: others may take their place while it is in memory.
    None for all other models."""
    place = Path(os.path.expanduser(name))
    with suppress(OSError, ValueError):
        files = sorted(place.iterdir()) if place.is_dir() else [place] if place.is_file() else []
        return tuple((file.name, found.st_size, found.st_mtime_ns) for file in files for found in [file.stat()])
    return ()
