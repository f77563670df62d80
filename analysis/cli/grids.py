"""Cells of a grid, done in front of a person: who does them, how far they are, and how they ended."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .. import files
from .console import out, print_table, right, say
from .waiting import Bars

if TYPE_CHECKING:
    from ..experiments.grid import Cell
    from ..runs.result import ResultFolder

Jobs = Annotated[int, typer.Option(help="processes on this machine, each with a GPU of its own if it has any")]
Backend = Annotated[str, typer.Option(help="local, or a cluster: dask or ray")]
Address = Annotated[str | None, typer.Option(help="where the cluster is, HOST:PORT")]


def left(cells: "Sequence[Cell]", place: Path) -> int:
    """How many of these cells a folder lacks.  Raises ValueError where it holds other work, or is of other weights."""
    from ..experiments import grid

    missing = grid.unfinished(cells, place)
    # Folders of older versions do not say of what their cells are, but have some of these.
    if place.exists() and not grid.says_of_cells(place) and len(missing) == len(cells):
        files.new_folder(place)
    return len(missing)


@contextmanager
def opened(folder: "ResultFolder") -> "Generator[ResultFolder]":
    """The folder of cells that a command does: it has an end whatever ends that, and is removed where it has none."""
    try:
        yield folder
    except BaseException as e:
        if any(folder.path.glob("*/run.json")):
            folder.finish("interrupted" if isinstance(e, KeyboardInterrupt) else "failed")
        else:
            folder.discard()
        raise


def do(
    cells: "Sequence[Cell]", left: int, place: Path, done: Callable[[Any], None] = lambda _: None, **how: Any
) -> str:
    """Do those cells that a folder lacks, `left` of them; `how`: jobs, backend and address; `done` hears of each.

    Returns how that ended: finished, or interrupted by Ctrl-C.
    """
    from ..experiments import grid

    try:
        with Bars(out) as bar:
            task = bar.add_task("Cells", total=len(cells), completed=len(cells) - left)
            for cell in grid.run(cells, place, **how):
                bar.advance(task)
                done(cell)
    except KeyboardInterrupt:
        return "interrupted"
    return "finished"


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> None:
    """Print a table whose first column has names, and the others numbers."""
    table = Table(*header[:1], *(right(h) for h in header[1:]), title=title, caption=caption)
    for row in rows:
        table.add_row(*row)
    print_table(table)


def end(status: str, where: str) -> None:
    """Say how it ended, and what lies where.  Raises typer.Exit where it was interrupted."""
    again = ": the same command goes on" if status == "interrupted" else ""
    say(f"{status.capitalize()}{again}. {where}")
    if status == "interrupted":
        raise typer.Exit(130)
