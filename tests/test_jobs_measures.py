"""Live measures and captures: they grow while one looks, are stopped, and say what cannot be."""

from functools import partial

import numpy as np
import pytest

from analysis.experiments.measures import joined, measure, samples_of
from analysis.maps.stretch import Stretch
from analysis.runs.spec import Spec
from app.jobs.capture import CaptureJob
from app.jobs.measures import MeasuresJob

from .families import twin
from .test_jobs_reading import text
from .waiting import until

pytestmark = pytest.mark.whole


def test_samples_are_measured_one_part_after_the_other(registry, model, tiny_llama):
    spec = Spec(model, "random.npy", ("dense",), 20)
    run = registry.start(partial(MeasuresJob, spec, text(400), 40, 2))
    until(run, lambda: run.status == "finished")
    assert run.done == run.samples == 40
    wanted = joined(list(measure(twin(tiny_llama), samples_of(text(400).ids, 40, 20), first=2)))
    np.testing.assert_allclose(run.measured.heads["sink_mass"], wanted.heads["sink_mass"], atol=1e-5)


def test_a_text_shorter_than_a_sample_is_said(registry, model):
    run = registry.start(partial(MeasuresJob, Spec(model, "random.npy", ("dense",), 64), text(30), 4, 4))
    until(run, lambda: run.status == "failed")
    assert "choose a longer one" in run.note


@pytest.mark.parametrize("kept", [True, False])
def test_a_stretch_is_captured_and_opened_again(registry, model, tmp_path, kept):
    folder = str(tmp_path / "s") if kept else ""
    spec = Spec(model, "random.npy", ("streaming:sinks=4,window=12",), 100)
    run = registry.start(partial(CaptureJob, spec, text(100), folder))
    until(run, lambda: run.status == "finished")
    assert run.read == run.total == run.atlas.stretch.tokens == 100 and len(run.pieces) == 101
    if kept:
        again = registry.start(partial(CaptureJob, Spec(model, "other", ("dense",), 5), None, folder))
        until(again, lambda: again.status == "finished")
        assert again.spec == spec and again.atlas.stretch.tokens == 100


def test_a_capture_that_is_stopped_leaves_nothing(registry, model, tmp_path):
    spec = Spec(model, "random.npy", ("dense",), 4000, chunk=16)
    run = registry.start(partial(CaptureJob, spec, text(4000), str(tmp_path / "s")))
    until(run, lambda: run.read > 32)
    run.request("stopped")
    until(run, lambda: run.status == "stopped")
    assert not (tmp_path / "s").exists() and run.atlas is None


def test_a_disk_that_is_too_small_is_said(registry, model, tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 1000})())
    run = registry.start(partial(CaptureJob, Spec(model, "random.npy", ("dense",), 100), text(100), ""))
    until(run, lambda: run.status == "failed")
    assert "on disk" in run.note and "ask for less" in run.note and not any(tmp_path.iterdir())


def test_a_folder_with_other_things_in_it_is_left_alone(registry, model, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    spec = Spec(model, "random.npy", ("dense",), 4000, chunk=16)
    run = registry.start(partial(CaptureJob, spec, text(4000), str(tmp_path)))
    run.request("stopped")
    until(run, lambda: run.status == "failed")
    assert "is not empty" in run.note and "name a new folder" in run.note
    assert (tmp_path / "mine.txt").read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


def test_what_others_put_into_its_folder_while_the_model_is_loaded_is_left_alone(
    registry, model, tmp_path, monkeypatch
):
    begin = partial(CaptureJob, Spec(model, "random.npy", ("dense",), 100), text(100), str(tmp_path / "s"))
    real = CaptureJob._load

    def load(self):
        monkeypatch.setattr(CaptureJob, "_load", real)
        other = registry.start(begin)
        until(other, lambda: other.status == "finished")
        return real(self)

    monkeypatch.setattr(CaptureJob, "_load", load)
    late = registry.start(begin)
    until(late, lambda: late.status == "failed")
    assert "holds a stretch already" in late.note and Stretch(tmp_path / "s").tokens == 100
