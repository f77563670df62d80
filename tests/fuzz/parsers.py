"""Fuzzes whatever reads what a person writes or hands over: strings, JSON, and the files of every folder.

Each try either gives what was asked for, or is refused with one sentence (ValueError); all else is a failure.
"""

import io
import random
import re
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis import figures, texts
from analysis.chat.scripts import script_from_bytes
from analysis.engine.stream import open_lanes
from analysis.figures.inputs import open_input
from analysis.figures.notebook import show
from analysis.lab.folder import read
from analysis.lab.recipe import Recipe
from analysis.maps.atlas import Atlas
from analysis.maps.region import Region
from analysis.maps.stretch import Stretch
from analysis.models import loading as models
from analysis.policies import POLICIES, parse
from analysis.runs import library
from analysis.runs.reader import load
from analysis.runs.spec import Sampling, Spec

from .seeds import Named
from .spoil import NASTY, spoiled, spoiled_json, spoiled_text

SECONDS = 20
"""No reader takes longer for these small files."""
FORBIDDEN = re.compile(r"pickle|trust|Traceback|site-packages|0x[0-9a-f]{8}|<class|object at", re.IGNORECASE)
"""What no sentence says."""


class Row(NamedTuple):
    """What was tried, and what went wrong."""

    name: str
    tries: int
    refused: int
    failures: list[str]


def judged(work: Callable[[], Any], what: str) -> str | bool:
    """Whether it was refused, or what is wrong with how it was."""
    began, said = time.monotonic(), io.StringIO()
    try:
        with redirect_stderr(said):
            work()
        refused = False
    except ValueError as e:
        refused, sentence = True, str(e)
        if not sentence.strip() or "\n" in sentence or len(sentence) > 700 or FORBIDDEN.search(sentence):
            return f"{what}: says {sentence[:300]!r}"
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)
        ours = [f for f in where if "/analysis/" in f.filename] or where
        return f"{what}: {type(e).__name__} {str(e)[:160]!r} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
    if time.monotonic() - began > SECONDS:
        return f"{what}: took {time.monotonic() - began:.0f} s"
    if "Traceback" in said.getvalue():
        return f"{what}: printed {said.getvalue()[-300:]!r}"
    return refused


def rows(seeds: Path, seed: int, tries: int) -> Iterator[Row]:
    """Tries each reader so often."""
    chance = random.Random(seed)
    yield _row("policy strings", tries, lambda: _policy(chance))
    yield _row("figure strings", tries, lambda: _figure(chance))
    yield _row("recipe strings", tries, lambda: _recipe(chance))
    whole = Spec("embedded", "hamlet", ("dense", "streaming:sinks=4,window=60"), 100, sampling=Sampling()).to_json()
    yield _row("Spec JSON", tries, lambda: _spec(whole, chance))
    data = [p.read_bytes() for p in sorted(seeds.rglob("*")) if p.is_file() and p.stat().st_size < 2**20]
    for name in ("text.txt", "ids.npy", "script.txt", "script.jsonl"):
        yield _row(f"files/{name}", tries, lambda f=seeds / "files" / name: _loose(f, chance, data))
    with tempfile.TemporaryDirectory() as folder:
        for kind, use in USES.items():
            place = Path(folder) / kind
            for file in sorted(p for p in (seeds / kind).rglob("*") if p.is_file() and not p.name.startswith(".")):
                spoil = partial(_folder, seeds / kind, file, place, use, chance, data)
                yield _row(str(file.relative_to(seeds)), tries, spoil)
        yield _row("model.gguf", max(1, tries // 4), lambda: _gguf(seeds / "model.gguf", Path(folder), chance, data))


def _row(name: str, tries: int, one: Callable[[], tuple[Callable[[], Any], str]]) -> Row:
    refused, failures = 0, []
    for _ in range(tries):
        found = judged(*one())
        refused += found is True
        if isinstance(found, str):
            failures.append(found)
    return Row(name, tries, refused, failures)


def _policy(chance: random.Random):
    kind = chance.choice(list(POLICIES.values()))
    text = spoiled_text(settings(str(kind()), chance), chance)

    def work() -> None:
        policy = parse(text)
        assert parse(str(policy)) == policy, f"{policy} is read as something else"
        assert policy.label

    return work, repr(text)


def settings(text: str, chance: random.Random) -> str:
    """Some of the values are others."""
    name, colon, settings = text.partition(":")
    parts = filter(None, settings.split(","))
    return name + colon + ",".join(_other(p, chance) if chance.random() < 0.2 else p for p in parts)


def _other(part: str, chance: random.Random) -> str:
    return part.partition("=")[0] + "=" + chance.choice(NASTY)


def _figure(chance: random.Random):
    text = spoiled_text(settings(str(chance.choice(list(figures.FIGURES.values()))()), chance), chance)
    return lambda: figures.parse(text), repr(text)


def _recipe(chance: random.Random):
    text = spoiled_text(settings("x:" + str(Recipe()).partition(":")[2], chance)[2:], chance)
    return lambda: Recipe.parse(text), repr(text)


def _spec(whole: str, chance: random.Random):
    text = spoiled_json(whole, chance) if chance.random() < 0.7 else spoiled_text(whole, chance)

    def work() -> None:
        spec = Spec.from_json(text)
        assert Spec.from_json(spec.to_json()) == spec
        assert hash(spec) and spec.command()

    return work, repr(text)


def _loose(file: Path, chance: random.Random, others: list[bytes]):
    data, name = file.read_bytes(), file.name
    as_bytes = name.endswith(".npy") or chance.random() < 0.5
    made = spoiled(data, chance, others) if as_bytes else _spoiled_lines(data, chance)

    def work() -> None:
        if name.startswith("script"):
            assert all(p.strip() for p in script_from_bytes(made, name)[0])
            return
        text = texts.from_bytes(made, name)
        assert (text.ids is None) != (text.content is None)

    return work, repr(made[:120])


def _spoiled_lines(data: bytes, chance: random.Random) -> bytes:
    text = data.decode()
    if text.startswith("{") and chance.random() < 0.6:
        lines = text.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = spoiled_json(lines[at], chance)
        text = "\n".join(lines)
    return spoiled_text(text, chance).encode("utf-8", "surrogatepass")


def _folder(whole: Path, file: Path, place: Path, use: Callable, chance: random.Random, others: list[bytes]):
    """The folder with one file of it spoiled."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    target = place / file.relative_to(whole)
    how, data = chance.random(), file.read_bytes()
    if how < 0.05:
        target.unlink()
        what = "gone"
    elif how < 0.08:
        target.unlink()
        target.mkdir()
        what = "a folder"
    elif file.suffix in (".json", ".jsonl") and how < 0.6:
        lines = data.decode().splitlines() if file.suffix == ".jsonl" else [data.decode()]
        made = "\n".join(spoiled_json(line, chance) for line in lines).encode()
        target.write_bytes(made)
        what = repr(made[:400])
    else:
        made = spoiled(data, chance, others)
        target.write_bytes(made)
        differs = (i for i, (a, b) in enumerate(zip(made, data, strict=False)) if a != b)
        what = f"{len(made)} bytes for {len(data)}, other from {next(differs, 'the end')} on"

    def work() -> None:
        # A list shows what it can of every folder, and refuses none.
        all_are_listed(place.parent)
        use(place)

    return work, what


def all_are_listed(place: Path) -> None:
    """Folders are listed as runs, or with one sentence of what is wrong with them."""
    for found in library.entries(place):
        assert found.kind if not found.problem else len(found.problem) < 700 and found.problem.isprintable()
        assert not FORBIDDEN.search(found.problem) and "inside Sinkscope" not in found.problem, found.problem


def use_run(place: Path) -> None:
    """A run that is opened is drawn, too, and shown in a notebook."""
    run = load(place)
    assert all(len(t.nll) + 1 == (t.spans[-1][1] if t.spans else 1) for t in run.tracks)
    about = open_input(place, "run").about
    assert about.get("status", "") != "running" or run.status == "running"
    for name in ("perplexity", "memory", "sink-grid", "sink-depth"):
        _numbers(figures.parse(name), run)
    _numbers(figures.parse("budget"), place.parent)
    with suppress(ValueError):
        show(run)


def _numbers(figure, source) -> None:
    """What is drawn; that there is nothing yet may be said."""
    with suppress(ValueError):
        figure.numbers(source)


def use_stretch(place: Path) -> None:
    stretch = Stretch(place)
    atlas = Atlas(stretch, _adapted)
    end = min(stretch.tokens, 24)
    atlas.draw(0, 0, Region((0, end), (0, end)))


def use_trainings(place: Path) -> None:
    trained = read(place)
    for name in ("emergence", "emergence:curve=value", "emergence:curve=copied", "emergence-map"):
        figures.parse(name).numbers(trained)


def use_model(place: Path) -> None:
    model = models.load(str(place), device="cpu")
    if model.tokenizer is None:
        return
    text = texts.from_bytes(b"To be, or not to be", "x")
    ids = texts.tokenize(text, model.tokenizer)
    open_lanes(model, np.asarray(ids), [parse("window:window=4")])[0].read(8)


def _gguf(file: Path, folder: Path, chance: random.Random, others: list[bytes]):
    place, data = folder / "spoiled.gguf", file.read_bytes()
    made = _at_front(data, chance) if chance.random() < 0.5 else spoiled(data, chance, others)
    place.write_bytes(made)
    return lambda: models.load(str(place), device="cpu"), f"{len(made)} bytes for {len(data)}"


def _at_front(data: bytes, chance: random.Random) -> bytes:
    return spoiled(data[:4000], chance, []) + data[4000:]


USES = {
    "run": use_run, "growing": use_run, "chat": use_run, "stretch": use_stretch, "trainings": use_trainings,
    "model": use_model,
}  # fmt: skip
_adapted: Any = None
"""The network of the stretch that is spoiled."""


def prepare(seeds: Path) -> None:
    """What the readers need besides."""
    global _adapted
    _adapted = Named(models.load(str(seeds / "model"), device="cpu").network).adapted


def main(seed: int, tries: int) -> list[Row]:
    from .seeds import everything

    with tempfile.TemporaryDirectory() as folder:
        seeds = everything(Path(folder))
        prepare(seeds)
        return list(rows(seeds, seed, tries))
