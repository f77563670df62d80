"""The command that records what chapters begin with: `python -m app.lesson`, a part of `make gallery`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from analysis.models.loading import load

from .answers import RECORDED, record
from .chapters import PLAYS

DTYPE = "float32"
ASKED = {name: play.recorded for name, play in PLAYS.items() if play.recorded}


def main(names: Annotated[list[str] | None, typer.Argument(help="chapters; without one, all of them")] = None) -> None:
    """Ask the embedded model what chapters begin with, and record its answers anew."""
    if unknown := [name for name in names or () if name not in ASKED]:
        raise typer.BadParameter(f"no answers are recorded of {unknown[0]}: choose from {', '.join(ASKED)}")
    model, today = load("embedded", dtype=DTYPE, device="cpu"), f"{datetime.now(UTC):%Y-%m-%d}"
    RECORDED.mkdir(exist_ok=True)
    for name in names or ASKED:
        path = record(ASKED[name], model, DTYPE, today, RECORDED)
        typer.echo(f"{name}: {path}, {path.stat().st_size / 1e3:.1f} kB")


typer.run(main)
