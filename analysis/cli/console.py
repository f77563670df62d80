"""What several commands say on the terminal, and where they put a run."""

from pathlib import Path

from rich.console import Console
from rich.table import Column

out = Console(highlight=False)


def note(sentence: str) -> None:
    """Say something that the person should know before they trust the numbers."""
    out.print(f"note: {sentence}", style="yellow", markup=False, soft_wrap=True)


def say(sentence: str) -> None:
    """Print a sentence as it is: paths and texts may look like markup, and are not to be broken."""
    out.print(sentence, markup=False, soft_wrap=True)


def right(heading: str) -> Column:
    """A column of numbers."""
    return Column(heading, justify="right")


def new_folder(out_folder: Path | None, stem: str, runs: Path | None) -> Path:
    """Where a run goes: the folder that was named, else a new one in the library, where old runs may have to go."""
    if out_folder is not None:
        return out_folder
    from ..runs import library, trash

    place = library.new_folder(stem, runs)
    if freed := trash.free(runs, place.name):
        note(freed)
    return place
