"""The command line as processes of its own: interrupted, killed, and fed from a pipe."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest

from analysis.runs.checkpoint import Checkpoints
from analysis.runs.reader import load


def hears():
    """A job in the background ignores Ctrl-C, and its children with it; these are to hear it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def begin():
    """Starts processes, none of which outlives its test, however that ends."""
    with ExitStack() as stack:

        def begin(command: list[str], **options) -> subprocess.Popen:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
            stack.callback(process.kill)
            return process

        yield begin


def test_an_interrupted_run_is_readable_and_has_its_table(model, tmp_path, begin):
    # So long that it is still read when the signal comes.
    text = tmp_path / "ids.npy"
    np.save(text, np.random.default_rng(0).integers(0, 97, 20_000))
    command = [sys.executable, "-m", "analysis", "stream", "--model", model, "--text", str(text), "--device", "cpu"]
    command += ["--policy", "dense", "--policy", "recompute:window=300,stride=1", "--chunk", "1", "--out"]
    # Both at once, since most of the time goes into their imports.
    kinds = (signal.SIGINT, signal.SIGTERM)
    options = {
        "stderr": subprocess.PIPE,
        "env": os.environ | {"COLUMNS": "140", "OMP_NUM_THREADS": "1"},
        "preexec_fn": hears,
    }
    begun = [(kind, place := tmp_path / kind.name, begin([*command, str(place)], **options)) for kind in kinds]
    patience = time.monotonic() + 60
    for kind, place, process in begun:
        while not (place / "tokens.arrow").exists() or (place / "tokens.arrow").stat().st_size < 20_000:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < patience
            time.sleep(0.02)
        process.send_signal(kind)
    for _, place, process in begun:
        said, wrong = process.communicate(timeout=30)
        assert process.returncode == 130, wrong
        assert "Perplexity" in said
        assert json.loads((place / "run.json").read_text())["status"] == "interrupted"
        assert (place / "tokens.parquet").exists()
        assert 0 < len(load(place).tracks[0].nll) < 19_999


def test_chat_takes_what_is_typed_until_the_end_of_input(tmp_path):
    command = [sys.executable, "-m", "analysis", "chat", "--device", "cpu", "--weights", "int4", "--max-new", "3"]
    command += ["--policy", "window:window=16", "--out", str(tmp_path / "o")]
    done = subprocess.run(command, input="Hello\n\nBye\n", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Window 16:") == 2
    assert json.loads((tmp_path / "o" / "run.json").read_text())["status"] == "finished"


def test_interrupted_script_is_readable(tmp_path, begin):
    command = [sys.executable, "-m", "analysis", "chat", "--device", "cpu", "--weights", "int4", "--max-new", "4000"]
    command += ["--script", "questions", "--policy", "window:window=16", "--out", str(tmp_path / "o")]
    process = begin(command, stderr=subprocess.PIPE, preexec_fn=hears)
    patience, tokens = time.monotonic() + 90, tmp_path / "o" / "tokens.arrow"
    while not tokens.exists() or tokens.stat().st_size < 6_000:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < patience
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, wrong = process.communicate(timeout=30)
    assert process.returncode == 130, wrong
    assert "ms/token" in said
    written = load(tmp_path / "o")
    assert json.loads((tmp_path / "o" / "run.json").read_text())["status"] == "interrupted"
    # The answer has no end yet: it goes on when the conversation does.
    assert len(written.tracks[0].nll) > 32 and written.events[-1]["what"] == "prompt"
    assert Checkpoints(tmp_path / "o").newest() is not None


def test_killed_process_leaves_all_but_its_last_chunk(tmp_path, begin):
    code = (
        "import sys; from pathlib import Path; from tests.test_record import *\n"
        "folder = Folder(Path(sys.argv[1]), Run(SPEC, 7), text_sha256='t', weights_sha256='w')\n"
        "for i, step in enumerate(steps(0, Dense(), 10**6)):\n"
        "    folder.append(step); print(step.stop, flush=True)\n"
    )
    process = begin([sys.executable, "-c", code, str(tmp_path / "run")])
    told = [int(process.stdout.readline()) for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    run = load(tmp_path / "run")
    nll = run.tracks[0].nll.view()
    assert len(nll) + 1 in (told[-1], told[-1] + 16)
    np.testing.assert_array_equal(nll, (np.arange(1, len(nll) + 1) * 0.01).astype(np.float32))
    assert run.tracks[0].spans[-1][1] == len(nll) + 1
