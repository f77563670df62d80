"""Many pages watch a job and one steers it: the one that began it, or took it over, as long as it is open."""

from dataclasses import dataclass

import pytest

from app.feed import paced
from app.frames.chat import ChatSender
from app.frames.reading import ReadingSender
from app.jobs.base import Steering
from app.panels.steering import who
from app.view import ChatView, View

from .fuzz.jobs import kinds, model_with_words
from .recordings import decoded
from .test_jobs_reading import begin
from .waiting import until

pytestmark = pytest.mark.whole


@dataclass
class Tab:
    """A page."""

    name: str
    open: bool = True

    def __hash__(self) -> int:
        return hash(self.name)


def test_who_began_a_job_steers_it_and_others_take_over(registry, model):
    job, mine, other, third = begin(registry, model, pace=5), Tab("a"), Tab("b"), Tab("c")
    job.take_over(mine)
    assert job.steering(mine) == Steering(True, 1, 1, 1)
    assert job.steering(other) == Steering(False, 1, 2, 2)
    assert job.steer(mine) and not job.steer(other) and not job.steer(third)
    job.take_over(other)
    assert job.steer(other) and not job.steer(mine)
    assert job.steering(mine) == Steering(False, 2, 1, 2)
    job.take_over(mine)
    assert job.steer(mine) and not job.steer(other)


def test_who_steers_is_said_of_one_thing_and_of_several():
    seen = Steering(False, 1, 2, 2)
    assert who(seen, "reading", taken=False) == "Viewer 1 steers this reading. You are viewer 2 of 2."
    assert who(seen, "knock-outs", taken=True) == "Viewer 1 has taken over these knock-outs. You are viewer 2 of 2."


def test_where_the_owner_is_gone_the_first_that_asks_steers(registry, model):
    job, mine, other, third = begin(registry, model, pace=5), Tab("a"), Tab("b"), Tab("c")
    job.take_over(mine)
    for tab in (other, third):
        job.renew_lease(tab)
    mine.open = False
    assert job.steering(other) == Steering(True, 0, 2, 2) and job.steering(third).mine
    assert job.steer(third) and not job.steer(other)
    # Who comes back finds it steered by another.
    mine.open = True
    assert not job.steer(mine)


def test_a_job_that_no_page_began_is_steered_by_the_first(registry, model):
    job, one, two = begin(registry, model, pace=5), Tab("a"), Tab("b")
    assert job.steering(two).mine and job.steer(one) and not job.steer(two)


def test_pages_that_were_closed_are_forgotten(registry, model):
    job = begin(registry, model, pace=5)
    tabs = [Tab(f"{i}") for i in range(100)]
    for tab in tabs:
        job.renew_lease(tab)
        tab.open = False
    last = Tab("last")
    assert job.steering(last) == Steering(True, 0, 101, 1)


def test_one_server_draws_for_many_pages_no_more_often_than_it_can(registry, model):
    job, tabs = begin(registry, model, pace=5), [Tab(f"{i}") for i in range(40)]
    assert paced(None, 0.1) == paced(job, 0.1) == 0.1
    for viewers, tab in enumerate(tabs, 1):
        job.renew_lease(tab)
        assert job.viewers == viewers and viewers / paced(job, 0.1) <= 100
    # Pages that are paced more slowly stay so, and those that are closed take nothing.
    assert paced(job, 2) == 2
    for tab in tabs[1:]:
        tab.open = False
    assert paced(job, 0.1) == 0.1


def test_frames_say_whether_the_page_steers(registry, tmp_path, tmp_path_factory):
    words = model_with_words(tmp_path_factory.mktemp("words"))
    talk, run = registry.start(kinds(words, tmp_path)["chat"]), registry.start(kinds(words, tmp_path)["reading"])
    until(talk, lambda: talk.snapshot)
    talker, reader = ChatSender(), ReadingSender()
    for steers in (True, False):
        assert decoded(talker.frame(talk, ChatView(), "", steers))[0]["steers"] is steers
        assert decoded(reader.frame(run, View(), steers))[0]["steers"] is steers


def test_pages_that_look_at_the_same_share_a_frame(registry, model):
    run = begin(registry, model, count=200)
    until(run, lambda: run.status == "finished")
    one, other = ReadingSender(), ReadingSender()
    shared = one.frame(run, View())
    assert other.frame(run, View()) is shared
    for unlike in (View(mode="rolling"), View(chosen=1)):
        assert other.frame(run, unlike).packed() != shared.packed()
    assert other.frame(run, View(), steers=False).packed() != shared.packed()
    # What has changed since is told to all.
    run.tell("Something else.")
    assert decoded(one.frame(run, View()))[0]["note"] == "Something else."
