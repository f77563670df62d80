"""The folder of a comparison: what is missing of it is computed cell by cell, and so are the tables that they make."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ... import files
from ...runs.result import Keep, ResultFolder
from ...runs.run import Run
from ..grid import made, put, unfinished
from ..recall.cells import RecallCell
from . import tables
from .entries import Verdict, verdict
from .plan import KIND, Plan, ReadingCell

if TYPE_CHECKING:
    from ...models.language_model import LanguageModel

Cell = ReadingCell | RecallCell
TABLED_EVERY = 2.0
"""Seconds, at least, from one writing of the tables to the next while cells come."""


def folder_of(plan: Plan, place: Path) -> ResultFolder:
    """The folder of a plan's cells, which says from now on that they are computed; there may be some of them already.

    Raises ValueError where it cannot be written, somebody writes it, or it holds something else.
    """
    return ResultFolder(
        place, KIND, Run(plan.spec), text_sha256=plan.text.sha256, weights_sha256="", settings=plan.settings,
        new=not os.path.exists(place),
    )  # fmt: skip


def kept_cells(
    keep: Keep,
    model: "LanguageModel",
    plan: Plan,
    known: Path | None,
    told: Callable[[Cell, int], object] = lambda cell, tokens: None,
    say: Callable[[Verdict], object] = lambda found: None,
) -> Generator[Cell, None, None]:
    """All cells of a plan when they are whole: first those of the folder `known`; each of the others is put into a
    folder by `keep`, and so are the tables: now and then, with the last cell, and where the work ends before that.

    `told`: hears how many tokens of a cell were read just now, and may raise to end the work; `say`: hears what the
    cells say, whenever the tables are written.  Raises ValueError where `known` has cells of another model or
    other weights under the same name, or is damaged.
    """
    left = plan.cells if known is None else unfinished(plan.cells, known, model.sha256)
    missing, after = {cell.name for cell in left}, 0.0
    there = [cell for cell in plan.cells if cell.name not in missing]
    with tempfile.TemporaryDirectory() as folder:
        # Where the folder takes no more, what was computed is still told.
        place, tabled = Path(folder), 0

        def tabulate() -> None:
            """Write the tables of what is done, and tell it."""
            say(found := verdict(plan, place))
            keep(partial(_write, tables.written(found)))

        done, cells = 0, (*there, *left)
        try:
            for cell in cells:
                if known is not None and cell.name not in missing:
                    shutil.copytree(known / cell.name, place / cell.name)
                else:
                    whole = made(partial(cell.write, model=model, told=partial(told, cell)))
                    put(place / cell.name, whole)
                    keep(partial(_put, cell.name, whole))
                done += 1
                if done == len(cells) or (done >= len(there) and time.monotonic() > after):
                    tabulate()
                    tabled, after = done, time.monotonic() + TABLED_EVERY
                yield cell
        finally:
            if done != tabled:
                tabulate()


def _put(name: str, whole: Mapping[str, bytes], folder: ResultFolder) -> None:
    put(folder.path / name, whole)


def _write(written: Mapping[str, str], folder: ResultFolder) -> None:
    for name, text in written.items():
        files.write(folder.path / name, text)
