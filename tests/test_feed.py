"""Feeds: a page's component asks for frame after frame, and no script runs for it."""

import gc
import time
from dataclasses import astuple

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app import feed
from app.feed import EVERY, ROUTES, Feed
from app.frames.reading import ReadingSender
from app.view import View

from .recordings import decoded
from .test_jobs_reading import begin
from .waiting import told, until

pytestmark = pytest.mark.whole


@pytest.fixture
def server():
    """A browser of a server that has feeds alone."""
    with TestClient(Starlette(routes=ROUTES)) as browser:
        yield browser


@pytest.fixture
def run(registry, model):
    run = begin(registry, model, count=200)
    until(run, lambda: run.status == "finished")
    told(run)
    return run


def shown(page: Feed, run, **view) -> str:
    """The address of what a page looks at."""
    look = View(**view)
    return page.follow(run, astuple(look), lambda job: ReadingSender().frame(job, look))["feed"]


def asked(server, address: str, had: str = ""):
    return server.get(address, headers={"If-None-Match": had})


def test_a_page_is_answered_when_there_is_something_new(server, run):
    page = Feed()
    address = shown(page, run)
    first = asked(server, address)
    before = decoded(first.content)
    assert first.status_code == 200 and before[0]["seq"] == run.version
    assert first.content == ReadingSender().frame(run, View()).packed()
    # Nothing has happened since: so nothing is sent, after a while in which it might have.
    nothing = asked(server, address, first.headers["ETag"])
    assert (nothing.status_code, nothing.content) == (304, b"")
    run.tell("Something else.")
    second = asked(server, address, first.headers["ETag"])
    assert decoded(second.content, before)[0]["note"] == "Something else."
    # Another look is something new, too; the same look is none.
    shown(page, run, mode="rolling")
    third = asked(server, address, second.headers["ETag"])
    assert decoded(third.content, before)[0]["mode"] == "rolling"
    shown(page, run, mode="rolling")
    assert asked(server, address, third.headers["ETag"]).status_code == 304


def test_of_a_frame_only_what_has_changed_is_sent(server, run):
    page = Feed()
    address = shown(page, run, chosen=2, head=(1, 3))
    until(run, lambda: decoded(ReadingSender().frame(run, View(chosen=2, head=(1, 3))))[0]["map"])
    told(run)
    first = asked(server, address)
    run.tell("Something else.")
    second = asked(server, address, first.headers["ETag"])
    assert len(second.content) < len(first.content) / 20
    shown(page, run, chosen=1, head=(1, 3), mode="rolling")
    until(run, lambda: run.map(1, 1, 3) is not None)
    told(run)
    third = asked(server, address, second.headers["ETag"])
    known, look = decoded(first.content), View(chosen=1, head=(1, 3), mode="rolling")
    known = decoded(third.content, decoded(second.content, known))
    for had, whole in zip(known, decoded(ReadingSender().frame(run, look)), strict=True):
        np.testing.assert_equal({**had, "arrays": 0}, {**whole, "arrays": 0})
    # Whoever shows something else is sent all.
    assert decoded(asked(server, address, first.headers["ETag"]).content)[0]["schema"]


def test_a_head_is_drawn_as_long_as_its_page_asks(server, run):
    page = Feed()
    address = shown(page, run, chosen=2, head=(1, 3))
    until(run, lambda: decoded(asked(server, address).content)[0]["map"])
    told(run)
    first = asked(server, address)
    had = first.headers["ETag"]
    # Longer than a job draws a map that nobody asks for.
    for _ in range(3):
        assert asked(server, address, had).status_code == 304
    run.tell("Something else.")
    head, arrays = decoded(asked(server, address, had).content, decoded(first.content))
    assert (head["note"], head["map"]["layer"]) == ("Something else.", 1) and "map" in arrays


def test_frames_are_as_far_apart_as_their_page_bears(server, run):
    page = Feed()
    address = shown(page, run)
    asked(server, address)
    began = time.monotonic()
    for _ in range(3):
        run.tell("Something else.")
        asked(server, address)
    assert time.monotonic() - began >= 2.9 * EVERY


def test_a_page_that_looks_at_nothing_is_told_so(server, registry, run):
    page, other = Feed(), Feed()
    address = shown(page, run)
    assert asked(server, address).status_code == 200
    registry.free(run.id)
    for nothing in (address, f"{feed.PATH}/{other.id}", f"{feed.PATH}/unknown"):
        assert asked(server, nothing).status_code == 204
    shown(page, (again := begin(registry, run.spec.model, count=100)))
    until(again, lambda: asked(server, address).status_code == 200)
    del page
    gc.collect()
    assert asked(server, address).status_code == 204


def test_a_look_that_changes_while_a_frame_is_made_is_sent_next(server, run):
    page, look = Feed(), View()

    def slow(job):
        # The script runs just now.
        shown(page, run, mode="rolling")
        return ReadingSender().frame(job, look)

    address = page.follow(run, "first", slow)["feed"]
    first = asked(server, address)
    before = decoded(first.content)
    assert before[0]["mode"] == "relative"
    second = asked(server, address, first.headers["ETag"])
    assert second.status_code == 200 and decoded(second.content, before)[0]["mode"] == "rolling"


def test_what_a_frame_raises_is_said_by_the_script(server, run):
    page = Feed()

    def wrong(job):
        raise ValueError("this cannot be drawn")

    address = page.follow(run, "wrong", wrong)["feed"]
    answer = asked(server, address)
    assert answer.status_code == 500 and "this cannot be drawn" not in answer.text
    with pytest.raises(ValueError, match="this cannot be drawn"):
        page.follow(run, "wrong", wrong)
    assert asked(server, shown(page, run)).status_code == 200
