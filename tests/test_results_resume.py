"""Results that are completed equal those that never stopped, and what was known of them is not computed again."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest

from analysis import texts
from analysis.cli import waiting
from analysis.experiments import ablation, costs, measures
from analysis.figures.inputs import check_folder
from analysis.maps import capture
from analysis.maps.stretch import Stretch
from analysis.models.loading import load
from analysis.policies import parse
from analysis.runs import trash
from analysis.runs.about import about_of
from analysis.runs.archive import export, take_in
from analysis.runs.result import ResultFolder, stopped
from analysis.runs.spec import Spec
from app import recordings
from app.jobs.ablation import AblationJob
from app.jobs.costs import CostsJob
from app.jobs.kept import ResultKeeper
from app.jobs.measures import MeasuresJob

from .test_jobs_kept import home as home
from .test_resume import killed
from .waiting import copied, until

pytestmark = pytest.mark.whole


@pytest.fixture
def begin(registry, model, text):
    """Begins a job of a kind, or one that completes what another stopped at."""
    source = texts.read(text)
    window = Spec(model, text, ("streaming:sinks=4,window=12",), 300, device="cpu")
    makers = {
        "knockouts": partial(AblationJob, window, source, "values", 1),
        "measures": partial(MeasuresJob, Spec(model, text, ("dense",), 20, device="cpu"), source, 40, 2),
        "costs": partial(CostsJob, Spec(model, text, ("dense", "window:window=16"), 300, device="cpu"), source),
    }
    return lambda kind, resumes="": registry.start(partial(makers[kind], resumes=resumes))


def finished(job):
    until(job, lambda: job.status == "finished")
    return job


def read(place) -> np.ndarray:
    return np.loadtxt(place / "effects.csv", delimiter=",", skiprows=1, ndmin=2)


def moments(monkeypatch, home):
    """Copies of the folder of a job, each as a kill leaves it that comes when something was just written."""
    real, copies = ResultKeeper.write, []

    def write(self, what):
        real(self, what)
        if self.folder is not None and about_of(home / self.name)["status"] == "running":
            copies.append(copied(home / self.name, home / f"killed-{len(copies)}"))
            killed(copies[-1])

    monkeypatch.setattr(ResultKeeper, "write", write)
    return copies


def same(kind, place, whole):
    """Whether a folder has what the other has; what takes time was measured anew."""
    if kind == "knockouts":
        np.testing.assert_allclose(read(place), read(whole), atol=1e-5)
    elif kind == "measures":
        with np.load(place / "measures.npz") as a, np.load(whole / "measures.npz") as b:
            assert a.files == b.files
            for name in a.files:
                np.testing.assert_array_equal(a[name], b[name])
    else:
        a, b = ([line.split(",") for line in (p / "costs.csv").read_text().splitlines()] for p in (place, whole))
        assert [(r[0], r[1], r[-1]) for r in a] == [(r[0], r[1], r[-1]) for r in b]
    assert about_of(place)["status"] == "finished" and not list(place.glob("checkpoint/*"))


@pytest.mark.parametrize("kind", ["knockouts", "measures", "costs"])
def test_a_result_that_was_killed_is_completed_by_a_job_and_by_a_command(
    begin, registry, home, kind, monkeypatch, command
):
    copies = moments(monkeypatch, home)
    whole = finished(begin(kind))
    monkeypatch.undo()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(home))
    assert len(copies) >= 3
    for i, place in enumerate(copies):
        if i % 2:
            job = finished(begin(kind, resumes=place.name))
            assert job.id == place.name
            registry.free(job.id)
            job.join()
        else:
            assert "Finished. The result lies in" in command("resume", place)
        same(kind, place, home / whole.id)


def test_a_log_is_told_how_far_a_result_is(begin, home, monkeypatch, command):
    copies = moments(monkeypatch, home)
    finished(begin("knockouts"))
    monkeypatch.undo()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(home))
    monkeypatch.setattr(waiting, "EVERY", 0.01)
    lines = re.findall(r"^Knockouts.* of .*$", command("resume", copies[0]), re.MULTILINE)
    told = [re.fullmatch(r"Knockouts, in %: (\d+) of 100 \(\d+ s\)", line) for line in lines]
    assert all(told) and any(0 < int(one[1]) < 100 for one in told if one)


def test_heads_that_are_known_are_not_knocked_out_again(begin, registry, home, monkeypatch):
    job = begin("knockouts")
    until(job, lambda: len(job.effects) >= 2)
    registry.free(job.id)
    job.join()
    known, asked = read(home / job.id), []
    real = ablation.knock_outs

    def knock_outs(*about, unmodified=None):
        asked.append((about[-1], unmodified))
        return real(*about, unmodified=unmodified)

    monkeypatch.setattr(ablation, "knock_outs", knock_outs)
    assert about_of(home / job.id)["status"] == "interrupted" and recordings.result(job.id, "knockouts").goes_on
    again = finished(begin("knockouts", resumes=job.id))
    ((heads, unmodified),) = asked
    assert len(known) >= 2 and heads == [(1, head) for head in range(len(known), 4)] and unmodified is not None
    np.testing.assert_array_equal(read(home / job.id)[: len(known)], known)
    assert [e.head for e in again.effects] == [0, 1, 2, 3] and again.share == 1


def test_heads_that_are_known_stand_where_the_run_came_from_other_hands(begin, registry, home, monkeypatch):
    job = begin("knockouts")
    until(job, lambda: len(job.effects) >= 2)
    registry.free(job.id)
    job.join()
    export(job.id, home / "a.zip")
    trash.delete(job.id)
    name, asked, real = take_in(home / "a.zip", check_folder), [], ablation.knock_outs
    known = read(home / name)

    def knock_outs(*about, unmodified=None):
        asked.append(about[-1])
        return real(*about, unmodified=unmodified)

    monkeypatch.setattr(ablation, "knock_outs", knock_outs)
    again = begin("knockouts", resumes=name)
    until(again, lambda: again.effects)
    assert len(again.effects) >= len(known) >= 2
    finished(again)
    assert asked == [[(1, head) for head in range(len(known), 4)]]
    np.testing.assert_array_equal(read(home / name)[: len(known)], known)
    assert [e.head for e in again.effects] == [0, 1, 2, 3] and again.share == 1


def test_samples_that_are_known_are_not_measured_again(begin, home, monkeypatch):
    copies = moments(monkeypatch, home)
    finished(begin("measures"))
    monkeypatch.undo()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(home))
    asked, real = [], measures.measure
    monkeypatch.setattr(
        measures, "measure", lambda model, samples, **how: asked.append(len(samples)) or real(model, samples, **how)
    )
    for place in copies:
        with np.load(place / "measures.npz") as held:
            known = len(held["median"])
        finished(begin("measures", resumes=place.name))
        assert asked.pop() == 40 - known


def test_windows_and_whole_readings_that_are_known_are_not_timed_again(begin, home, monkeypatch):
    copies = moments(monkeypatch, home)
    finished(begin("costs"))
    monkeypatch.undo()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(home))
    chunks, real = [], costs.CountedLane.read
    monkeypatch.setattr(costs.CountedLane, "read", lambda self, *size: chunks.append(1) or real(self, *size))
    # A reading of two lanes is of two chunks each, and a window is read at once and then three times more.
    assert len(copies) == 5
    for place, left in zip(copies, (4 + 3 * 4, 3 * 4, 2 * 4, 4, 0), strict=True):
        chunks.clear()
        before = (place / "costs.csv").read_text().splitlines()
        job = finished(begin("costs", resumes=place.name))
        assert len(chunks) == left
        if left < 16:
            assert (place / "costs.csv").read_text().splitlines()[: len(before)] == before
        assert [w.tokens for w in job.windows] == [64, 128, 256] and job.share == 1


def test_what_is_whole_or_of_other_settings_is_refused_in_a_sentence(begin, registry, home, command):
    job = begin("measures")
    finished(job)
    registry.free(job.id)
    assert "nothing of it is missing" in command("resume", home / job.id, code=2)
    assert "leave out --tokens" in command("resume", home / job.id, "--tokens", 30, code=2)
    again = begin("measures", resumes=job.id)
    until(again, lambda: again.status == "failed" or not again.live)
    assert "nothing of it is missing" in again.note
    half = begin("knockouts")
    until(half, lambda: len(half.effects) >= 1)
    registry.free(half.id)
    half.join()
    opened = ResultFolder.reopened(home / half.id)
    with pytest.raises(ValueError, match="is being written by process"):
        # Whoever had looked at it before, and had still to load the model.
        ResultFolder.reopened(home / half.id)
    opened.finish("interrupted")
    before = {p.name: p.read_bytes() for p in (home / half.id).iterdir() if p.is_file()}
    other = registry.start(partial(AblationJob, half.spec, half.text, "weights", 1, resumes=half.id))
    until(other, lambda: not other.live or other.status == "failed")
    assert "was asked for something else" in other.note
    assert before == {p.name: p.read_bytes() for p in (home / half.id).iterdir() if p.is_file()}


def test_of_other_weights_a_result_is_refused_and_of_unknown_ones_it_begins_anew(begin, registry, home, command):
    job = begin("knockouts")
    until(job, lambda: len(job.effects) >= 1)
    registry.free(job.id)
    job.join()
    about = json.loads((home / job.id / "run.json").read_text())
    (home / job.id / "run.json").write_text(json.dumps(about | {"weights_sha256": "0" * 64}))
    assert "is not the one that this run was read with" in command("resume", home / job.id, code=2)
    (home / job.id / "run.json").write_text(json.dumps(about | {"weights_sha256": ""}))
    assert stopped(home / job.id).known is None
    command("resume", home / job.id)
    assert about_of(home / job.id)["weights_sha256"] == about["weights_sha256"] and len(read(home / job.id)) == 4


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("knockouts", {"settings": {}}, "it does not say what was asked"),
        ("knockouts", {"settings": {"kind": "values", "layer": "1"}}, "it does not say what was asked"),
        ("knockouts", {"settings": ["values"]}, "run.json is not that of a run"),
        ("measures", {"settings": {"samples": 0, "first": 2}}, "it does not say what was asked"),
        ("measures", {"spec": {"tokens": None}}, "it does not say how long its samples are"),
    ],
)
def test_a_result_that_does_not_say_what_was_asked_is_refused_and_stays(
    begin, registry, home, command, kind, change, sentence
):
    job = begin(kind)
    until(job, lambda: job.live is False)
    place = home / job.id
    registry.free(job.id)
    job.join()
    about = json.loads((place / "run.json").read_text())
    change = {name: about["spec"] | value if name == "spec" else value for name, value in change.items()}
    (place / "run.json").write_text(written := json.dumps(about | {"status": "interrupted"} | change))
    assert sentence in command("resume", place, code=2)
    assert (place / "run.json").read_text() == written


@pytest.mark.parametrize("damage", ["effects.csv", "checkpoint"])
def test_a_damaged_result_is_refused_in_a_sentence(begin, registry, home, command, damage):
    job = begin("knockouts")
    until(job, lambda: len(job.effects) >= 1)
    registry.free(job.id)
    job.join()
    if damage == "effects.csv":
        (home / job.id / damage).write_text("layer,head\n1,x\n")
        assert "is damaged" in command("resume", home / job.id, code=2)
        return
    for file in (home / job.id / "checkpoint").glob("*.safetensors"):
        file.write_bytes(b"x")
    # Without what they are compared with, effects mean nothing: all heads are knocked out.
    command("resume", home / job.id)
    assert len(read(home / job.id)) == 4


def test_a_capture_that_was_killed_begins_again_in_its_folder(model, text, tmp_path, command):
    asked = [
        "capture",
        "--model",
        model,
        "--text",
        text,
        "--tokens",
        "500",
        "--policy",
        "window:window=64",
        "--device",
        "cpu",
    ]
    asked += ["--switch", "200=window:window=32"]
    place, whole = tmp_path / "stretch", tmp_path / "whole"
    network, source = load(model, device="cpu"), texts.read(text)
    command(*asked, "--out", whole)
    spec = Stretch(whole).spec
    read = capture.tokenized(source, network.tokenizer, spec)
    going = capture.capture(
        network, read.ids, spec, place, switches=[(200, parse("window:window=32"))], text_sha256=source.sha256
    )
    next(going)
    shutil.copytree(place, tmp_path / "killed")
    assert "is being written by process" in command("resume", place, code=2)
    going.close()
    assert not place.exists()
    about = json.loads((tmp_path / "killed" / ".capturing").read_text())
    about["process"]["began"] = 1.0
    (tmp_path / "killed" / ".capturing").write_text(json.dumps(about))
    assert "of no use before all of it is read" in command("resume", tmp_path / "killed")
    found, expected = Stretch(tmp_path / "killed"), Stretch(whole)
    assert found.segments == expected.segments and len(found.segments) == 2
    np.testing.assert_array_equal(found.queries, expected.queries)
