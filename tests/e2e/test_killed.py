"""The server is killed in the middle of a run and started again: the link opens the run, and it goes on; so does a
conversation."""

from urllib.parse import urlsplit

import pytest

from analysis.runs.about import about_of
from analysis.runs.folder import Folder
from analysis.runs.reader import load
from analysis.runs.run import Run
from analysis.runs.spec import TYPED, Sampling, Spec

from ..test_resume import killed
from .conftest import started
from .test_chat import FIELD, lane_text, say, wait_answered
from .test_live import press_main, wait_read

pytestmark = pytest.mark.browser


def test_a_run_is_there_after_a_kill_and_goes_on(page, tmp_path):
    where = {"SINKSCOPE_RUNS": str(tmp_path / "runs")}
    with started(**where) as (address, process):
        page.goto(f"{address}/?lane=window:window=64&lane=streaming:sinks=4,window=60")
        page.get_by_text("Window 64").first.wait_for()
        press_main(page)
        for lane in range(2):
            wait_read(page, lane, 33)
        page.wait_for_function("location.search.includes('run=')")
        link = urlsplit(page.url)
        process.kill()
        process.wait()
    (folder,) = (tmp_path / "runs").iterdir()
    before = [track.nll.view().copy() for track in load(folder).tracks]
    assert about_of(folder)["status"] == "killed" and min(map(len, before)) >= 32
    with started(**where) as (address, _):
        page.goto(f"{address}/?{link.query}")
        page.get_by_role("button", name="Resume").click()
        page.get_by_role("button", name="■ Stop").wait_for()
        for lane, was in enumerate(before):
            wait_read(page, lane, len(was) + 33)
        page.get_by_role("button", name="■ Stop").click()
        page.get_by_text("Stopped.").wait_for()
        after = load(folder)
        assert about_of(folder)["status"] == "interrupted" and folder.name in page.url
        for was, track in zip(before, after.tracks, strict=True):
            assert len(track.nll) > len(was) and abs(track.nll.view()[: len(was)] - was).max() <= 1e-4


def test_a_conversation_is_there_after_a_kill_and_goes_on(page, tmp_path):
    where = {"SINKSCOPE_RUNS": str(tmp_path / "runs")}
    with started(**where) as (address, process):
        page.goto(f"{address}/chat")
        page.get_by_label(FIELD).wait_for()
        say(page, "What is the capital of France?")
        wait_answered(page, 1)
        page.wait_for_function("location.search.includes('run=')")
        link = urlsplit(page.url)
        process.kill()
        process.wait()
    with started(**where) as (address, _):
        page.goto(f"{address}/chat?{link.query}")
        page.get_by_text("is kept in the library").wait_for()
        page.get_by_role("button", name="Resume").click()
        wait_answered(page, 1)
        assert "Paris" in lane_text(page, 0)
        say(page, "What is the opposite of hot?")
        wait_answered(page, 2)
        assert link.query.partition("run=")[2][:15] in page.url
    (folder,) = (tmp_path / "runs").iterdir()
    assert [e["what"] for e in load(folder).events].count("answer") == 4


def test_a_conversation_that_was_killed_before_a_word_begins_again_with_its_settings(page, tmp_path):
    spec = Spec("embedded", TYPED, ("window:window=48",), weights="int4", sampling=Sampling(max_new=12))
    Folder(tmp_path / "runs" / "early", Run(spec), text_sha256="", weights_sha256="").event("warning", text="early")
    killed(tmp_path / "runs" / "early")
    with started(SINKSCOPE_RUNS=str(tmp_path / "runs")) as (address, _):
        page.goto(f"{address}/chat?run=early")
        page.get_by_text("Nothing was said in this conversation yet").wait_for()
        page.get_by_role("button", name="Resume").click()
        # Nothing can be said before the model is there.
        wait_answered(page, 0)
        say(page, "What is the capital of France?")
        wait_answered(page, 1)
        assert page.locator(".sk-lane").count() == 1 and "run=early" in page.url
    assert load(tmp_path / "runs" / "early").spec.sampling == spec.sampling
