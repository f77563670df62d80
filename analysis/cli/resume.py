"""The command that lets a run go on where it stopped."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import texts
from . import options
from .console import out, say
from .reading import read_on
from .waiting import Bars, waiting


def resume(
    folder: Annotated[Path, typer.Argument(help="the folder of a run")],
    tokens: Annotated[int | None, typer.Option(help="read until there are so many tokens (default: as asked)")] = None,
) -> None:
    """Go on where a run stopped: interrupted, killed, or finished with fewer tokens than its text has."""
    from ..runs import resume as runs

    asked = runs.stopped(folder, tokens)
    spec = asked.spec
    source = texts.read(spec.text)
    with waiting(out, "Loading the model") as status:
        from ..models.loading import load

        how: dict[str, Any] = {
            "dtype": spec.dtype,
            "device": spec.device,
            "weights": spec.weights,
            "kv_heads": spec.kv_heads,
        }
        network = load(spec.model, **how, progress=status.update)
    options.say_changed(spec)
    with Bars(out) as bars:
        tasks = [
            bars.add_task(f"Again: {policy}", total=len(track.nll) + 1)
            for policy, track in zip(spec.policies, asked.run.tracks, strict=True)
        ]
        going = runs.resumed(asked, network, source, progress=lambda i, at: bars.update(tasks[i], completed=at))
    for sentence in going.said:
        say(sentence)
    read_on(going.lanes, going.folder, going.checkpoints)
