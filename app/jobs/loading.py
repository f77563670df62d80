"""Models in memory, shared by jobs: loaded at most once, in a thread of their own, while nobody else waits for them."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from analysis.runs.folder import Spec

from ..libraries import LIBRARIES

if TYPE_CHECKING:
    from analysis.models.loading import LanguageModel

ASK_AGAIN = 0.1
"""Seconds after which whoever waits for a model is asked whether it is still wanted."""


class _Loading:
    """A model on its way: how far it is, and at last the model or what went wrong."""

    def __init__(self) -> None:
        self.said = "Loading the model"
        self.future: Future[LanguageModel] = Future()
        self.thread: threading.Thread | None = None

    def tell(self, said: str) -> None:
        self.said = said


class Models:
    """The models that were used last stay; one that a job still works with is found again even if it made room."""

    def __init__(self, most: int = 2) -> None:
        self._most, self._lock = most, threading.Lock()
        self._kept: OrderedDict[tuple, LanguageModel] = OrderedDict()
        self._alive: WeakValueDictionary[tuple, LanguageModel] = WeakValueDictionary()
        self._coming: dict[tuple, _Loading] = {}

    def get(self, spec: Spec, progress: Callable[[str], None]) -> "LanguageModel":
        """The model of a spec.  Raises ValueError with what to do, and whatever else loading it raised.

        `progress` is told again and again what is being waited for; what it raises ends the waiting, not the loading.
        """
        key = (spec.model, spec.dtype, spec.device, spec.weights, spec.kv_heads)
        with self._lock:
            if (model := self._alive.get(key)) is not None:
                self._keep(key, model)
                return model
            if (coming := self._coming.get(key)) is None:
                coming = self._coming[key] = _Loading()
                coming.thread = threading.Thread(
                    target=self._load, args=(key, coming), name=f"load {spec.model}", daemon=True
                )
                coming.thread.start()
        while not wait([coming.future], ASK_AGAIN).done:
            progress(coming.said)
        return coming.future.result()

    def close(self) -> None:
        """Wait for what is being loaded."""
        for coming in list(self._coming.values()):
            coming.thread.join(timeout=15)

    def _load(self, key: tuple, coming: _Loading) -> None:
        name, dtype, device, weights, kv_heads = key
        try:
            LIBRARIES.load(coming.tell)
            from analysis.models.loading import load

            model = load(
                name,
                dtype=dtype,
                device=device,
                weights=weights,
                kv_heads=kv_heads,
                progress=coming.tell,
                make_room=self._make_room,
            )
        except BaseException as e:
            with self._lock:
                del self._coming[key]
            coming.future.set_exception(e)
            return
        with self._lock:
            self._keep(key, model)
            del self._coming[key]
        coming.future.set_result(model)

    def _make_room(self) -> None:
        """Before it is needed, and not before it is known that there is such a model."""
        with self._lock:
            while len(self._kept) >= self._most:
                self._kept.popitem(last=False)

    def _keep(self, key: tuple, model: "LanguageModel") -> None:
        self._alive[key] = self._kept[key] = model
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
