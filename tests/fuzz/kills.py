"""Ends commands at random moments, most of them without a warning, and looks at what they leave.

What was read by then can be read again, says that it was killed, and nobody is kept from beginning anew.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from analysis.lab.folder import read
from analysis.maps.stretch import Stretch
from analysis.runs.about import about_of
from analysis.runs.reader import load
from analysis.runs.status import status_of

from .parsers import Row
from .seeds import model as tiny_model

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [f"analysis.{m}" for m in ("cli.main", "models.loading", "engine.stream", "lab.training")] + ["tests.fuzz.seeds"]
)
LONGEST = 2.5
"""Seconds within which a command is ended, from when its folder is there."""
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def commands(folder: Path) -> dict[str, list[str]]:
    """Commands that would take longer."""
    from_model = ["--model", str(folder / "model"), "--text", str(folder / "ids.npy"), "--device", "cpu"]
    lanes = ["--policy", "window:window=8", "--policy", "streaming:sinks=4,window=12"]
    return {
        "stream": ["stream", *from_model, *lanes, "--chunk", "16"],
        "capture": ["capture", *from_model, "--tokens", "20000", "--policy", "window:window=64"],
        "emergence": ["emergence", "steps=20000,width=32,length=64,batch=8", "--every", "5"],
    }


def rows(seed: int, tries: int):
    """Ends each command so often."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model(folder / "model")
        np.save(folder / "ids.npy", np.random.default_rng(seed).integers(3, 250, 60_000))
        for command, words in commands(folder).items():
            failures, ended = [], 0
            for i in range(tries):
                place = folder / f"{command}-{i}"
                how, after = chance.choice(SIGNALS), chance.uniform(0, LONGEST)
                code = end([*words, "--out", str(place)], place, how, after)
                ended += code != 0
                if wrong := CHECKS[command](place, code):
                    failures.append(f"{how.name} after {after:.2f} s, status {code}: {wrong}")
            yield Row(command, tries, ended, failures)


def run_command(words: list[str]) -> None:
    """A command, in a process of its own that has imported everything already."""
    from analysis.cli.main import main

    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    # A shell lets what it runs in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["analysis", *words]
    main()


def end(
    words: list[str], place: Path, how: signal.Signals, after: float, target: Callable[[list[str]], None] = run_command
) -> int:
    """The status of a command that was ended some time after its folder was there; `target`: runs it."""
    process = PROCESSES.Process(target=target, args=(words,))
    process.start()
    until = time.monotonic() + 120
    while not place.exists() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.005)
    process.join(after)
    with suppress(ProcessLookupError):
        os.kill(process.pid, how)
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
        return 1
    return process.exitcode


def _stream(place: Path, code: int) -> str:
    if not (place / "run.json").exists():
        return "" if code < 0 else "no run.json"
    try:
        run, about = load(place), about_of(place)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    wanted = {-9: "killed", 130: "interrupted", 0: "finished"}.get(code)
    if about["status"] != wanted or run.status != wanted:
        return f"its status is {about['status']}"
    for track in run.tracks:
        if (track.spans[-1][1] if track.spans else 1) != len(track.nll) + 1 or not np.isfinite(track.nll.view()).all():
            return "a lane does not end with a whole chunk"
    return ""


def _capture(place: Path, code: int) -> str:
    left = sorted(p.name for p in place.iterdir()) if place.exists() else []
    try:
        Stretch(place)
    except ValueError as e:
        if code not in (-9, 130):
            return f"status {code}, and {e}"
        if code == 130 and left:
            return f"it left {left}"
        return "" if "\n" not in str(e) else str(e)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return "" if not (code < 0 and ".capturing" in left and "stretch.json" not in left) else "half a stretch opens"


def _emergence(place: Path, code: int) -> str:
    if not (place / "run.json").exists():
        return "" if code < 0 else "no run.json"
    status = status_of(json.loads((place / "run.json").read_text()), place)
    if status != {-9: "killed", 130: "interrupted", 0: "finished"}.get(code):
        return f"its status is {status}"
    try:
        (trained,) = read(place)
    except Exception as e:
        # It may have been ended before it measured anything.
        early = code and not (place / "curves.csv").exists() and "has measured nothing yet" in str(e)
        return "" if early else f"{type(e).__name__}: {e}"
    steps = trained.curves["step"]
    return "" if np.array_equal(steps, np.arange(len(steps)) * 5) else "moments are missing"


CHECKS = {"stream": _stream, "capture": _capture, "emergence": _emergence}
