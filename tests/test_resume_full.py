"""A disk that takes no more, and a folder that cannot be written, end in a sentence, and what was there stays."""

import io
import resource
import signal
import sys

import numpy as np
import pytest

from analysis.runs import checkpoint
from analysis.runs.checkpoint import Checkpoints
from analysis.runs.reader import load

from .test_resume import same
from .test_resume import words as stream
from .test_resume_chat import SCRIPT, chat
from .test_resume_chat import words as words

pytestmark = pytest.mark.whole


@pytest.fixture
def limited(run, monkeypatch):
    """A command whose files may have so many bytes each: what is said where a disk takes no more is said there too."""

    def command(most, *arguments, typed=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        ignored, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            code, said, error = run(*map(str, arguments))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert "Traceback" not in error
        return code, " ".join((said + error).split())

    return command


@pytest.fixture
def place(model, text, tmp_path, command):
    """A run that could go on."""
    command(*stream(model, text, tmp_path / "run", 500, lanes=["dense", "window:window=8", "window:window=9"]))
    return tmp_path / "run"


def test_a_run_without_room_for_its_checkpoint_is_read_to_its_end_and_says_so(
    model, text, place, tmp_path, command, limited
):
    lanes = ["dense", "window:window=8", "window:window=9"]
    code, said = limited(160_000, *stream(model, text, tmp_path / "full", 500, lanes=lanes))
    assert code == 0 and "no checkpoint could be written, and the run goes on without" in said, said
    assert "(File too large)" in said
    same(load(tmp_path / "full"), load(place))
    assert "There is no checkpoint to go on from" in command("resume", tmp_path / "full", "--tokens", 600)


@pytest.mark.parametrize("most", [66_000])
def test_a_run_that_cannot_go_on_for_want_of_room_stays_as_it_was(most, place, command, limited):
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


def test_a_conversation_that_the_disk_takes_no_more_of_says_what_is_kept(
    words, tmp_path, command, limited, monkeypatch
):
    asked = chat(words, tmp_path / "full", None, "--max-new", "60")
    code, said = limited(66_000, *asked, typed="\n".join(SCRIPT))
    assert code == 2 and "cannot be written (File too large): make room" in said, said
    assert "What was learned until then is kept" in said and f"resume {tmp_path / 'full'}" in said
    kept = load(tmp_path / "full")
    assert kept.status == "failed" and any(len(track.nll) for track in kept.tracks)
    before = [track.token_ids.view().copy() for track in kept.tracks]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    command("resume", tmp_path / "full")
    for ids, track in zip(before, load(tmp_path / "full").tracks, strict=True):
        np.testing.assert_array_equal(track.token_ids.view()[: len(ids)], ids)


def test_a_conversation_without_room_for_its_checkpoint_is_kept_and_says_so(words, tmp_path, command, monkeypatch):
    def full(self, *_):
        raise ValueError(f"{self.path} cannot be written (No space left on device): make room")

    monkeypatch.setattr(Checkpoints, "write", full)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(SCRIPT)))
    said = command(*chat(words, tmp_path / "full"))
    assert "no checkpoint could be written, and the run goes on without" in said and "(No space left on device)" in said
    kept = load(tmp_path / "full")
    assert kept.status == "finished" and [e["what"] for e in kept.events].count("answer") == 3 * len(SCRIPT)


def test_a_training_without_room_for_its_checkpoint_is_kept_and_says_so(tmp_path, command, limited, monkeypatch):
    recipe = "steps=12,width=64,length=16,batch=4,vocabulary=64"
    # A checkpoint whenever the one before is there.
    monkeypatch.setattr(checkpoint, "EVERY", 0)
    code, said = limited(150_000, "emergence", recipe, "--every", "4", "--out", tmp_path / "full")
    assert code == 0 and "no checkpoint could be written, and the run goes on without" in said, said
    command("emergence", recipe, "--every", "4", "--out", tmp_path / "whole")
    assert (tmp_path / "full" / "curves.csv").read_bytes() == (tmp_path / "whole" / "curves.csv").read_bytes()


def test_a_training_whose_folder_cannot_be_written_says_so_and_what_was_there_stays(tmp_path, command):
    (tmp_path / "full").write_text("mine")
    assert "cannot be written" in command("emergence", "steps=4", "--out", tmp_path / "full", code=2)
    assert (tmp_path / "full").read_text() == "mine"
