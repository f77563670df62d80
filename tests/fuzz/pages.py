"""Ends the page's process at random moments while a story is read in it; its run goes on at a command line.

What the job had taken in is written down beside it, so that what the folder lacks is counted.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from analysis import texts
from analysis.models.loading import load as load_model
from analysis.runs.about import about_of
from analysis.runs.folder import Folder
from analysis.runs.reader import load
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.runs.switches import Switch
from tests.viewer import Viewer

from .kills import SIGNALS
from .parsers import Row
from .resumes import EVERY, LONGEST, go, wrong
from .seeds import model as tiny_model

ROOT = Path(__file__).parents[2]
TOKENS = 4_000
LANES = ("dense", "streaming:sinks=4,window=28", "h2o:budget=24,recent=4", "duo:full=50,sinks=2,window=16")
STORY = (
    Switch(800, 1, "window:window=32"),
    Switch(1_500, 0, "streaming:sinks=4,window=28,positions=text"),
    Switch(2_400, 1, "streaming:sinks=4,window=28", pin=True),
)
"""What happens to the lanes, before the kill or after it."""
TAKEN = "taken.txt"
"""Lane and end of every chunk that the job has taken in."""
STARTING = 120
"""Seconds within which a server answers and a run has begun, on a busy machine."""


def page(folder: str) -> None:
    """The reading page, with a reading that begins when somebody opens it."""
    import streamlit as st

    st.session_state.arrived, st.session_state.offered = "page" not in st.session_state, False
    st.session_state.page, st.session_state.returned = "", False
    if "run" not in st.query_params:
        st.query_params["run"] = begin(Path(folder))
    st.navigation([st.Page(ROOT / "app/views/read.py", default=True)], position="hidden").run()


def begin(folder: Path) -> str:
    """Begin a reading as a page does; returns its id."""
    from analysis.runs import checkpoint
    from app.jobs.reading import ReadingJob
    from app.jobs.registry import REGISTRY

    checkpoint.EVERY = EVERY
    spec, make = spec_of(folder), partial(ReadingJob, switches=STORY)
    job = REGISTRY.start(partial(_noted, spec=spec, text=texts.read(spec.text), make=make, folder=folder))
    return job.id


def spec_of(folder: Path) -> Spec:
    """What is read."""
    return Spec(str(folder / "model"), str(folder / "ids.npy"), LANES, chunk=32, device="cpu")


def unstopped(folder: Path) -> int:
    """Read the story in one go, into the folder `whole`; the status of that command."""
    spec, place = spec_of(folder), folder / "whole"
    text, model = texts.read(spec.text), load_model(**spec.loading)
    Folder(place, Run(spec), text_sha256=text.sha256, weights_sha256=model.sha256, switches=STORY)
    about = json.loads((place / "run.json").read_text())
    # As if it had been killed before its first chunk.
    (place / "run.json").write_text(json.dumps({**about, "process": {**about["process"], "began": 1.0}}))
    return go(["resume", str(place)])


def _noted(models, spec, text, make, folder: Path):
    """A job that writes down what it has taken in, before its folder has it."""
    job = make(spec, text, models)
    place, append = os.open(folder / TAKEN, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), job.run.append

    def noted(step, seconds=None):
        took = append(step, seconds)
        os.write(place, f"{step.lane} {step.start} {step.stop}\n".encode())
        return took

    job.run.append = noted
    return job


def rows(seed: int, tries: int) -> Generator[Row]:
    """Ends the server so often."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model(folder / "model")
        np.save(folder / "ids.npy", np.random.default_rng(seed).integers(3, 250, TOKENS))
        (folder / "main.py").write_text(f"from tests.fuzz.pages import page\n\npage({name!r})\n")
        if code := unstopped(folder):
            yield Row("page", 0, 0, [f"status {code} of the run that is not ended"])
            return
        failures, ended = [], 0
        for i in range(tries):
            how, after = chance.choice(SIGNALS), chance.uniform(0, LONGEST)
            try:
                place = end(folder, folder / f"library-{i}", how, after)
                ended += about_of(place)["status"] != "finished"
                found = lost(place, folder / TAKEN) or wrong(place, folder / "whole", 1)
            except Exception as e:
                found = f"{type(e).__name__}: {e}"
            if found:
                failures.append(f"{how.name} after {after:.2f} s: {found}")
        yield Row("reading of the page", tries, ended, failures)


def end(folder: Path, library: Path, how: signal.Signals, after: float) -> Path:
    """The folder of a reading whose server was ended so long after it had begun."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(folder / "main.py")]
    command += ["--server.headless=true", f"--server.port={port}"]
    where = {**os.environ, "PYTHONPATH": str(ROOT), "SINKSCOPE_RUNS": str(library)}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, env=where, stdin=quiet, stdout=quiet, stderr=quiet) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(lambda: _answers(address), server)
            viewer = Viewer(address)
            _wait(lambda: any(library.glob("*/run.json")), server)
            time.sleep(after)
            server.send_signal(how)
            with suppress(subprocess.TimeoutExpired):
                server.wait(30)
            if server.poll() is None:
                raise TimeoutError("the server has not ended")
            viewer.close()
        finally:
            server.kill()
    (place,) = library.iterdir()
    return place


def lost(place: Path, taken: Path) -> str:
    """What is wrong with how much a folder lacks of what its job had taken in; empty for at most one chunk."""
    run, missing = load(place), 0
    for line in taken.read_text().splitlines():
        lane, _, stop = map(int, line.split())
        missing += stop > len(run.tracks[lane].nll) + 1
    for lane, track in enumerate(run.tracks):
        if (track.spans[-1][1] if track.spans else 1) != len(track.nll) + 1 or not np.isfinite(track.nll.view()).all():
            return f"lane {lane} does not end with a whole chunk"
    return f"{missing} chunks are lost" if missing > 1 else ""


def _answers(address: str) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(f"{address}/_stcore/health", timeout=1)
        return True
    return False


def _wait(there, server: subprocess.Popen) -> None:
    until = time.monotonic() + STARTING
    while not there():
        if server.poll() is not None or time.monotonic() > until:
            raise TimeoutError(f"it has not begun (status {server.poll()})")
        time.sleep(0.02)
