"""Trainings side by side, and costs that are counted, while people look."""

import time
from functools import partial

import numpy as np
import pytest
import torch

from analysis import files, texts
from analysis.lab.folder import TrainingWriter, about_of
from analysis.lab.recipe import Recipe
from analysis.lab.training import Training
from analysis.lab.transformer import Transformer
from analysis.runs.spec import Spec
from app.jobs.costs import CostsJob
from app.jobs.training import EVERY, TrainingJob

from .test_jobs_kept import home as home
from .waiting import until

pytestmark = pytest.mark.whole

TINY = {"width": 16, "vocabulary": 24, "length": 24, "batch": 8, "steps": 100}


def test_trainings_go_in_step_and_are_those_of_the_library(registry):
    recipes = [Recipe(kind, **TINY) for kind in ("softmax", "relu")]
    run = registry.start(partial(TrainingJob, recipes))
    until(run, lambda: run.status == "finished")
    assert run.share == 1
    for recipe, moments in zip(recipes, run.moments, strict=True):
        wanted = list(Training(recipe).measurements(EVERY))
        assert [m.step for m in moments] == [m.step for m in wanted]
        np.testing.assert_allclose([m.loss for m in moments], [m.loss for m in wanted], rtol=1e-5)


def test_a_training_pauses_goes_on_and_stops(registry):
    run = registry.start(partial(TrainingJob, [Recipe("softmax", **{**TINY, "steps": 100_000})]))
    until(run, lambda: len(run.moments[0]) > 2)
    run.request("paused")
    until(run, lambda: run.status == "paused")
    held = len(run.moments[0])
    time.sleep(0.3)
    assert len(run.moments[0]) == held
    run.request("running")
    until(run, lambda: len(run.moments[0]) > held)
    run.request("stopped")
    until(run, lambda: run.status == "stopped")
    assert len(run.moments[0]) > held


def test_too_many_trainings_are_refused(registry):
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"1 to 3 kinds of attention to train side by side, not {count}"):
            registry.start(partial(TrainingJob, [Recipe(**TINY)] * count))


def test_where_not_all_trainings_can_be_kept_none_is_said_to_be_written(registry, home, monkeypatch):
    real = files.check_room

    def check_room(path, needed, what):
        if path.name == "2-relu":
            raise ValueError("this training needs 1 GB on disk, and there is none: make room")
        real(path, needed, what)

    monkeypatch.setattr(files, "check_room", check_room)
    run = registry.start(partial(TrainingJob, [Recipe(kind, **TINY) for kind in ("softmax", "relu")]))
    until(run, lambda: run.status == "finished")
    assert "this training needs 1 GB on disk" in run.kept.problem
    assert about_of(home / run.id / "1-softmax").status == "failed" and not list(home.rglob(".reserve"))


def test_where_the_last_words_of_two_trainings_have_no_room_the_third_is_finished(registry, home, monkeypatch):
    real = TrainingWriter.finish

    def finish(self, status, **how):
        real(self, status, **how)
        if not self.place.name.startswith("3"):
            raise ValueError("the disk is full: make room")

    monkeypatch.setattr(TrainingWriter, "finish", finish)
    run = registry.start(partial(TrainingJob, [Recipe(kind, **TINY) for kind in ("softmax", "relu", "sigmoid")]))
    until(run, lambda: run.status == "finished")
    assert run.kept.problem
    assert about_of(home / run.id / "3-sigmoid").status == "finished" and not list(home.rglob(".reserve"))


def test_a_page_says_of_each_training_that_failed_why(registry, home, monkeypatch):
    real = Training.measurements

    def measurements(self, every):
        if self.recipe.attention == "sigmoid":
            yield from real(self, every)
            return
        raise ValueError(f"nothing comes of {self.recipe.attention}: choose another")
        yield

    monkeypatch.setattr(Training, "measurements", measurements)
    run = registry.start(partial(TrainingJob, [Recipe(kind, **TINY) for kind in ("softmax", "relu", "sigmoid")]))
    until(run, lambda: run.status == "finished")
    assert run.note == " ".join(f"{kind}: Nothing comes of {kind}: choose another." for kind in ("softmax", "relu"))


def test_costs_are_counted_to_the_end_and_windows_after_them(registry, model, text):
    spec = Spec(model, text, ("dense", "window:window=16", "recompute:window=16,stride=1"), 500, device="cpu")
    run = registry.start(partial(CostsJob, spec, texts.read(text)))
    until(run, lambda: run.status == "finished")
    dense, window, recompute = run.lanes
    assert dense.costs[-1].tokens == window.costs[-1].tokens == 500
    # What dense keeps grows, and a window does not.
    assert (
        dense.costs[-1].cache_bytes > dense.costs[0].cache_bytes
        and window.costs[-1].cache_bytes == window.costs[0].cache_bytes
    )
    assert recompute.costs[-1].tokens > 16
    assert [w.tokens for w in run.windows] == [64, 128, 256]


def test_counting_pauses_and_goes_on(registry, model, text):
    spec = Spec(model, text, ("dense", "window:window=16"), 600, device="cpu")
    run = registry.start(partial(CostsJob, spec, texts.read(text)))
    until(run, lambda: run.lanes and run.lanes[0].costs)
    run.request("paused")
    until(run, lambda: run.status in ("paused", "finished"))
    run.request("running")
    until(run, lambda: run.status == "finished")
    assert run.lanes[0].costs[-1].tokens == 600


def test_the_language_model_has_three_million_parameters():
    """As the page says of it."""
    from app.lesson.chapters.emergence import FOR_PLAYS

    r = Recipe(task="plays", **FOR_PLAYS)
    model = Transformer(r.attention, r.vocabulary, r.length, r.width, r.layers, r.heads, torch.Generator())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3e6, rel=0.05)
