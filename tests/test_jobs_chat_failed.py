"""A page's conversation in which a lane failed goes on: that lane too, from where it was whole."""

import numpy as np
import pytest

from analysis.chat.conversation import Conversation
from analysis.runs.reader import load
from app.jobs.kept import RunKeeper

from .test_jobs_chat_resume import begin as begin
from .test_jobs_chat_resume import ready, spoken
from .test_jobs_chat_resume import words as words
from .test_jobs_kept import home as home
from .test_jobs_kept import settle
from .test_resume import killed
from .waiting import copied, until

pytestmark = pytest.mark.whole


@pytest.mark.parametrize(
    "moment", ["in its prompt", "in its prompt, and all answer again", "in its answer, and the others go on"]
)
def test_a_conversation_one_of_whose_lanes_failed_goes_on(moment, begin, registry, home, monkeypatch):
    real, save, failing = Conversation._step, RunKeeper.save, [False]
    answered = moment.startswith("in its answer")

    def step(lane, chunk):
        if failing[0] and lane.index == 1 and (len(lane.tokens) > lane.turns[-1].asked + 30 if answered else True):
            failing[0] = False
            raise RuntimeError("CUDA out of memory")
        return real(lane, chunk)

    monkeypatch.setattr(Conversation, "_step", step)
    # As if half a minute went by from one token to the next.
    monkeypatch.setattr(RunKeeper, "save", lambda self, make, *, now=False: save(self, make, now=now or answered))
    job = begin()
    job.say("to be")
    settle(job, 1)
    failing[0] = True
    job.say("or not to be")
    settle(job, 2)
    assert "says no more" in job.note and job.lanes[1].turns[-1].why == "failed" and job.lanes[1].unread
    if "again" in moment:
        job.again()
        until(job, lambda: job.epoch == 1)
        settle(job, 2)
        assert job.lanes[1].turns[-1].why in ("ended", "limit") and not job.note
        assert "failed" not in dict(job.snapshot[1].cut).values()
    said, turns = spoken(job), [lane.turns for lane in job.lanes]
    registry.free(job.id)
    job.join()
    again = begin(resumes=job.id)
    ready(again)
    assert spoken(again) == said and [lane.turns for lane in again.lanes] == turns
    again.say("the question")
    settle(again, 3)
    kept = load(home / again.id)
    for lane, track, costs in zip(again.lanes, kept.tracks, again.costs, strict=True):
        assert lane.turns[-1].why in ("ended", "limit") and track.token_ids.view().tolist() == lane.tokens[1:].tolist()
        assert (np.diff(costs.positions.view()) > 0).all()


@pytest.mark.parametrize("moment", ["in its prompt", "in its answer"])
def test_a_lane_that_failed_is_told_from_one_that_was_stopped_where_events_alone_say_so(
    moment, begin, registry, home, monkeypatch
):
    """Killed while the others still answered, with the checkpoint of before."""
    real, failing = Conversation._step, [False]

    def step(lane, chunk):
        begun = lane.turns[-1].begin
        if (
            failing[0]
            and lane.index == 1
            and (begun is not None and len(lane.tokens) > begun + 3) == ("answer" in moment)
        ):
            failing[0] = False
            raise RuntimeError("CUDA out of memory")
        return real(lane, chunk)

    monkeypatch.setattr(Conversation, "_step", step)
    job = begin()
    job.say("to be")
    settle(job, 1)
    failing[0] = True
    job.say("or not to be")
    until(job, lambda: '"failed"' in (home / job.id / "events.jsonl").read_text())
    place = copied(home / job.id, home / "killed")
    settle(job, 2)
    job.say("the question")
    settle(job, 3)
    whole = spoken(job)
    registry.free(job.id)
    killed(place)
    again = begin(resumes="killed")
    ready(again)
    assert again.lanes[1].turns[-1].why == "failed" and again.snapshot[1].cut[-1][1] == "failed"
    # It has gone back, as it did then.
    assert again.lanes[1].unread
    again.say("the question")
    settle(again, 3)
    assert spoken(again) == whole
