"""A disk that takes no more, and a folder that cannot be written, end in a sentence, and what was there stays."""

import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from analysis.runs.reader import load

from .test_resume import command as command
from .test_resume import same, words


def limited(most, *arguments):
    """A command whose files may have so many bytes each: what is said where a disk takes no more is said there too."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    asked = [sys.executable, "-m", "analysis", *map(str, arguments)]
    done = subprocess.run(asked, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def place(model, text, tmp_path, command):
    """A run that could go on."""
    command(*words(model, text, tmp_path / "run", 500, lanes=["dense", "window:window=8", "window:window=9"]))
    return tmp_path / "run"


def test_a_run_without_room_for_its_checkpoint_is_read_to_its_end_and_says_so(model, text, place, tmp_path, command):
    lanes = ["dense", "window:window=8", "window:window=9"]
    code, said = limited(160_000, *words(model, text, tmp_path / "full", 500, lanes=lanes))
    assert code == 0 and "no checkpoint could be written, and the run goes on without" in said, said
    assert "(File too large)" in said
    same(load(tmp_path / "full"), load(place))
    assert "There is no checkpoint to go on from" in command("resume", tmp_path / "full", "--tokens", 600)


@pytest.mark.parametrize("most", [66_000])
def test_a_run_that_cannot_go_on_for_want_of_room_stays_as_it_was(most, place, command):
    before = load(place)
    code, said = limited(most, "resume", place, "--tokens", 600)
    assert code == 2 and "cannot be written (File too large): make room" in said, said
    after = load(place)
    same(after, before)
    assert after.status == "finished" and after.events == before.events
    for a, b in zip(after.tracks, before.tracks, strict=True):
        np.testing.assert_array_equal(a.nll.view(), b.nll.view())
    assert not [p.name for p in place.iterdir() if p.name.endswith(".part") or p.name == ".reserve"]
    command("resume", place, "--tokens", 600)


def test_a_checkpoint_folder_that_cannot_be_written_ends_no_run(place, command):
    for path in (place / "checkpoint").iterdir():
        path.unlink()
    (place / "checkpoint").rmdir()
    (place / "checkpoint").write_text("something else")
    said = command("resume", place, "--tokens", 550)
    assert "no checkpoint could be written, and the run goes on without" in " ".join(said.split())
    assert len(load(place).tracks[0].nll) == 549
