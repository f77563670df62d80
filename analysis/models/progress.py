"""How far a model has come while it is fetched and loaded, told in a few words instead of bars on a terminal."""

import contextlib
import io
import threading
from collections.abc import Callable, Generator

from tqdm import tqdm
from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

Tell = Callable[[str], None]
_ALONE = threading.RLock()
"""Held while a model loads: what transformers and torch are told meanwhile holds for the whole process."""


def bar_of(what: str, tell: Tell, unit: str = "it") -> type[tqdm]:
    """A bar that tells `what: 40 %` each time it would be drawn, if it counts that unit."""

    class Bar(tqdm):
        def __init__(self, *args, **settings) -> None:
            super().__init__(*args, **settings | {"file": io.StringIO(), "disable": False})

        def display(self, *_, **__) -> None:
            if self.unit == unit and self.total and self.n:
                tell(f"{what}: {min(100, 100 * self.n / self.total):.0f} %")

    return Bar


@contextlib.contextmanager
def quiet(what: str, tell: Tell) -> Generator[None]:
    """No bars and no warnings of transformers while a model loads: `tell` says what there is to say.

    One model at a time; whoever comes second waits.
    """
    tell(what)
    with _ALONE, _hooked(what, tell):
        yield


@contextlib.contextmanager
def _hooked(what: str, tell: Tell) -> Generator[None]:
    bar = bar_of(what, tell)
    level, own = transformers_logging.get_verbosity(), modeling_gguf_pytorch_utils.tqdm
    # The bar of GGUF files alone does not ask the hook.
    modeling_gguf_pytorch_utils.tqdm = bar  # ty: ignore[invalid-assignment]
    hook = transformers_logging.set_tqdm_hook(lambda _, args, settings: bar(*args, **settings))
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.set_tqdm_hook(hook)
        modeling_gguf_pytorch_utils.tqdm = own
