"""A training that goes on is the training that was never stopped, whenever and however it was stopped."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch

from analysis import files
from analysis.lab import folder
from analysis.lab.folder import TrainingWriter, about_of, read
from analysis.lab.recipe import ATTENTIONS, Recipe
from analysis.lab.resume import resumed, stopped
from analysis.lab.training import Training
from analysis.runs.checkpoint import Checkpoints, Saver

from . import waiting

pytestmark = pytest.mark.whole

TINY = {"width": 16, "vocabulary": 24, "length": 16, "batch": 4, "steps": 50}
SETTINGS = ",".join(f"{k}={v}" for k, v in TINY.items())


@pytest.fixture
def at_once(monkeypatch):
    """Everything is written as soon as it is there, and before anything else is done."""
    monkeypatch.setattr(Saver, "save", Saver.close)
    monkeypatch.setattr(folder, "MAX_LOST", 0)
    monkeypatch.setattr(folder, "SHARE", 0)


def killed(place):
    """Make a folder one whose process is no more."""
    about = json.loads((place / "run.json").read_text())
    if about["status"] == "running":
        about["process"]["began"] = 1.0
        (place / "run.json").write_text(json.dumps(about))


def copies(monkeypatch, root, where, steps):
    """Copy the folder of trainings after so many steps of any of them: what a kill leaves."""
    real, count = TrainingWriter.save, [0]

    def save(self):
        real(self)
        count[0] += 1
        if count[0] in steps:
            waiting.copied(root, to := where / str(count[0]))
            for about in [*to.glob("run.json"), *to.glob("*/run.json")]:
                killed(about.parent)

    monkeypatch.setattr(TrainingWriter, "save", save)


def same(place, other):
    """Digit by digit."""
    assert (place / "curves.csv").read_bytes() == (other / "curves.csv").read_bytes()
    (a,), (b,) = read(place), read(other)
    np.testing.assert_array_equal(a.maps, b.maps)
    np.testing.assert_array_equal(a.heads, b.heads)
    assert about_of(place).status == about_of(other).status == "finished"


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("steps", [0, 1, 16, 21])
def test_a_state_is_all_that_it_takes_to_go_on(kind, steps):
    """At the beginning, in the midst of what was drawn together, and behind it."""
    recipe = Recipe(**{**TINY, "attention": kind, "heads": 2, "layers": 2, "steps": 40})
    one = Training(recipe)
    one.advance(steps)
    about, tensors = one.state()
    held = {name: t.clone() for name, t in tensors.items()}
    one.advance(19)
    other = Training(recipe)
    other.load_state(json.loads(json.dumps(about)), tensors)
    assert other.step == steps and all(torch.equal(tensors[name], t) for name, t in held.items())
    other.advance(19)
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 18, 20, 49])
def test_a_polite_end_leaves_a_checkpoint_to_go_on_from(number, step, tmp_path, command, monkeypatch):
    place, whole, real = tmp_path / "e", tmp_path / "whole", Training.advance
    command("emergence", SETTINGS, "--every", 6, "--out", whole)

    def advance(self, steps):
        real(self, steps)
        if self.step == step:
            signal.raise_signal(number)

    monkeypatch.setattr(Training, "advance", advance)
    said = command("emergence", SETTINGS, "--every", 6, "--out", place, code=130)
    assert f"analysis resume {place}" in said and about_of(place).status == "interrupted"
    monkeypatch.undo()
    said = command("resume", place)
    assert f"from a checkpoint at step {step}." in said and ("Trained" in said) == (step % 6 == 0)
    same(place, whole)
    assert sorted(p.name for p in place.iterdir()) == ["curves.csv", "maps.npz", "run.json"]


def test_trainings_that_were_killed_go_on_from_any_moment(tmp_path, command, monkeypatch, at_once):
    """Those that have finished, those under way, and those that had not begun, with checkpoints and without."""
    asked = [f"{SETTINGS.replace('50', '20')},attention={kind}" for kind in ("learned", "softmax", "relu")]
    where, place = tmp_path / "killed", tmp_path / "e"
    # 21 moments each.
    steps = (1, 15, 21, 30, 50, 62)
    copies(monkeypatch, place, where, steps)
    command("emergence", *asked, "--every", 6, "--out", place)
    monkeypatch.undo()
    for step in steps:
        cut = where / str(step)
        assert [a.status for a in map(about_of, sorted(cut.glob("*-*")))].count("killed") >= 1
        assert len(read(cut)) == (step - 1) // 21 + 1
        if step == 50:
            shutil.rmtree(cut / "2-relu" / "checkpoint", ignore_errors=True)
        said = command("resume", cut)
        assert ("ReLU: There is no checkpoint" in said) == (step == 50)
        assert ("ReLU: Nothing was measured yet" in said) == (step <= 42)
        for name in ("0-learned", "1-softmax", "2-relu"):
            same(cut / name, place / name)
            assert not (cut / name / "checkpoint").exists()


def test_trainings_of_one_attention_are_told_apart_where_they_go_on(tmp_path, command, monkeypatch, at_once):
    copies(monkeypatch, tmp_path / "e", tmp_path, {1})
    asked = [f"{SETTINGS.replace('steps=50', 'steps=2')},seed={seed}" for seed in (1, 2)]
    command("emergence", *asked, "--out", tmp_path / "e")
    monkeypatch.undo()
    said = command("resume", tmp_path / "1")
    assert "Softmax, seed 1: It goes on from" in said and "Softmax, seed 2: Nothing was measured yet" in said


def test_what_was_recorded_after_the_checkpoint_is_trained_again_and_compared(tmp_path, command, monkeypatch, at_once):
    where, place = tmp_path / "killed", tmp_path / "e"
    copies(monkeypatch, place, where, {20, 40})
    command("emergence", SETTINGS, "--every", 5, "--out", place)
    monkeypatch.undo()
    shutil.copytree(cut := where / "40", other := tmp_path / "other")
    shutil.rmtree(cut / "checkpoint")
    shutil.copytree(where / "20" / "checkpoint", cut / "checkpoint")
    shutil.copytree(cut, changed := tmp_path / "changed")
    said = command("resume", cut)
    assert "from a checkpoint at step 19." in said and "Trained again: 16 steps" in said and "of 4 that" in said
    same(cut, place)
    # A record of something else is refused, and the folder is as it was.
    rows = (changed / "curves.csv").read_text().splitlines()
    cells = rows[-1].split(",")
    assert cells[0] == "35"
    (changed / "curves.csv").write_text("\n".join([*rows[:-1], ",".join([cells[0], "3.5", *cells[2:]]), ""]))
    before = {p: p.read_bytes() for p in changed.rglob("*") if p.is_file()}
    said = command("resume", changed, code=2)
    assert "the loss after step 35" in said and "is 3.5 in the record" in said
    assert {p: p.read_bytes() for p in changed.rglob("*") if p.is_file()} == before
    # A checkpoint that is damaged, or of a later moment than the record, is left out.
    shutil.rmtree(where / "20" / "checkpoint")
    shutil.copytree(other / "checkpoint", where / "20" / "checkpoint")
    assert "A checkpoint does not fit the record" in command("resume", where / "20")
    same(where / "20", place)
    for file in (other / "checkpoint").glob("*.json"):
        file.write_text("{}")
    assert "There is no checkpoint to go on from" in command("resume", other)
    same(other, place)


def test_what_has_nothing_left_to_do_or_is_written_is_refused(tmp_path, command):
    place = tmp_path / "e"
    command("emergence", SETTINGS, "--out", place)
    assert "all 50 steps of this training have been made" in command("resume", place, code=2)
    assert "leave out --tokens" in command("resume", place, "--tokens", 9, code=2)
    writer = TrainingWriter(tmp_path / "live", Training(Recipe(**TINY)), 20)
    assert "is being written by process" in command("resume", tmp_path / "live", code=2)
    writer.finish("interrupted")
    with pytest.raises(ValueError, match="has measured nothing yet"):
        read(tmp_path / "live")
    late = [resumed(*found) for found in stopped([tmp_path / "live"])]
    command("resume", tmp_path / "live")
    with pytest.raises(ValueError, match="was written by another process meanwhile"):
        late[0].open()
    same(tmp_path / "live", place)


def test_a_training_whose_disk_was_full_between_maps_and_curves_is_read_and_goes_on(tmp_path, at_once, monkeypatch):
    training, real = Training(Recipe(**TINY), "cpu"), files.write
    writer = TrainingWriter(tmp_path / "a", training, 10)

    def write(path, text):
        if path.name == "curves.csv" and training.step >= 30:
            raise files.Unwritten("the disk is full")
        real(path, text)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write", write)
        for moment in training.moments(10):
            if moment is not None:
                writer.add(moment)
        with pytest.raises(ValueError, match="the disk is full"):
            writer.finish("finished")
    assert about_of(tmp_path / "a").status == "failed"
    # Steps 0, 10 and 20; maps.npz has those behind them, too.
    assert len(read(tmp_path / "a")[0].maps) == 3
    going = resumed(*stopped([tmp_path / "a"])[0])
    assert [m.step for m in going.record] == [0, 10, 20] and going.training.step == 20


def test_a_training_that_was_interrupted_is_being_written_until_its_checkpoint_is_there(tmp_path, monkeypatch):
    """Whoever goes on with it meanwhile would write beside it."""
    recipe = Recipe.parse(SETTINGS)
    training, place, during = Training(recipe), tmp_path / "t", []
    writer, write = TrainingWriter(place, training, 5), Checkpoints.write

    def saved(self, *of):
        with pytest.raises(ValueError, match="is being written by process"):
            stopped([place])
        during.append(read(place)[0].curves["step"][-1])
        write(self, *of)

    monkeypatch.setattr(Checkpoints, "write", saved)
    for now in training.moments(5):
        if now is not None:
            writer.add(now)
        if training.step == 12:
            break
    writer.finish("interrupted")
    # By then the record has all that the checkpoint may say.
    assert during == [10] and about_of(place).status == "interrupted"
    ((_, about),) = stopped([place])
    going = resumed(place, about)
    assert going.said[0] == "It goes on from a checkpoint at step 12." and going.training.step == 12
