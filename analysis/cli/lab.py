"""The command that trains very small transformers."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .. import files
from . import options
from .console import new_folder, note, out, print_table, right, say
from .ending import Brake, say_how_to_go_on, say_where
from .waiting import Bars

if TYPE_CHECKING:
    from ..lab.folder import TrainingWriter


def emergence(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="key=value,key=value: attention, steps, seed, rate …; one for each model")
    ] = None,
    every: Annotated[int, typer.Option(help="steps between two measurements")] = 20,
    device: options.Device = "cpu",
    out_folder: options.RunFolder = None,
    runs: options.Runs = None,
) -> None:
    """Train very small transformers and see whether a sink grows.  Ctrl-C ends it; `resume` goes on."""
    from ..lab.folder import TrainingWriter
    from ..lab.recipe import Recipe
    from ..lab.training import Training
    from ..models.devices import pick_device

    if empty := [r for r in recipes or () if not r.replace(",", "").strip()]:
        raise ValueError(f"{empty[0]!r} says nothing about a model: give settings, such as steps=200, or leave it out")
    asked = [Recipe.parse(r) for r in recipes] if recipes else [Recipe()]
    if every < 1:
        raise ValueError(f"every must be at least 1 step, not {every}")
    # What is refused is refused before there is a folder, for which old runs may have to go.
    chosen = pick_device(device)
    trainings = [Training(recipe, chosen) for recipe in asked]
    with new_folder(out_folder, "emergence", runs) as place:
        if next(iter([*place.glob("run.json"), *place.glob("*/run.json")]), None):
            raise ValueError(f"{place} holds a run already: choose another folder for --out")
        folders = [place]
        if len(asked) > 1:
            files.new_folder(place)
            folders = [place / f"{i}-{recipe.attention}" for i, recipe in enumerate(asked)]
        # All of them at once, so that a folder says what it was asked for, whatever comes.
        writers = list[TrainingWriter]()
        try:
            for folder, training in zip(folders, trainings, strict=True):
                writers.append(TrainingWriter(folder, training, every))
        except BaseException:
            for writer in writers:
                writer.discard()
            raise
        _train(writers, place)


def tiny(
    out_folder: Annotated[Path, options.path("a new folder, which --model then takes", "--out", needed=True)],
    steps: Annotated[int | None, typer.Option(help="steps of training (default: as it comes with Sinkscope)")] = None,
) -> None:
    """Train the tiny model with learned sinks (tiny-gpt-oss) anew, on the bundled plays but Hamlet."""
    from ..lab import own_sink

    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    files.new_folder(out_folder)
    count = steps or own_sink.STEPS
    model, texts = own_sink.network(), own_sink.written()
    # Before minutes of training that could not be kept.
    own_sink.check_room(model, out_folder)
    try:
        with Bars(out) as bar:
            task = bar.add_task("Training", total=count)
            for _ in own_sink.train(model, texts.ids, count):
                bar.advance(task)
    except KeyboardInterrupt:
        with suppress(OSError):
            out_folder.rmdir()
        say("Interrupted: this training keeps nothing before its end. The same command begins again.")
        raise typer.Exit(130) from None
    own_sink.save(model, texts.tokenizer, out_folder)
    say(f"Finished. It lies in {out_folder}")


def go_on(place: Path, folders: list[Path]) -> None:
    """Let the trainings in these folders of one go on where they stopped."""
    from ..lab.recipe import names_of
    from ..lab.resume import resumed, stopped

    found, going = stopped(folders), []
    names = names_of([about.recipe for _, about in found])
    with Bars(out) as bar:
        for name, (folder, about) in zip(names, found, strict=True):
            task = bar.add_task(f"Again: {name}", total=about.recipe.steps, visible=False)
            going.append(resumed(folder, about, lambda step, task=task: bar.update(task, completed=step, visible=True)))
    for name, training in zip(names, going, strict=True):
        for sentence in training.said:
            say(f"{name}: {sentence}")
    _train([training.open() for training in going], place)


def _train(writers: "list[TrainingWriter]", place: Path) -> None:
    """Train to the end, one after another, and print a table.  Ctrl-C, or a polite kill, ends it after the step that is
    being made; a second one at once."""
    from ..lab.recipe import names_of

    table = Table("Attention", *map(right, ("Steps", "Weight on token 0", "Its value's norm", "Copied", "All tokens")))
    stopped, whole, failed = False, True, list[Exception]()
    with Bars(out) as bar, Brake() as brake:
        for writer, name in zip(writers, names_of([w.training.recipe for w in writers]), strict=True):
            training, status = writer.training, "interrupted"
            task = bar.add_task(name, total=training.recipe.steps, completed=training.step)
            try:
                for now in () if brake.pressed else training.moments(writer.every):
                    if now is not None:
                        writer.add(now)
                    writer.save()
                    bar.update(task, completed=training.step)
                    if brake.pressed:
                        break
                status = "finished" if training.done else "interrupted"
            except KeyboardInterrupt:
                whole = False
            except Exception as e:
                # Whatever it is, the other trainings have no part in it.
                failed.append(e)
                status = "failed"
            stopped |= status == "interrupted"
            writer.finish(status, whole=whole)
            for warning in writer.warnings:
                note(warning)
            if writer.measurements:
                first, last = writer.measurements[0], writer.measurements[-1]
                table.add_row(
                    name, f"{last.step:,}", f"{first.sink:.2f} → {last.sink:.2f}",
                    f"{first.value:.2f} → {last.value:.2f}", f"{last.copied:.3f}", f"{last.loss:.3f}",
                )  # fmt: skip
    print_table(table)
    out.print("Losses in nats a token; norms as times those of the other values.")
    ended = "Interrupted" if stopped else "Failed" if failed else "Finished"
    say_where(f"{ended}. It lies", place)
    if stopped:
        say_how_to_go_on(place)
        raise typer.Exit(130)
    for e in failed:
        raise e
