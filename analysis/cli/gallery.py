"""The command that records the gallery: stories that come with the project, each a folder of a real run."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from .. import COMMAND, files, texts
from ..experiments.presets import CHATS, PRESETS, Preset
from ..policies import parse
from ..runs.library import GALLERY, Label
from ..runs.reading import begun
from ..runs.spec import Spec
from ..runs.status import LABEL
from ..settings import quoted
from . import options
from .chat import chat
from .console import out, say
from .ending import as_draft
from .lab import emergence
from .waiting import Bars

CHAT, TRAINING = "breakdown", "emergence"
TITLES = {name: story.title for name, story in PRESETS.items() if story.recorded} | {
    CHAT: CHATS[CHAT].title,
    TRAINING: "A sink that grows",
}
"""The stories of the gallery, and what they are called."""
CHUNK = 128


def gallery(
    names: Annotated[list[str] | None, typer.Argument(help="stories; without one, all of them")] = None,
    out_folder: Annotated[Path, options.path("folder of the gallery", "--out")] = GALLERY,
) -> None:
    """Record stories of the gallery anew, from real runs; each takes the place of the one before when it is whole."""
    if unknown := [name for name in names or () if name not in TITLES]:
        raise ValueError(f"the gallery has no story {quoted(unknown[0])}: choose from {', '.join(TITLES)}")
    for name in names or TITLES:
        # What is recorded takes the place of a story, and of nothing that somebody else keeps under its name.
        if os.path.lexists(place := out_folder / name) and not (place / LABEL).is_file():
            raise ValueError(
                f"{place} is no story of a gallery, and would be replaced: choose another folder for --out"
            )
    for name in names or TITLES:
        try:
            out_folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise files.unwritten(out_folder, e) from e
        with tempfile.TemporaryDirectory(dir=out_folder, prefix=".") as draft:
            place = Path(draft) / name
            try:
                with as_draft():
                    record(name, place)
            except (KeyboardInterrupt, typer.Exit):
                say(
                    f"Interrupted: nothing of {TITLES[name]} is kept, so it cannot be resumed, and what was recorded "
                    f"before stays. To begin it again: {COMMAND} gallery {name}"
                )
                raise typer.Exit(130) from None
            files.write(place / LABEL, msgspec.json.encode(Label(TITLES[name])).decode() + "\n")
            shutil.rmtree(out_folder / name, ignore_errors=True)
            place.rename(out_folder / name)
        held = sum(f.stat().st_size for f in (out_folder / name).rglob("*") if f.is_file())
        say(f"{TITLES[name]}: {out_folder / name}, {held / 1e6:.2f} MB")


def record(name: str, place: Path) -> None:
    """Put a real run of a story into a new folder."""
    if name == TRAINING:
        emergence([f"attention={kind}" for kind in ("softmax", "relu")], out_folder=place, device="cpu")
    elif name == CHAT:
        story = CHATS[name]
        how: dict[str, Any] = {"script": story.script, "max_new": story.max_new, "device": "cpu"}
        chat(policy=list(story.policies), out_folder=place, **how)
    else:
        read(PRESETS[name], place)


def spec_of(story: Preset) -> Spec:
    """What the lanes of a story are asked for the gallery: numbers that any machine repeats."""
    return Spec("embedded", "hamlet", story.policies, story.recorded, CHUNK, device="cpu")


def read(story: Preset, place: Path) -> None:
    """Read what a story has recorded, lane by lane at the same position, with its switches, into a new run folder."""
    from ..engine.stream import next_lane, open_lanes
    from ..models.loading import load
    from ..runs.folder import Folder
    from ..runs.switches import carry_out

    spec, source = spec_of(story), texts.read("hamlet")
    model = load(**spec.loading)
    run, ids = begun(spec, model, source)
    lanes, total = open_lanes(model, ids, [parse(p) for p in spec.policies]), len(ids)
    folder = Folder(place, run, text_sha256=source.sha256, weights_sha256=model.sha256, tokens=total)
    folder.pieces(-1, 0, texts.token_texts(model.tokenizer, ids))
    waiting = sorted(story.switches, key=lambda s: s.position)
    with Bars(out) as bar:
        task = bar.add_task(story.title, total=total * len(lanes), completed=len(lanes))
        while (lane := next_lane(lanes, waiting[0].position if waiting else total)) is not None or waiting:
            if lane is None:
                switch = waiting.pop(0)
                folder.event("switch", **carry_out(lanes[switch.lane], parse(switch.policy), pin=switch.pin))
                continue
            folder.append(lane.read(spec.chunk, waiting[0].position if waiting else None))
            bar.update(task, completed=sum(lane.position for lane in lanes))
    folder.finish("finished")
