"""Laws of results that stopped, on their pages: they are found again and completed from there."""

import json
import threading
from functools import partial

import pytest
from streamlit.testing.v1 import AppTest

from analysis import texts
from analysis.runs.about import about_of
from analysis.runs.spec import Spec
from app.jobs.ablation import AblationJob
from app.jobs.measures import MeasuresJob
from app.jobs.registry import REGISTRY

from .fuzz import seeds
from .fuzz.addresses import MAIN
from .test_jobs_kept import home as home
from .test_resume import killed
from .waiting import copied, until

pytestmark = pytest.mark.whole


@pytest.fixture(params=["knockouts", "measures"])
def half(request, registry, model, text, home, monkeypatch):
    """The name of a result of which the first part is there."""
    source, is_there = texts.read(text), threading.Event()
    spec = Spec(model, text, ("window:window=12",), 300, device="cpu")
    kind, part = (AblationJob, "effects") if request.param == "knockouts" else (MeasuresJob, "done")
    real, place = kind.take_snapshot, home / "half"

    def copying(self):
        # Between two parts, however fast they come.
        if getattr(self, part) and not is_there.is_set():
            copied(home / self.id, place)
            is_there.set()
        return real(self)

    monkeypatch.setattr(kind, "take_snapshot", copying)
    job = registry.start(
        partial(AblationJob, spec, source, "weights", 1)
        if request.param == "knockouts"
        else partial(MeasuresJob, Spec(model, text, ("dense",), 20, device="cpu"), source, 40, 2)
    )
    until(job, is_there.is_set)
    registry.free(job.id)
    job.join()
    killed(place)
    return place.name


def opened(**asked) -> AppTest:
    at = AppTest.from_file(MAIN, default_timeout=60).switch_page("views/heads.py")
    at.query_params.update(asked)
    at.run()
    assert not at.exception
    return at


def labels(at: AppTest) -> list[str]:
    return [button.label for button in at.button]


def test_a_result_that_was_killed_is_found_by_its_address_and_completed(half, home, monkeypatch):
    monkeypatch.setattr("app.panels.heads.chosen_text", lambda key, name: texts.read(name))
    kind = about_of(home / half)["kind"]
    at = opened(run=half)
    assert "Resume" in labels(at)
    # Nobody knows whether the text has as many.
    assert kind != "knockouts" or any("up to 300 tokens of" in caption.value for caption in at.caption)
    assert at.segmented_control(key="heads_panel").value == kind
    asked = at.session_state.heads
    assert asked["kind"] == "weights" and asked["layer"] == 1 if kind == "knockouts" else asked["samples"] == 40
    assert at.query_params["run"] in (half, [half])
    next(b for b in at.button if b.label == "Resume").click().run()
    assert not at.exception
    job = REGISTRY.get(half)
    assert job is not None, [e.value for e in at.error]
    until(job, lambda: job.status == "finished")
    at.run()
    assert "Resume" not in labels(at) and about_of(home / half)["status"] == "finished"
    REGISTRY.free(half)


def test_a_text_that_is_no_longer_here_is_asked_for_in_a_sentence(half, home):
    at = opened(run=half)
    next(b for b in at.button if b.label == "Resume").click().run()
    assert not at.exception and any("is no longer here" in e.value for e in at.error) and REGISTRY.get(half) is None


def test_a_result_that_does_not_say_what_was_asked_is_refused_in_a_sentence(half, home, monkeypatch):
    monkeypatch.setattr("app.panels.heads.chosen_text", lambda key, name: texts.read(name))
    file, about = home / half / "run.json", about_of(home / half)
    file.write_text(json.dumps(about | {"settings": {"kind": "weights", "layer": "one"}}))
    at = opened(run=half)
    next(b for b in at.button if b.label == "Resume").click().run()
    assert not at.exception and any("does not say what was asked" in e.value for e in at.error)
    assert REGISTRY.get(half) is None
    file.write_text(json.dumps(about | {"settings": ["weights"]}))
    opened(run=half)


def test_the_list_of_runs_leads_to_what_can_be_completed(half):
    at = AppTest.from_file(MAIN, default_timeout=60).switch_page("views/runs.py").run()
    assert not at.exception
    assert "Open" in [link.proto.label for link in at.get("page_link")]
    assert any(f"python -m analysis resume {half}" in code.value for code in at.code)


def test_a_stretch_that_is_opened_twice_is_one_to_make_figures_of(home, tmp_path):
    seeds.model(tmp_path / "model")
    seeds.stretch(home / "st", tmp_path / "model")
    at = opened(run="st")
    for _ in range(2):
        next(b for b in at.button if b.label == "Open again").click().run()
        job = REGISTRY.get("st")
        assert job is not None, [e.value for e in at.error]
        until(job, lambda job=job: job.status == "finished")
        at.run()
    at.switch_page("views/figures.py")
    at.query_params.clear()
    at.query_params["figure"] = "head-map"
    at.run()
    (made_of,) = (box for box in at.selectbox if box.label == "Made of")
    assert [of.partition(":")[0] for of in made_of.options] == ["The stretch of the Heads page", "A folder …"]
    REGISTRY.free("st")
