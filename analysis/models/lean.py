"""transformers, imported without what only others need of it: a second less before the first token.

It marks functions for torch's compiler, has tensors that are spread over machines, and losses of object detection, so
it imports `torch._dynamo`, `torch.distributed.tensor` and scipy.  The app and the commands do without.  In a process of
somebody else, who imports this library into it, all is as they know it.
"""

import sys
import threading
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

from typing_extensions import override

COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result", "disable")
"""Decorators by which a function is marked for the compiler."""
ABSENT = ("is_torch_distributed_available", "is_scipy_available")
"""What transformers asks before it imports what only others need; from now on the answer is no."""


def import_transformers() -> None:
    """Import torch, and of transformers what loads a language model; nothing where that has been imported already."""
    if "transformers.modeling_utils" in sys.modules or COMPILER in sys.modules:
        return
    import torch  # noqa: F401
    from transformers import utils

    for asked in ABSENT:
        for module in (utils, utils.import_utils):
            setattr(module, asked, lambda: False)
    found: Any = find_spec(COMPILER)
    compiler: Any = module_from_spec(found)
    compiler.__class__ = Compiler
    sys.modules[COMPILER] = compiler
    import transformers.modeling_utils  # noqa: F401


class Compiler(ModuleType):
    """torch's compiler, which runs when something is asked of it.  A mark leaves a function as it is until then, which
    matters to nobody who does not compile that very function."""

    _lock = threading.RLock()
    _runs = False

    @override
    def __getattr__(self, name: str) -> Any:
        # Python asks every module for names of its own.
        if name.startswith("__"):
            raise AttributeError(name)
        with self._lock:
            if not self._runs and name in MARKS:
                return _unmarked
            if find_spec(f"{COMPILER}.{name}") is not None:
                return import_module(f"{COMPILER}.{name}")
            if not self._runs:
                self._runs = True
                found: Any = self.__spec__
                found.loader.exec_module(self)
            return super().__getattribute__(name)


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator, with arguments or without, that changes nothing."""
    return _unmarked if function is None else function
