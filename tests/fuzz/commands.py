"""Fuzzes the command line: whole commands with values, options and places swapped for others.

Each ends with status 0, or with 2 and one line; nothing that lay there before is changed by any of them.
"""

import hashlib
import io
import os
import random
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image

from analysis import figures
from analysis.cli import main as cli
from analysis.experiments import grid
from analysis.policies import POLICIES

from .parsers import FORBIDDEN, Row
from .spoil import NASTY, spoiled_text

SECONDS = 60
"""No command takes longer for these small models and texts."""
MODEL = ("--model", "{model}", "--text", "{ids}", "--device", "cpu")
WHOLE = {
    "stream": [*MODEL, "--tokens", "20", "--policy", "window:window=4", "--chunk", "8", "--out", "{new}"],
    "chat": [
        "--model", "{model}", "--device", "cpu", "--policy", "dense", "--script", "{script}", "--max-new", "2",
        "--temperature", "1", "--top-k", "3", "--seed", "1", "--out", "{new}",
    ],
    "knockout": [*MODEL, "--tokens", "20", "--layer", "0", "--kind", "values", "--out", "{new}.csv"],
    "reproduce": ["sinks", *MODEL, "--tokens", "20", "--cache", "12", "--out", "{new}"],
    "capture": [
        *MODEL, "--tokens", "20", "--policy", "streaming:sinks=2,window=6", "--switch", "9=window:window=3",
        "--out", "{new}",
    ],
    "emergence": ["steps=2,width=16,vocabulary=24,length=16,batch=2", "--every", "1", "--out", "{new}"],
    "runs": ["export", "run", "--out", "{new}.zip", "--runs", "{runs}"],
    "figure": ["memory", "--run", "{run}", "--out", "{new}.csv", "--venue", "acl", "--points", "8", "--dpi", "60"],
    "report": ["--run", "{run}", "--out", "{new}.html", "--lane", "0", "--stretch", "{stretch}", "--head", "0.1"],
    "figures": [], "models": [], "policies": [], "texts": [],
}  # fmt: skip
PLACES = (
    "{run}", "{growing}", "{chat}", "{stretch}", "{trainings}", "{model}", "{model}.gguf", "{ids}", "{script}",
    "{text}", "{foreign}", "{foreign}/tokens.parquet", "{foreign}/keys.npy", "{foreign}/mine.csv",
    "{foreign}/mine.png", "{new}", "{run}/sinks.npz", "{run}/run.json", "{run}/new", "{stretch}/keys.npy",
    "{trainings}/0/maps.npz", "{new}.svg", "/dev/zero", "/dev/null", "/dev/null/x", "/proc/self/mem", "/proc/x/y",
    "/root", "/", ".", "nobody/nothing", "hamlet",
)  # fmt: skip
FIXED = ("--model", "--text", "--device", "--jobs", "--backend")
"""Without these a command would take its own model, text and machines, which takes long."""


def line(chance: random.Random) -> list[str]:
    """A command with something swapped, put in, or left out."""
    name = chance.choice(list(WHOLE))
    words = [name, *WHOLE[name]]
    if name == "figure" and chance.random() < 0.7:
        kind = chance.choice(list(figures.FIGURES.values()))
        words[1] = str(kind()) if chance.random() < 0.5 else kind.name
        places = {"run": "{run}", "stretch": "{stretch}", "trainings": "{trainings}"}
        words[3] = places.get(kind.needs, "{runs}")
        words[5] = "{new}." + chance.choice(("pdf", "svg", "png", "csv", "npz"))
    if name in ("stream", "capture") and chance.random() < 0.4:
        words[words.index("--policy") + 1] = str(chance.choice(list(POLICIES.values()))())
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        at = chance.randrange(1, len(words) + 1)
        how = chance.randrange(7)
        if at == len(words) or how == 0:
            words.insert(at, chance.choice((*NASTY, *PLACES, "--help", "--out", "--unknown", "--tokens")))
        elif words[at].startswith("--"):
            if how == 1 and words[at] not in FIXED:
                del words[at : at + 2]
        elif how in (2, 3):
            words[at] = chance.choice(PLACES)
        elif how == 4:
            words[at] = spoiled_text(words[at], chance)
        else:
            words[at] = chance.choice(NASTY)
    if name == "emergence" and words[1] == "--out":
        # It would take the recipe for its folder, and without one the default is trained, for a minute.
        del words[1]
    return words


class Sandbox:
    """Folders of every kind, and some of somebody else; knows whether one of them has changed."""

    def __init__(self, seeds: Path, work: Path) -> None:
        self.names = {k: str(seeds / k) for k in ("run", "growing", "chat", "stretch", "trainings", "model")}
        files = seeds / "files"
        self.names |= {"ids": str(files / "ids.npy"), "script": str(files / "script.txt"), "runs": str(seeds)}
        self.names |= {"text": str(files / "text.txt"), "foreign": str(seeds / "foreign")}
        self.seeds, self.work, self.count = seeds, work, 0
        foreign = seeds / "foreign"
        foreign.mkdir(exist_ok=True)
        for name in ("tokens.parquet", "keys.npy", "mine.csv", "mine.html", "run.json", "table.csv"):
            (foreign / name).write_text("mine")
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(foreign / "mine.png")
        self.before = self.state()

    def state(self) -> dict[str, str]:
        """A digest of every file that was there."""
        found = sorted(p for p in self.seeds.rglob("*") if p.is_file())
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}

    def changed(self) -> list[str]:
        """Files that are not as they were; new ones are nobody's loss."""
        before, self.before = self.before, self.state()
        return [name for name, digest in before.items() if self.before.get(name) != digest]

    def words(self, line: list[str]) -> list[str]:
        self.count += 1
        names = {**self.names, "new": str(self.work / f"new{self.count}")}
        for name, value in names.items():
            line = [word.replace("{" + name + "}", value) for word in line]
        # As a shell hands them over.
        return [word.replace("\0", "") for word in line]


@contextmanager
def _quiet():
    """The streams of a command, without a terminal."""
    out, err, stdin = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO("Who are you?\n")
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield out, err
    finally:
        sys.stdin = stdin


def judged(words: list[str]) -> tuple[int, str]:
    """The status of a command, and what is wrong with how it ended; empty where nothing is."""
    sys.argv, began, code = ["analysis", *words], time.monotonic(), 0
    with _quiet() as (_, err):
        try:
            cli.main()
        except SystemExit as e:
            code = e.code or 0
        except BaseException as e:
            where = [f for f in traceback.extract_tb(e.__traceback__) if "/analysis/" in f.filename][-1]
            return 1, f"{type(e).__name__} {str(e)[:200]!r} at {Path(where.filename).name}:{where.lineno}"
    said = err.getvalue()
    if code not in (0, 2):
        return code, f"status {code}: {said[-300:]!r}"
    if time.monotonic() - began > SECONDS:
        return code, f"took {time.monotonic() - began:.0f} s"
    errors = [x for x in said.splitlines() if x.startswith("error: ")]
    if code == 2 and (len(errors) != 1 or not said.endswith(errors[0] + "\n") or len(errors[0]) > 800):
        return code, f"says {said[-500:]!r}"
    return code, f"says {said[-300:]!r}" if FORBIDDEN.search(said) else ""


def rows(seeds: Path, seed: int, tries: int):
    """So many command lines, a row for each command."""
    chance = random.Random(seed)
    counts: dict[str, list] = {name: [0, 0, []] for name in WHOLE}
    here, patience, grid.PATIENCE = Path.cwd(), grid.PATIENCE, 0.2
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "a" / "b" / "c" / "work"
        work.mkdir(parents=True)
        os.chdir(work)
        argv = sys.argv
        try:
            box = Sandbox(seeds, work)
            for i in range(tries):
                words = line(chance)
                count = counts[words[0]]
                code, wrong = judged(box.words(words))
                count[0] += 1
                count[1] += code == 2
                if not wrong and (i % 20 == 19 or i == tries - 1) and (changed := box.changed()):
                    wrong = f"this or one of the twenty before changed {changed}"
                if wrong:
                    count[2].append(f"{words}: {wrong}")
        finally:
            sys.argv, grid.PATIENCE = argv, patience
            os.chdir(here)
    for name, (tried, refused, failures) in counts.items():
        yield Row(name, tried, refused, failures)
