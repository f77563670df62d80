"""What a command says while it works: bars that move on a terminal, and elsewhere a line every ten seconds.

In a file or a log nothing moves, and whoever reads it should know that work goes on, and how far it is.
"""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..models.garbage import seldom
from ..models.lean import import_transformers

EVERY = 10.0
"""Seconds between two lines."""


class Lines:
    """Off a terminal: prints what `say` says, every ten seconds, until it is left; nothing where that is empty."""

    def __init__(self, out: Console, say: Callable[[], str]) -> None:
        self._out, self._say, self._over = out, say, threading.Event()
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        if not self._out.is_terminal:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            if said := self._say():
                line = f"{said} ({time.monotonic() - self._begun:,.0f} s)"
                self._out.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def waiting(out: Console, what: str) -> Generator[Callable[[str], None]]:
    """Something without a measure is being waited for; what is given says what it is now."""
    # As texts: a path may look like markup.
    with out.status(Text(what)) as status, Lines(out, lambda: str(status.status)), seldom():
        yield lambda now: status.update(Text(now))


@contextmanager
def loading(out: Console) -> Generator[Callable[[str], None]]:
    """Libraries are imported in here, and a model is loaded; what is given says what is being waited for."""
    with waiting(out, "Loading the model") as tell:
        import_transformers()
        yield tell


class Bars(Progress):
    """A bar for each task.  `rates`: each task has a field `rate`, a few words on how fast it goes."""

    def __init__(self, out: Console, *, rates: bool = False) -> None:
        rate = (TextColumn("{task.fields[rate]}", markup=False),) if rates else ()
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            *rate,
            TimeRemainingColumn(),
            console=out,
        )
        self._lines = Lines(out, self._line)

    def __enter__(self) -> Self:
        super().__enter__()
        self._lines.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:  # ty: ignore[incompatible-method-override]
        self._lines.__exit__()
        super().__exit__(*raised)

    def _line(self) -> str:
        parts = []
        for task in filter(lambda task: task.visible, self.tasks):
            rate = f", {task.fields['rate']}" if task.fields.get("rate") else ""
            parts.append(f"{task.description}: {task.completed:,.0f} of {task.total:,.0f}{rate}")
        return ". ".join(parts)
