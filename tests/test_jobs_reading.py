"""Live runs: they read, pause when nobody watches, obey, and never die of what they are asked."""

import errno
import time
from functools import partial

import numpy as np
import pytest
import torch

from analysis import texts
from analysis.engine.stream import open_lanes
from analysis.models.loading import load
from analysis.policies import parse
from analysis.runs import library
from analysis.runs.folder import Folder
from analysis.runs.spec import Spec
from analysis.runs.switches import Switch
from app import recordings
from app.frames.reading import ReadingSender
from app.jobs import base, reading
from app.jobs import registry as jobs_registry
from app.jobs.reading import ReadingJob
from app.view import View

from .recordings import decoded
from .waiting import told, until

pytestmark = pytest.mark.whole

POLICIES = ("dense", "window:window=16", "streaming:sinks=4,window=12", "recompute:window=16,stride=4")


def text(count: int) -> texts.Text:
    ids = np.random.default_rng(3).integers(0, 97, count).astype(np.int32)
    return texts.Text("random.npy", "random", None, ids, "")


def begin(registry, model, count=200, policies=POLICIES, pace=0, switches=(), pause=0, keep=True):
    spec = Spec(model, "random.npy", policies, chunk=32)
    run = registry.start(partial(ReadingJob, spec, text(count), switches=switches, pause=pause, keep=keep))
    run.set_pace(pace)
    return run


def test_a_run_reads_to_the_end_and_still_draws_maps(registry, model):
    run = begin(registry, model)
    until(run, lambda: run.status == "finished")
    assert [len(t.nll) for t in run.run.tracks] == [199] * 4
    sender, view, version = ReadingSender(), View(chosen=2, head=(1, 3)), told(run)
    sender.frame(run, view)
    until(run, lambda: run.map(2, 1, 3) is not None)
    # A page that waits for something new hears of it.
    assert told(run) > version
    assert decoded(sender.frame(run, view))[0]["map"]["layer"] == 1
    assert run.map(2, 1, 3).weights.shape == (199, 199)


def test_whoever_waits_for_a_status_finds_what_belongs_to_it(registry, model, monkeypatch):
    shown, real = [], ReadingJob.take_snapshot

    def taken(run):
        shown.append((run.status, run.note))
        return real(run)

    monkeypatch.setattr(ReadingJob, "take_snapshot", taken)
    run = begin(registry, model)
    until(run, lambda: run.status == "finished")
    # The last snapshot had its note by then, and was not yet said to be the last.
    assert shown[-1] == ("running", run.note) and run.snapshot.lanes[0].done


def test_a_fifth_live_run_gets_a_sentence(registry, model):
    runs = [begin(registry, model, pace=5) for _ in range(4)]
    with pytest.raises(ValueError, match="4 runs are live already"):
        begin(registry, model)
    registry.free(runs[0].id)
    assert registry.get(runs[0].id) is None
    begin(registry, model)


def test_nobody_looking_pauses_and_later_frees(registry, model, monkeypatch):
    run = begin(registry, model, pace=5)
    until(run, lambda: run.status == "running")
    monkeypatch.setattr(base, "PAUSE_AFTER", 0.1)
    end = time.monotonic() + 10
    while run.status != "paused" and time.monotonic() < end:
        time.sleep(0.05)
    assert run.status == "paused"
    assert "nobody was looking" in run.note
    monkeypatch.setattr(jobs_registry, "FREE_AFTER", 0.1)
    time.sleep(0.2)
    assert registry.get(run.id) is None


def test_pause_resume_stop(registry, model):
    run = begin(registry, model, pace=20)
    until(run, lambda: len(run.run.tracks[0].nll) > 3)
    run.request("paused")
    until(run, lambda: run.status == "paused")
    read = len(run.run.tracks[0].nll)
    time.sleep(0.3)
    assert len(run.run.tracks[0].nll) == read
    run.request("running")
    until(run, lambda: len(run.run.tracks[0].nll) > read)
    run.request("stopped")
    until(run, lambda: run.status == "stopped")
    assert not run.live


def test_a_pace_that_is_chosen_while_a_run_stands_still_is_told_at_once(registry, model):
    run = begin(registry, model, pause=50)
    until(run, lambda: run.status == "paused")
    version = told(run)
    run.set_pace(20)
    assert told(run) > version and decoded(ReadingSender().frame(run, View()))[0]["pace"] == 20


@pytest.mark.parametrize("pace", [0, 400])
def test_all_lanes_stand_once_where_they_were_asked_to_and_read_on(registry, model, pace):
    run = begin(registry, model, pace=pace, pause=101)
    until(run, lambda: run.status == "paused")
    assert [lane.position for lane in run.snapshot.lanes] == [101] * 4
    assert run.note == "Paused before token 101, as the link has it. Press Resume to go on."
    run.request("running")
    until(run, lambda: run.status == "finished")
    assert [e["what"] for e in run.run.events if e["what"] in ("paused", "running")] == ["running", "paused", "running"]
    (lane,) = open_lanes(load(model, device="cpu"), text(200).ids, [parse(POLICIES[2])])
    nll = []
    while not lane.done:
        nll.append(lane.read(32).nll)
    np.testing.assert_allclose(run.run.tracks[2].nll.view(), np.concatenate(nll), atol=1e-4)


def test_a_text_that_ends_before_the_pause_is_read_to_its_end(registry, model):
    run = begin(registry, model, count=60, pause=101)
    until(run, lambda: run.status == "finished")
    assert not [e for e in run.run.events if e["what"] == "paused"]


def test_pace_bounds_every_lane(registry, model):
    run = begin(registry, model, pace=20)
    until(run, lambda: run.status == "running")
    began = time.monotonic()
    until(run, lambda: min(len(t.nll) for t in run.run.tracks) >= 30)
    assert max(len(t.nll) for t in run.run.tracks) <= 20 * (time.monotonic() - began) + 8
    assert time.monotonic() - began > 1.0


def test_a_switch_is_carried_out_and_marked(registry, model, monkeypatch):
    run = begin(registry, model, count=4000, pace=100)
    until(run, lambda: len(run.run.tracks[1].nll) > 40)
    done, real = [], reading.carry_out

    def carried_out(*of, **more):
        done.append(run.requests_done)
        return real(*of, **more)

    monkeypatch.setattr(reading, "carry_out", carried_out)
    run.switch(1, parse("streaming:sinks=4,window=12"), pin=True)
    until(run, lambda: run.requests_done)
    # It is done when it is carried out, not when it is taken up.
    assert done == [False]
    event = next(e for e in run.run.events if e["what"] == "switch")
    assert event["lane"] == 1
    assert event["how"] == "sinks pinned again"
    until(run, lambda: run.run.tracks[1].policies[-1][1].startswith("streaming"))
    assert run.lanes[1].sinks == 4


PINNED, DROPPED = "streaming:sinks=4,window=12,positions=cache", "window:window=16"


def test_a_lane_that_is_switched_while_it_stands_still_says_at_once_what_it_keeps(registry, model):
    run = begin(registry, model, count=4000, pace=100)
    until(run, lambda: len(run.run.tracks[1].nll) > 40)
    run.request("paused")
    until(run, lambda: run.status == "paused")
    run.switch(1, parse("window:window=8"), pin=False)
    until(run, lambda: run.requests_done and run.snapshot.lanes[1].policy.capacity == 8)
    lane = decoded(ReadingSender().frame(run, View()))[0]["lanes"][1]
    assert (lane["kept"], lane["bytes"]) == (8, 8 * run.model.bytes_per_token)


@pytest.mark.parametrize(("before", "then"), [(0, "recompute:window=16,stride=4"), (3, "dense")])
def test_a_map_is_called_recomputed_where_it_was_whatever_its_lane_is_switched_to(registry, model, before, then):
    run, sender, view = begin(registry, model, count=4000, pace=100), ReadingSender(), View(chosen=before, head=(1, 3))
    until(run, lambda: len(run.run.tracks[before].nll) > 40)
    run.request("paused")
    until(run, lambda: run.status == "paused" and run.map(before, 1, 3) is not None)
    run.switch(before, parse(then), pin=False)
    until(run, lambda: run.requests_done and run.snapshot.lanes[before].policy == parse(then))
    note = decoded(sender.frame(run, view))[0]["map"]["note"]
    assert note == ("the newest window, recomputed" if before == 3 else "")


@pytest.mark.parametrize("pace", [0, 200])
def test_a_live_story_switches_its_lanes_where_the_story_says(registry, model, pace):
    story = (Switch(50, 1, PINNED, pin=True), Switch(117, 1, DROPPED), Switch(64, 2, "dense"))
    run = begin(registry, model, pace=pace, switches=story)
    until(run, lambda: run.status == "finished" or "as the story has it" in run.note)
    until(run, lambda: run.status == "finished")
    told = {(e["position"], e["lane"], e["policy"]) for e in run.run.events if e["what"] == "switch"}
    assert told == {(s.position, s.lane, s.policy) for s in story}
    assert run.run.tracks[1].policies == [(1, DROPPED), (50, PINNED), (117, DROPPED)]
    # What it reads is what a lane reads that is switched by hand at these positions.
    (lane,) = open_lanes(load(model, device="cpu"), text(200).ids, [parse(DROPPED)])
    nll = []
    for upto, policy, pin in ((50, PINNED, True), (117, DROPPED, False), (200, None, False)):
        while lane.position < upto:
            nll.append(lane.read(32, upto).nll)
        if policy:
            lane.switch(parse(policy), pin=pin)
    np.testing.assert_allclose(run.run.tracks[1].nll.view(), np.concatenate(nll), atol=1e-4)


def test_a_lane_that_somebody_switches_leaves_the_story(registry, model):
    story = (Switch(150, 1, PINNED, pin=True), Switch(150, 2, DROPPED))
    run = begin(registry, model, pace=100, switches=story)
    until(run, lambda: len(run.run.tracks[1].nll) > 5)
    run.switch(1, parse("dense"), pin=False)
    until(run, lambda: run.status == "finished")
    switched = [(e["lane"], e["policy"]) for e in run.run.events if e["what"] == "switch"]
    assert switched == [(1, "dense"), (2, DROPPED)]


def test_a_switch_that_this_model_cannot_make_is_one_sentence(registry, model):
    run = begin(registry, model, count=4000, pace=100)
    until(run, lambda: len(run.run.tracks[1].nll) > 10)
    before = run.lanes[1].policy
    run.switch(1, parse("window:window=16,knockout=values,heads=99.0"), pin=False)
    until(run, lambda: "there is no head 99.0" in run.note)
    read = len(run.run.tracks[1].nll)
    until(run, lambda: len(run.run.tracks[1].nll) > read)
    assert run.status == "running" and run.lanes[1].policy == before


def test_a_model_that_cannot_be_loaded_is_one_sentence(registry, tmp_path):
    run = begin(registry, str(tmp_path))
    until(run, lambda: run.status == "failed")
    assert "config.json" in run.note
    assert run.note.endswith(".")


def test_too_many_lanes_get_a_sentence(registry, model):
    with pytest.raises(ValueError, match="at most 6 lanes"):
        begin(registry, model, policies=("dense",) * 7)


def test_a_text_shorter_than_the_window_is_said(registry, model):
    run = begin(registry, model, count=10)
    until(run, lambda: "nothing is ever evicted" in run.note)


def test_out_of_memory_halts_one_lane_and_loses_nothing(registry, model):
    run = begin(registry, model, count=900, policies=("dense", "window:window=16"), pace=100)
    until(run, lambda: run.lanes and min(lane.position for lane in run.lanes) > 60)
    dense, real = run.lanes[0], run.lanes[0].read

    def short(*_, **__):
        # Half of the layers have taken the chunk in when memory runs out.
        with torch.inference_mode():
            for cache in dense.store.layers[:1]:
                cache.append(cache.keys.view()[:, :5], cache.values.view()[:, :5])
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    dense.read = short
    until(run, lambda: 0 in run.halted and run.note)
    assert "Dense stands still, out of memory (it asked for 2.00 GiB more)" in run.note
    at = dense.position
    assert {len(cache) for cache in dense.store.layers} == {at - 1}
    run.set_pace(0)
    until(run, lambda: run.lanes[1].done)
    assert dense.position == at and run.status == "running"
    dense.read = real
    run.switch(0, parse("window:window=16"), False)
    until(run, lambda: run.status == "finished")
    assert len(run.run.tracks[0].nll) == 899


def test_a_run_that_goes_on_at_a_pace_reads_at_once(registry, model):
    job = begin(registry, model, count=3000, pause=400)
    until(job, lambda: job.status == "paused")
    registry.free(job.id)
    job.join()
    again = registry.start(partial(ReadingJob, job.spec, job.text, resumes=job.id))
    again.set_pace(5)
    until(again, lambda: min(len(t.nll) for t in again.run.tracks) > 403, seconds=40)


def test_a_run_that_goes_on_counts_no_pause_as_reading(registry, model):
    job = begin(registry, model, count=3000, pause=100)
    until(job, lambda: job.status == "paused")
    # As if it had stood so for ten minutes.
    job.run.began -= 600
    job.request("running")
    until(job, lambda: len(job.run.tracks[0].nll) > 200)
    registry.free(job.id)
    job.join()
    again = registry.start(partial(ReadingJob, job.spec, job.text, resumes=job.id))
    until(again, lambda: again.snapshot.lanes != ())
    assert 0 < again.snapshot.seconds < 300


@pytest.mark.parametrize("still", [False, True])
def test_what_is_said_of_a_switch_stands_when_it_is_made(registry, model, still):
    job = begin(registry, model, count=3000, pace=20)
    until(job, lambda: len(job.run.tracks[1].nll) > 3)
    if still:
        job.request("paused")
        until(job, lambda: job.status == "paused")
    job.switch(1, parse("streaming:sinks=4,window=12"), pin=False)
    job.tell(f"{job.note} What to know of it.".strip())
    until(job, lambda: job.requests_done)
    assert job.note.endswith("What to know of it.") and ("from the next token on" in job.note) is still


def test_lanes_that_stand_still_without_memory_have_not_come_to_a_pause(registry, model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ReadingJob, "_chunk", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory.")))
        run = begin(registry, model, policies=("dense",), pause=50)
        until(run, lambda: run.halted)
    run.switch(0, parse("window:window=16"), False)
    until(run, lambda: run.status == "paused")
    assert run.lanes[0].position == 50 and run.note.startswith("Paused before token 50")


def test_a_run_that_ends_in_memory_leaves_what_its_folder_goes_on_from(registry, model, monkeypatch):
    job = begin(registry, model, count=600, pause=100)
    until(job, lambda: job.status == "paused")
    place = library.home() / job.id
    there = sorted(place.glob("checkpoint/*"))
    assert there
    monkeypatch.setattr(Folder, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    job.request("running")
    until(job, lambda: job.status == "finished")
    assert job.kept.problem and sorted(place.glob("checkpoint/*")) == there
    monkeypatch.undo()
    assert recordings.find(job.id, "reading").goes_on


def test_a_reading_that_is_not_to_be_kept_leaves_nothing_in_the_library(registry, model, tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path / "library"))
    job = begin(registry, model, policies=POLICIES[:2], keep=False)
    until(job, lambda: job.status == "finished")
    assert all(len(track.nll) == 199 for track in job.run.tracks) and not job.kept.problem
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="what the lesson reads is not kept"):
        job.figure_input()
