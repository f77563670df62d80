"""GGUF files read once while a model loads.

transformers parses the whole header of a file, vocabulary and all, for the configuration, for the weights and for the
tokenizer, and makes its table of names once for every module.  Both are most of the time that a load takes.
"""

import functools
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import gguf
import numpy as np

_LOCK = threading.RLock()
"""What is replaced belongs to the process: one load at a time."""


class Reader(gguf.GGUFReader):
    """The same reader over a plain array: its hundreds of thousands of slices cost far less than those of a memory map,
    and see the same bytes."""

    def _get(self, *args: Any, **settings: Any) -> np.ndarray:
        if isinstance(self.data, np.memmap):
            self.data = np.asarray(self.data)
        return super()._get(*args, **settings)


@contextmanager
def read_once() -> Generator[None]:
    """Inside, a GGUF file is parsed once, and the table of names of a family made once."""
    with _LOCK:
        own = gguf.GGUFReader, gguf.get_tensor_name_map
        # Functions in the place of a class and of a function, for whoever calls them: with a path, or its name.
        reader = functools.lru_cache(maxsize=1)(Reader)
        gguf.GGUFReader = lambda path: reader(os.fspath(path))  # ty: ignore[invalid-assignment]
        gguf.get_tensor_name_map = functools.cache(own[1])  # ty: ignore[invalid-assignment]
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = own
