"""How a command that writes a run ends: by itself, or when it is asked to, after what it is doing just now."""

import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Self

import typer
from rich.table import Table

from .. import COMMAND
from ..runs.run import Run
from .console import as_word, note, print_table, say

if TYPE_CHECKING:
    from ..runs.checkpoint import Saver
    from ..runs.folder import Folder
    from ..runs.resume import Made


_DRAFT: ContextVar[bool] = ContextVar("draft", default=False)


@contextmanager
def as_draft() -> Generator[None]:
    """What is made in here goes where it is interrupted, so nobody is told where it lies and how to go on with it."""
    before = _DRAFT.set(True)
    try:
        yield
    finally:
        _DRAFT.reset(before)


def say_where(before: str, path: Path) -> None:
    """Say in which folder something lies, after a few words; nothing of a draft."""
    if not _DRAFT.get():
        say(f"{before} in {path}")


def say_how_to_go_on(path: Path, before: str = "") -> None:
    """Say by which command a run goes on, after a few words; nothing of a draft."""
    if not _DRAFT.get():
        say(f"{before}To go on: {COMMAND} resume {as_word(path)}")


class Brake:
    """While it is held, Ctrl-C and a polite kill only say that they came, so that a forward pass is not left half done;
    a second one ends it all the same."""

    def __init__(self) -> None:
        self.pressed: int | None = None

    def __enter__(self) -> Self:
        self.pressed = None
        self._before = {s: signal.signal(s, self._press) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _press(self, number: int, _) -> None:
        if self.pressed is not None:
            raise KeyboardInterrupt
        self.pressed = number

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def end_run(
    folder: "Folder",
    saver: "Saver",
    status: str,
    warnings: Sequence[str],
    left: "Callable[[], Made] | None",
    *,
    over: bool,
    table: Callable[[Run], Table],
) -> None:
    """Finish a run folder and print a table of the run.  `left`: what a run goes on from, where it can; `over`: whether
    nothing is left of it, so that its checkpoints go.  Raises typer.Exit where it was interrupted."""
    for warning in warnings:
        folder.event("warning", text=warning)
        note(warning)
    # Before the folder says that nobody writes it: whoever goes on with it would write beside it.
    if warning := saver.close(left):
        note(warning)
    folder.finish(status)
    # Last: what lacks something goes on from them.
    if over:
        saver.checkpoints.remove()
    print_table(table(folder.run))
    say_where(f"{status.capitalize()}. The run lies", folder.path)
    if status == "interrupted":
        say_how_to_go_on(folder.path)
        raise typer.Exit(130)


@contextmanager
def opened(make: "Callable[[], Folder]") -> "Generator[Folder]":
    """The folder of a run that a command makes and writes, which has an end whatever ends the command, and says what is
    kept.  Raises typer.Exit where it was interrupted before anything was read."""
    with Brake() as brake:
        folder = make()
    try:
        if brake.pressed is not None:
            raise KeyboardInterrupt
        yield folder
    except KeyboardInterrupt:
        _leave(folder, "interrupted")
        raise typer.Exit(130) from None
    except Exception:
        _leave(folder, "failed")
        raise


def _leave(folder: "Folder", status: str) -> None:
    if not folder.open:
        return
    with suppress(ValueError):
        # Where the disk has no room for its last words, it is kept as it grew.
        folder.finish(status)
    say_how_to_go_on(folder.path, "What was learned until then is kept. ")
