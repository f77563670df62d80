"""The command that trains very small transformers."""

from typing import Annotated

import typer
from rich.table import Table

from .. import files
from . import options
from .console import new_folder, out, right, say
from .waiting import Bars


def emergence(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="key=value,key=value: attention, steps, seed, rate …; one for each model")
    ] = None,
    every: Annotated[int, typer.Option(help="steps between two measurements")] = 20,
    device: options.Device = "cpu",
    out_folder: options.RunFolder = None,
    runs: options.Runs = None,
) -> None:
    """Train very small transformers and see whether a sink grows.  Ctrl-C ends it, and keeps what was measured."""
    from ..lab.folder import TrainingWriter
    from ..lab.recipe import ATTENTIONS, Recipe
    from ..lab.training import Training
    from ..models.devices import pick_device

    asked = [Recipe.parse(r) for r in recipes or [""]]
    if every < 1:
        raise ValueError(f"at least 1 step lies between two measurements, not {every}")
    place = new_folder(out_folder, "emergence", runs)
    if next(iter([*place.glob("run.json"), *place.glob("*/run.json")]), None):
        raise ValueError(f"{place} holds a run already: choose another folder for --out")
    if len(asked) > 1:
        files.new_folder(place)
    table = Table("Attention", *map(right, ("Steps", "Weight on token 0", "Its value's norm", "Copied", "All tokens")))
    stopped, failed = False, list[Exception]()
    with Bars(out) as bar:
        for i, recipe in enumerate(asked):
            training = Training(recipe, pick_device(device))
            folder = place if len(asked) == 1 else place / f"{i}-{recipe.attention}"
            measured, task = [], bar.add_task(ATTENTIONS[recipe.attention], total=recipe.steps)
            kept = TrainingWriter(folder, training, every)
            try:
                for now in training.measurements(every):
                    measured.append(now)
                    kept.add(now)
                    bar.update(task, completed=now.step)
            except KeyboardInterrupt:
                stopped = True
            except Exception as e:
                # Whatever it is, the other trainings have no part in it.
                failed.append(e)
            kept.finish("finished" if training.done else "interrupted" if stopped else "failed")
            if measured:
                first, last = measured[0], measured[-1]
                table.add_row(
                    ATTENTIONS[recipe.attention], f"{last.step:,}", f"{first.sink:.2f} → {last.sink:.2f}",
                    f"{first.value:.2f} → {last.value:.2f}", f"{last.copied:.3f}", f"{last.loss:.3f}",
                )  # fmt: skip
            if stopped:
                break
    out.print(table)
    out.print("Losses in nats a token; norms as times those of the other values.")
    ended = "Interrupted" if stopped else "Failed" if failed else "Finished"
    say(f"{ended}. It lies in {place}")
    if stopped:
        raise typer.Exit(130)
    for e in failed:
        raise e
