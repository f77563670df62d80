"""What pages do lies in the library as they do it, whole after a kill, and nothing that the disk does ends a job."""

import errno
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from analysis.chat.conversation import Conversation
from analysis.experiments.ablation import effects_as_csv
from analysis.lab.folder import read as trainings
from analysis.policies import parse
from analysis.runs import library
from analysis.runs.about import about_of
from analysis.runs.checkpoint import Checkpoints
from analysis.runs.folder import Folder
from analysis.runs.held import strangers
from analysis.runs.reader import load
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from app import recordings
from app.frames.reading import ReadingSender
from app.jobs.ablation import AblationJob
from app.jobs.capture import CaptureJob
from app.jobs.chat import ChatJob
from app.jobs.reading import ReadingJob
from app.view import View

from .fuzz.jobs import kinds, model_with_words
from .recordings import decoded
from .test_jobs_reading import begin, text
from .test_record import same
from .waiting import until

pytestmark = pytest.mark.whole


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A library of the test's own."""
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path / "library"))
    return tmp_path / "library"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tiny model that has a tokenizer."""
    return model_with_words(tmp_path_factory.mktemp("words"))


def alike(kept: Run, run: Run) -> None:
    """Whether a folder has what a run has in memory."""
    same(kept, run)
    assert kept.model == run.model and kept.model is not None and kept.begins == run.begins


def test_a_reading_lies_in_the_library_under_its_id(registry, model, home):
    job = begin(registry, model)
    until(job, lambda: job.status == "finished")
    alike(load(home / job.id), job.run)
    about = about_of(home / job.id)
    assert (about["status"], about["kind"]) == ("finished", "reading") and library.find(job.id) == home / job.id
    assert about["weights_sha256"] == job.model.sha256 and about["text_sha256"] == job.text.sha256
    assert load(home / job.id).pieces == [job.pieces] * 4


def test_a_reading_is_readable_while_it_reads_and_finished_when_it_is_stopped(registry, model, home):
    job = begin(registry, model, count=3000, pace=200)
    until(job, lambda: len(job.run.tracks[0].nll) > 40)
    job.switch(1, parse("streaming:sinks=4,window=12"), pin=True)
    until(job, lambda: any(e["what"] == "switch" for e in job.run.events))
    found = load(home / job.id)
    assert about_of(home / job.id)["status"] == "running" and len(found.tracks[0].nll) > 40
    job.request("paused")
    until(job, lambda: job.status == "paused")
    job.request("stopped")
    until(job, lambda: job.status == "stopped")
    alike(load(home / job.id), job.run)
    assert about_of(home / job.id)["status"] == "interrupted"
    told = ["switch", "paused", "stopped"]
    assert [e["what"] for e in load(home / job.id).events if e["what"] in told] == told


def test_a_reading_that_is_freed_is_finished(registry, model, home):
    job = begin(registry, model, count=3000, pace=100)
    until(job, lambda: len(job.run.tracks[0].nll) > 10)
    registry.free(job.id)
    job.join()
    assert about_of(home / job.id)["status"] == "interrupted"
    alike(load(home / job.id), job.run)


def test_a_reading_that_fails_is_finished_as_failed(registry, model, home, monkeypatch):
    job = begin(registry, model, count=3000, pace=100)
    until(job, lambda: len(job.run.tracks[0].nll) > 10)
    monkeypatch.setattr("app.jobs.reading.ReadingJob.take_snapshot", lambda _: 1 / 0)
    until(job, lambda: job.status == "failed")
    assert about_of(home / job.id)["status"] == "failed" and len(load(home / job.id).tracks[0].nll) > 10


def settle(job, turns):
    """Wait until every lane has had so many turns, and the last has ended."""
    until(job, lambda: job.lanes and all(len(lane.turns) == turns and lane.turns[-1].why for lane in job.lanes))
    until(job, lambda: job.lanes and job.idle and job.status == "waiting")


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["write", "write_event", "pieces", "finish", "know", "_write"])
@pytest.mark.parametrize("raised", [full, lambda *_, **__: {}["x"]], ids=["full", "bug"])
def test_a_disk_that_is_full_ends_no_reading(registry, model, home, monkeypatch, what, raised):
    monkeypatch.setattr(Folder, what, raised)
    job = begin(registry, model)
    until(job, lambda: job.status == "finished")
    assert [len(t.nll) for t in job.run.tracks] == [199] * 4
    rest = "The library has what was written before, and the rest is kept in memory only: "
    assert job.kept.problem.startswith(rest) and job.kept.problem.endswith(".")
    assert decoded(ReadingSender().frame(job, View()))[0]["note"].endswith(job.kept.problem)
    load(home / job.id)


def test_a_folder_that_cannot_be_written_ends_no_reading(registry, model, home):
    home.write_text("no folder")
    job = begin(registry, model)
    until(job, lambda: job.status == "finished")
    assert job.kept.problem.startswith(f"Kept in memory only: {home}") and "cannot be written" in job.kept.problem


def test_a_conversation_lies_in_the_library_and_nothing_that_was_typed_but_its_tokens(registry, words, home):
    job = registry.start(kinds(words, home)["chat"])
    settle(job, 2)
    job.say("a secret question")
    settle(job, 3)
    job.switch(1, parse("streaming:sinks=4,window=12"), pin=True)
    until(job, lambda: "from the next token on" in job.note)
    found = load(home / job.id)
    for lane, kept in zip(job.lanes, found.tracks, strict=True):
        assert kept.token_ids.view().tolist() == lane.tokens[1:].tolist()
        assert kept.roles.view().tolist() == lane.roles.view()[1:].tolist()
        assert found.pieces[lane.lane.index] == lane.pieces()
    assert found.kind == "chat" and about_of(home / job.id)["status"] == "running"
    answers = [e for e in found.events if e["what"] == "answer"]
    assert [(e["lane"], e["position"], e["stop"]) for e in answers if e["lane"] == 0] == [
        (0, turn.begin, turn.stop) for turn in job.lanes[0].turns
    ]
    for file in ("run.json", "events.jsonl"):
        assert "secret" not in (home / job.id / file).read_text()
    registry.free(job.id)
    job.join()
    alike(load(home / job.id), job.transcript.run)
    assert load(home / job.id).pieces == found.pieces


@pytest.mark.parametrize("ended", [False, True])
def test_an_answer_that_is_given_again_takes_the_place_of_the_one_before(registry, words, home, ended):
    """Also while the folder still grows, where both of them stand in it."""
    make = kinds(words, home)["chat"]
    spec = make.args[0]
    spec = replace(spec, sampling=replace(spec.sampling, max_new=40, temperature=2.0))
    job = registry.start(partial(ChatJob, spec, script=["to be"]))
    settle(job, 1)
    before = [lane.tokens.tolist() for lane in job.lanes]
    job.again()
    until(job, lambda: job.epoch == 1)
    settle(job, 1)
    assert before != [lane.tokens.tolist() for lane in job.lanes]
    lanes = job.lanes
    if ended:
        registry.free(job.id)
        job.join()
    found = load(home / job.id)
    for lane, kept, pieces in zip(lanes, found.tracks, found.pieces, strict=True):
        assert kept.token_ids.view().tolist() == lane.tokens[1:].tolist() and pieces == lane.pieces()
        assert kept.spans[-1][1] == len(lane.tokens) and len(kept.sums) == len(kept.nll) + 1


def test_an_answer_that_fails_is_read_again_in_the_folder_too(registry, words, home, monkeypatch):
    job = registry.start(kinds(words, home)["chat"])
    settle(job, 2)
    real, left = Conversation._step, [1]

    def step(self, chunk):
        done = real(self, chunk)
        if left[0] and not self.unread and self.lane.index == 0:
            left[0] -= 1
            raise ZeroDivisionError
        return done

    monkeypatch.setattr(Conversation, "_step", step)
    for turns in (3, 4):
        job.say("that is the question")
        settle(job, turns)
    found = load(home / job.id)
    for lane, kept in zip(job.lanes, found.tracks, strict=True):
        assert kept.token_ids.view().tolist() == lane.tokens[1 : len(kept.nll) + 1].tolist()
        assert len(kept.nll) + 1 == len(lane.tokens)


def test_a_disk_that_is_full_ends_no_conversation(registry, words, home, monkeypatch):
    monkeypatch.setattr(Folder, "write", full)
    job = registry.start(kinds(words, home)["chat"])
    settle(job, 2)
    assert [lane.turns[-1].why for lane in job.lanes] == ["limit", "limit"]
    assert "No space left on device" in job.said


def test_ids_are_names_of_folders_in_order(registry, model):
    first = begin(registry, model)
    time.sleep(1.1)
    second = begin(registry, model)
    assert first.id < second.id and library.fits(first.id)


def test_events_of_a_job_are_lines_of_its_folder(registry, model, home):
    job = begin(registry, model)
    until(job, lambda: job.status == "finished")
    lines = (home / job.id / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == job.run.events
    assert isinstance(job, ReadingJob) and text(200).sha256 == ""
    assert np.isfinite([e["seconds"] for e in job.run.events]).all()


def test_knock_outs_measures_and_costs_lie_in_the_library(registry, words, home):
    for name, kind, table in (
        ("knock-outs", "knockouts", "effects.csv"),
        ("measures", "measures", "measures.npz"),
        ("costs", "costs", "costs.csv"),
    ):
        job = registry.start(kinds(words, home)[name])
        until(job, lambda job=job: job.status == "finished")
        found = library.entry(job.id)
        assert (found.kind, found.status, found.problem) == (kind, "finished", "") and not job.kept.problem
        assert about_of(home / job.id)["weights_sha256"] == registry.model(job.spec, str).sha256
        assert strangers(home / job.id) == []
        assert (home / job.id / table).exists()
        registry.free(job.id)
        if name == "knock-outs":
            assert (home / job.id / table).read_text() == effects_as_csv(job.effects)
            assert about_of(home / job.id)["settings"] == {"kind": "values", "layer": 0}
        elif name == "measures":
            with np.load(home / job.id / table) as held:
                np.testing.assert_array_equal(held["alpha"], job.measured.heads["alpha"])
        else:
            rows = (home / job.id / table).read_text().splitlines()
            assert len(rows) == 1 + sum(len(lane.costs) for lane in job.lanes) + len(job.windows)


def test_knock_outs_that_are_stopped_are_kept_as_far_as_they_came(registry, model, home):
    spec = Spec(model, "random.npy", ("streaming:sinks=4,window=12",), 2000)
    job = registry.start(partial(AblationJob, spec, text(2000), "values", None))
    until(job, lambda: len(job.effects) >= 1)
    job.request("stopped")
    until(job, lambda: job.status == "stopped")
    assert about_of(home / job.id)["status"] == "interrupted"
    assert (home / job.id / "effects.csv").read_text() == effects_as_csv(job.effects)


def test_a_capture_lies_in_the_library_and_is_opened_again(registry, words, home):
    make = kinds(words, home)["capture"]
    job = registry.start(partial(CaptureJob, *make.args[:2], ""))
    until(job, lambda: job.status == "finished")
    assert library.entry(job.id).kind == about_of(home / job.id)["kind"] == "capture"
    assert not job.kept.problem and strangers(home / job.id) == []
    again = registry.start(partial(CaptureJob, make.args[0], None, str(home / job.id)))
    until(again, lambda: again.status == "finished")
    np.testing.assert_array_equal(again.opened.stretch.mass, job.opened.stretch.mass)


def test_a_capture_that_is_stopped_leaves_nothing(registry, model, home):
    spec = Spec(model, "random.npy", ("dense",), 3000, chunk=16)
    job = registry.start(partial(CaptureJob, spec, text(3001), ""))
    until(job, lambda: job.read)
    job.request("stopped")
    until(job, lambda: job.status == "stopped")
    job.join()
    assert not (home / job.id).exists()


def test_trainings_lie_in_the_library(registry, words, home):
    job = registry.start(kinds(words, home)["training"])
    until(job, lambda: job.status == "finished")
    found = library.entry(job.id)
    assert (found.kind, found.status, found.text) == ("training", "finished", "softmax, relu")
    saved = trainings(home / job.id)
    assert [s.recipe for s in saved] == list(job.recipes) and strangers(home / job.id) == []
    assert [len(s.maps) for s in saved] == [len(moments) for moments in job.moments]


@pytest.mark.parametrize("name", ["knock-outs", "measures", "costs", "capture", "training"])
def test_a_library_that_cannot_be_written_ends_no_job(registry, words, home, name):
    home.write_text("no folder")
    make = kinds(words, home.parent)[name]
    job = registry.start(partial(CaptureJob, *make.args[:2], "") if name == "capture" else make)
    until(job, lambda: job.status == "finished")
    assert job.kept.problem.startswith("Kept in memory only: ") and "cannot be written" in job.kept.problem


def resumed(registry, job, **more) -> ReadingJob:
    """The job that goes on with the run of another, which has ended."""
    return registry.start(partial(ReadingJob, job.spec, job.text, resumes=job.id, **more))


@pytest.mark.parametrize("ended", ["stopped", "freed", "paused"])
def test_a_reading_goes_on_where_it_stopped_and_equals_one_that_never_did(registry, model, home, ended):
    whole = begin(registry, model, count=400)
    until(whole, lambda: whole.status == "finished")
    job = begin(registry, model, count=400, pace=60)
    until(job, lambda: len(job.run.tracks[0].nll) > 40)
    if ended == "paused":
        job.request("paused")
        until(job, lambda: job.status == "paused")
    if ended == "stopped":
        job.request("stopped")
        until(job, lambda: job.status == "stopped")
        assert (home / job.id / "checkpoint").exists()
    else:
        registry.free(job.id)
        job.join()
    assert recordings.find(job.id, "reading").goes_on
    again = resumed(registry, job)
    assert registry.get(job.id) is again and again.id == job.id
    until(again, lambda: again.status == "finished")
    assert any(event["what"] == "resumed" for event in again.run.events)
    for mine, other in zip(again.run.tracks, whole.run.tracks, strict=True):
        np.testing.assert_array_equal(mine.token_ids.view(), other.token_ids.view())
        np.testing.assert_allclose(mine.nll.view(), other.nll.view(), atol=1e-4)
    same(load(home / job.id), again.run)
    assert about_of(home / job.id)["status"] == "finished" and not recordings.find(job.id, "reading").goes_on
    assert not list((home / job.id).glob("checkpoint/*"))


def test_a_run_that_goes_on_already_does_not_go_on_twice(registry, model, home):
    job = begin(registry, model, count=3000, pace=50)
    until(job, lambda: len(job.run.tracks[0].nll) > 10)
    with pytest.raises(ValueError, match="goes on already"):
        resumed(registry, job)
    assert registry.get(job.id) is job and job.live


def test_a_run_does_not_go_on_with_another_text(registry, model, home):
    mine = replace(text(3000), sha256="one")
    job = registry.start(partial(ReadingJob, Spec(model, "random.npy", ("dense",), chunk=32), mine))
    job.set_pace(50)
    until(job, lambda: len(job.run.tracks[0].nll) > 10)
    registry.free(job.id)
    job.join()
    before = {p.name: p.read_bytes() for p in (home / job.id).iterdir() if p.is_file()}
    other = replace(mine, sha256="another")
    again = registry.start(partial(ReadingJob, job.spec, other, resumes=job.id))
    until(again, lambda: not again.live or again.status == "failed")
    assert again.status == "failed" and "is not the one that this run was read with" in again.note
    assert before == {p.name: p.read_bytes() for p in (home / job.id).iterdir() if p.is_file()}


def test_a_disk_without_room_for_a_checkpoint_ends_no_reading_and_the_page_says_so(registry, model, home, monkeypatch):
    monkeypatch.setattr(Checkpoints, "write", full)
    whole = begin(registry, model, count=400)
    until(whole, lambda: whole.status == "finished")
    job = begin(registry, model, count=400, pace=60)
    until(job, lambda: len(job.run.tracks[0].nll) > 40)
    job.request("paused")
    until(job, lambda: job.status == "paused")
    wrong = "No checkpoint could be written, and the run goes on without"
    assert (
        job.kept.problem.startswith(wrong) and decoded(ReadingSender().frame(job, View()))[0]["note"].count(wrong) == 1
    )
    monkeypatch.undo()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(home))
    monkeypatch.setattr(Checkpoints, "write", full)
    registry.free(job.id)
    job.join()
    alike(load(home / job.id), job.run)
    monkeypatch.undo()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(home))
    again = resumed(registry, job)
    until(again, lambda: again.status == "finished")
    assert not again.kept.problem and not whole.kept.problem
    for mine, other in zip(again.run.tracks, whole.run.tracks, strict=True):
        np.testing.assert_array_equal(mine.token_ids.view(), other.token_ids.view())
        np.testing.assert_allclose(mine.nll.view(), other.nll.view(), atol=1e-4)


def test_a_disk_without_room_for_a_checkpoint_ends_no_conversation_and_the_page_says_so(
    registry, words, home, monkeypatch
):
    monkeypatch.setattr(Checkpoints, "write", full)
    job = registry.start(kinds(words, home)["chat"])
    settle(job, 2)
    assert job.kept.problem.startswith("No checkpoint could be written") and job.kept.problem in job.said
    monkeypatch.undo()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(home))
    job.say("to be")
    settle(job, 3)
    assert not job.kept.problem and (home / job.id / "checkpoint").exists()
