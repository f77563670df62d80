"""What several commands say on the terminal, and where they put a run."""

from datetime import datetime
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


def new_folder(name: str) -> Path:
    """Where a run goes when nobody says: a folder in runs/ that begins with the time."""
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
