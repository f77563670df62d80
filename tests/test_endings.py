"""How runs end: what they go on from is there until all else is, and is written before they say that nobody writes."""

import errno
import json

import numpy as np
import pytest

from analysis import files
from analysis.runs import folder as folders
from analysis.runs import resume
from analysis.runs.about import about_of
from analysis.runs.checkpoint import Checkpoints
from analysis.runs.reader import load

from .test_jobs_kept import home as home
from .test_jobs_reading import begin
from .test_resume import short
from .waiting import until

pytestmark = pytest.mark.whole
TRAINED = "steps=9,width=16,length=16,batch=2"


@pytest.mark.parametrize("room", [True, False])
def test_a_reading_has_its_checkpoints_until_its_tables_are_written(registry, model, home, monkeypatch, room):
    real, there = folders.write_tables, []

    def tables(run, path):
        there.append(Checkpoints(path).newest())
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(run, path)

    monkeypatch.setattr(folders, "write_tables", tables)
    job = begin(registry, model)
    until(job, lambda: job.status == "finished")
    place = home / job.id
    assert [kept is not None for kept in there] == [True]
    assert (place / "checkpoint").exists() != room and about_of(place)["status"] == ("finished" if room else "failed")
    if not room:
        # All was read, and nothing has to be read again.
        asked = resume.stopped(place)
        assert [len(track.nll) for track in asked.run.tracks] == [199] * 4
        assert Checkpoints(place).newest().about["lanes"]["0"]["position"] == 200


@pytest.mark.parametrize("over", [True, False])
def test_a_command_says_that_a_run_has_ended_when_its_checkpoint_is_whole(
    model, text, tmp_path, command, monkeypatch, over
):
    place, real, when = tmp_path / "run", folders.write_tables, []

    def tables(run, path):
        when.append((about_of(path)["status"], Checkpoints(path).newest()))
        real(run, path)

    monkeypatch.setattr(folders, "write_tables", tables)
    command(*short(model, text, place, None if over else 100, lanes=["dense"]))
    ((status, kept),) = when
    assert status == "running" and (kept is None) == over
    assert json.loads((place / "run.json").read_text())["status"] == "finished"
    assert np.isfinite(load(place).tracks[0].nll.view()).all()


@pytest.mark.parametrize(
    ("words", "begun"),
    [(["stream"], 0), (["capture"], 0), (["emergence", TRAINED], 0), (["emergence", TRAINED, TRAINED], 1)],
    ids=["stream", "capture", "training", "trainings"],
)
def test_a_command_that_has_no_room_to_begin_leaves_nothing(run, model, text, tmp_path, monkeypatch, words, begun):
    """Nor where one of two trainings has begun."""
    real, asked = files.check_room, []

    def check_room(path, needed, what):
        asked.append(what)
        real(path, needed if len(asked) <= begun else 2**60, what)

    monkeypatch.setattr(files, "check_room", check_room)
    if words[0] != "emergence":
        words = [*words, "--model", model, "--text", text]
    code, _, said = run(*words, "--device", "cpu", "--runs", str(tmp_path / "library"))
    assert code == 2 and said.count("\n") == 1 and "make room" in said and not [*(tmp_path / "library").iterdir()]
    asked.clear()
    # A folder that a person made is not ours to remove.
    (own := tmp_path / "own").mkdir()
    assert run(*words, "--device", "cpu", "--out", str(own))[0] == 2 and not [*own.iterdir()]
