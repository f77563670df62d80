"""The command that lets a run go on where it stopped."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..policies import parse
from ..runs.facts import ModelFacts
from ..runs.spec import TYPED
from ..runs.stopped import text_of
from . import lab, options, results
from .chat import talk
from .console import out, say
from .ending import opened
from .reading import capture_again, read_on
from .waiting import Bars, loading

if TYPE_CHECKING:
    from ..chat.resume import ResumedChat
    from ..runs.resume import StoppedRun


def resume(
    folder: Annotated[
        Path,
        typer.Argument(parser=options.named, metavar="folder", help="the folder of a run, or its name in the library"),
    ],
    tokens: Annotated[int | None, typer.Option(help="read until there are so many tokens (default: as asked)")] = None,
) -> None:
    """Go on where a run stopped: interrupted, killed, or finished with fewer tokens than its text has.

    Of knock-outs, measures, costs, recall and verdicts it computes what is missing; a capture that was cut off begins
    again.
    """
    from ..lab.folder import folders_of
    from ..maps.capture import cut_off
    from ..runs import library
    from ..runs import resume as runs
    from ..runs.about import about_of
    from ..runs.result import KINDS

    folder = library.named(folder)
    trainings, captured = folders_of(folder), cut_off(folder)
    if tokens is not None and (trainings or captured or about_of(folder).get("kind") in KINDS):
        raise ValueError("this goes on to the end of what it was asked for: leave out --tokens")
    if trainings:
        lab.go_on(folder, trainings)
        return
    if captured is not None:
        capture_again(folder, captured)
        return
    if about_of(folder).get("kind") in KINDS:
        results.go_on(folder)
        return
    asked = runs.stopped(folder, tokens)
    spec = asked.spec
    chat = asked.run.kind == "chat"
    source = None if chat else text_of(spec.text)
    prompts, digest = _script(asked) if chat else (None, "")
    with loading(out) as tell:
        from ..chat import resume as chats
        from ..maps.recorder import SIDE, MapRecorder, heads_of
        from ..models.loading import load

        network = load(**spec.loading, progress=tell)
    options.say_changed(spec)
    heads = heads_of(asked.maps, ModelFacts.of(network))
    with Bars(out) as bars:
        tasks = [
            bars.add_task(f"Again: {parse(policy).label}", total=len(track.nll) + 1, visible=False)
            for policy, track in zip(spec.policies, asked.run.tracks, strict=True)
        ]

        def progress(lane: int, position: int) -> None:
            """Show how far a lane has read again, where it does."""
            bars.update(tasks[lane], completed=position, visible=True)

        if source is None:
            going = chats.resumed(asked, network, text_sha256=digest, progress=progress)
        else:
            going = runs.resumed(asked, network, source, history=SIDE if heads else 0, progress=progress)
    with opened(lambda: going.folder) as reopened:
        for sentence in going.said:
            say(sentence)
        if isinstance(going, runs.ResumedReading):
            recorder = MapRecorder(folder, len(going.lanes), len(going.read.ids), heads) if heads else None
            read_on(going.lanes, reopened, going.checkpoints, recorder, going.switches)
        else:
            whole = going.about.get("scripted", len(prompts or ()))
            talk(going.lanes, _left(going, prompts), reopened, going.checkpoints, whole)


def _left(going: "ResumedChat", script: list[str] | None) -> list[str] | None:
    """The prompts that are left to say; none where they are typed from now on.  `script`: what it began with."""
    left = going.left(script or ())
    turns = {len(lane.turns) for lane in going.lanes}
    if left or "pending" not in going.about:
        return left if left or script is not None else None
    # A script is over with its last answer.
    unfinished = len(turns) > 1 or any(lane.busy for lane in going.lanes)
    return [] if script is not None and unfinished else None


def _script(asked: "StoppedRun") -> tuple[list[str] | None, str]:
    """The prompts of the script that a conversation began with, and their digest; none where it was typed, or the
    script is not here and a checkpoint knows what is left of it.  Raises ValueError where all of them were said."""
    from ..chat.scripts import read_script
    from ..runs.checkpoint import Checkpoints

    if asked.spec.text == TYPED or not asked.text_sha256:
        return None, ""
    try:
        prompts, digest = read_script(asked.spec.text)
    except ValueError:
        if "pending" not in Checkpoints(asked.path).about():
            raise
        # It was uploaded to a page.
        return None, asked.text_sha256
    if asked.run.status == "finished":
        raise ValueError(f"all {len(prompts)} prompts of this script were said: begin a conversation of its own")
    return prompts, digest
