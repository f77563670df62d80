"""`runs`: the commands over the library of runs.  None of them needs a model."""

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.cells import cell_len
from rich.table import Column, Table
from rich.text import Text

from .. import COMMAND
from ..policies import parse
from ..runs import archive, library, trash
from . import options
from .console import as_word, note, out, print_table, right, say

HELP = "The library of runs: list, show, name, pin, delete, pack and take in."
app = typer.Typer(name="runs", add_completion=False, help=HELP)
Name = Annotated[str, typer.Argument(help="as the list says it")]
NARROW = 76
"""Columns beside the names of runs below which their list has no room for whole lines."""


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """The library of runs: list, show, name, pin, delete, pack and take in."""
    if context.invoked_subcommand is None:
        show_all()


@app.command("list")
def show_all(
    words: Annotated[list[str] | None, typer.Argument(help="only runs of which all these are said")] = None,
    runs: options.Runs = None,
) -> None:
    """The runs, those that are pinned first, then the newest."""
    place, asked = library.home(runs), " ".join(words or [])
    found = library.entries(runs)
    shown = [e for e in found if e.says(asked)]
    if not shown:
        say(f"No run in {place} is of {asked}." if found else f"There is no run in {place} yet: stream makes one.")
        return
    # What a run goes by is never broken.  On a narrow terminal the lanes are, before what is said of a run.
    names = max(out.width // 4, *(cell_len(e.name) for e in shown))
    what = Column("What", width=len("Conversation,") if out.width < names + NARROW else None)
    table = Table(
        Column("Run", width=names), what, right("Tokens"), "Lanes", right("Perplexity"), right("MB"), show_lines=True
    )
    for e in shown:
        lanes = e.preview.lanes if e.preview else ()
        # A title takes the place of the text's name.
        of = Path(e.text).name if e.label.title and e.kind != "training" else ""
        numbers = e.arithmetic if e.arithmetic != "float32" else ""
        known = (library.KINDS.get(e.kind, "Damaged"), e.problem or e.status, Path(e.model).name, numbers, of)
        table.add_row(
            Text(f"{e.name}\n{'* ' * e.label.pinned}{e.title}", overflow="fold"),
            Text(", ".join(filter(None, (*known, _local(e.started)))), overflow="fold"),
            # Each beside its perplexity, which is of so many tokens.
            "\n".join(f"{lane.tokens:,}" for lane in lanes),
            Text("\n".join(e.lanes), no_wrap=True, overflow="ellipsis"),
            "\n".join("–" if lane.perplexity is None else f"{lane.perplexity:,.1f}" for lane in lanes),
            f"{e.size / 1e6:,.2f}",
        )
    count, size = len(found), sum(e.size for e in found) / 1e9
    many = f"{count} run{'s' * (count != 1)}, {size:,.2f} of {trash.limit() / 1e9:g} GB"
    table.caption = Text(f"{many} in {place}; * is pinned")
    print_table(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="as the list says it, or the folder of any run")],
    runs: options.Runs = None,
) -> None:
    """All that is known of a run."""
    from ..runs.reader import load
    from .reading import summary

    if len(Path(name).parts) > 1 and runs is None:
        folder = Path(os.path.abspath(os.path.expanduser(name)))
        name, runs = folder.name, folder.parent
    e = library.entry(name, runs)
    table = Table(show_header=False)
    table.add_row("Title", Text(e.title + " (pinned)" * e.label.pinned, overflow="fold"))
    table.add_row("Kind", library.KINDS.get(e.kind, "Damaged"))
    if e.problem:
        table.add_row("Problem", Text(e.problem, overflow="fold"))
    known = {"Status": e.status, "Started": _local(e.started), "Model": e.model, "Numbers": e.arithmetic}
    for what, value in (known | {"Text": e.text}).items():
        if value:
            table.add_row(what, Text(value, overflow="fold"))
    for policy in e.policies:
        table.add_row("Lane", Text(parse(policy).label))
    table.add_row("Size", f"{e.size / 1e6:,.2f} MB")
    table.add_row("Folder", Text(str(e.path), overflow="fold"))
    print_table(table)
    if e.preview is not None:
        print_table(summary(load(e.path)))


@app.command()
def rename(
    name: Name,
    title: Annotated[str, typer.Argument(help="what it is called from now on; empty: as at first")],
    runs: options.Runs = None,
) -> None:
    """Call a run something; the name of its folder stays."""
    library.rename(name, title, runs)
    say(f"{name} is called {library.entry(name, runs).title}")


@app.command()
def pin(name: Name, runs: options.Runs = None) -> None:
    """Keep a run, whatever the size limit asks."""
    library.pin(name, True, runs)
    say(f"{name} is pinned")


@app.command()
def unpin(name: Name, runs: options.Runs = None) -> None:
    """Let the size limit free a run again."""
    library.pin(name, False, runs)
    say(f"{name} is no longer pinned")


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(help="as the list says them")], runs: options.Runs = None
) -> None:
    """Delete runs; undo brings them back for a day."""
    for name in names:
        trash.delete(name, runs)
        say(f"{name} is deleted: {COMMAND} runs undo {as_word(name)} brings it back")


@app.command()
def undo(
    name: Annotated[str | None, typer.Argument(help="which deleted run (default: the last one)")] = None,
    runs: options.Runs = None,
) -> None:
    """Bring a deleted run back."""
    deleted = [(when, known) for when, known in trash.trashed(runs) if name in (None, known)]
    if not deleted:
        raise ValueError(
            f"no deleted run {name} is there any more" if name else "nothing was deleted that can be brought back"
        )
    say(f"{trash.undo(deleted[0][0], runs)} is back")


@app.command()
def export(
    name: Name,
    out_file: Annotated[Path | None, options.path("a .zip file (default: NAME.zip)", "--out")] = None,
    runs: options.Runs = None,
) -> None:
    """Pack a run as one .zip file, to be handed on."""
    file = out_file or Path(f"{name}.zip")
    library.find(name, runs)
    if file.exists():
        raise ValueError(f"{file} exists already: choose another file for --out")
    archive.export(name, file, runs)
    say(f"{name}: {file}, {file.stat().st_size / 1e6:,.1f} MB")


@app.command("import")
def take_in(
    zip_files: Annotated[
        list[Path], typer.Argument(parser=options.named, metavar="zip_files", help=".zip files that export wrote")
    ],
    runs: options.Runs = None,
) -> None:
    """Take runs in from .zip files, which are checked first."""
    from ..figures.inputs import check_folder

    for file in zip_files:
        try:
            name = archive.take_in(file, check_folder, runs)
        except ValueError as e:
            raise ValueError(f"{file}: {e}") from e
        say(f"{file} is {name} now")
        if freed := trash.free(runs, name):
            note(freed)


def _local(moment: str) -> str:
    """A moment as the clock here shows it."""
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M}" if moment else ""
