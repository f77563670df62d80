"""What several commands say on the terminal, and where they put a run."""

import os
import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from typing_extensions import override

STEERING = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Characters that steer a terminal, and what is printed in their place."""


class Terminal(Console):
    """Where commands say something; whoever reads it through a pipe may have seen enough.

    Paths, texts and answers may look like markup, and are printed as they are; but none may steer the terminal.
    """

    broken = False
    """Whether somebody has closed the pipe."""

    @override
    def print(self, *objects: Any, **how: Any) -> None:
        super().print(*(o.translate(STEERING) if isinstance(o, str) else o for o in objects), **how)

    @override
    def on_broken_pipe(self) -> None:
        # What runs ends as after Ctrl-C and keeps what it has; what it says meanwhile goes nowhere.
        self.broken = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise KeyboardInterrupt


out = Terminal(highlight=False, markup=False, emoji=False)


def note(sentence: str) -> None:
    """Say something that the person should know before they trust the numbers."""
    out.print(f"note: {sentence}", style="yellow", soft_wrap=True)


def say(sentence: str) -> None:
    """Print a sentence on one line: paths and texts are not to be broken."""
    out.print(sentence, soft_wrap=True)


def as_word(name: object) -> str:
    """A name of a run, or a path, as a command line takes it: quoted, and no option where it begins with a dash."""
    return "-- " * str(name).startswith("-") + shlex.quote(str(name))


def right(heading: str) -> Column:
    """A column of numbers."""
    return Column(heading, justify="right")


def print_table(table: Table) -> None:
    """Print a table in which no word and no number is cut, unless a cell says so itself: on a narrow terminal cells
    have more lines, and the table loses its frame."""
    whole, least, bare = 1, 1, -2
    for column in table.columns:
        cells = [str(c) for c in (column.header, *column.cells) if not (isinstance(c, Text) and c.overflow)]
        words = [cell_len(word) for cell in cells for word in cell.split()]
        column.min_width = max(column.width or 0, *words, 0)
        # Each column has a space at both sides, and a line of the frame; without one, two spaces are between columns.
        whole += 3 + max(map(cell_len, cells), default=0)
        least += 3 + column.min_width
        bare += 2 + column.min_width
    if whole > out.width:
        for column in (c for c in table.columns if c.justify == "right"):
            column.width = column.min_width
    if least > out.width:
        table.box, table.show_edge, table.pad_edge, table.collapse_padding = SIMPLE_HEAD, False, False, True
    if bare > out.width:
        table.width = bare
    out.print(table, crop=False)


def check_new(out_folder: Path | None) -> None:
    """Raises ValueError where the folder that was named for a run holds something: nobody waits for a model to hear
    that."""
    if out_folder is not None:
        from .. import files

        files.check_empty(out_folder, "a run" if os.path.exists(out_folder / "run.json") else "something")


@contextmanager
def new_folder(out_folder: Path | None, stem: str, runs: Path | None) -> Generator[Path]:
    """Where a run goes: the folder that was named, else a new one in the library, where old runs may have to go.

    Of a run that cannot begin no empty folder is left there.
    """
    if out_folder is not None:
        yield out_folder
        return
    from ..runs import library, trash

    place = library.new_folder(stem, runs)
    try:
        if freed := trash.free(runs, place.name):
            note(freed)
        yield place
    except BaseException:
        with suppress(OSError):
            # Only where it is empty.
            place.rmdir()
        raise
