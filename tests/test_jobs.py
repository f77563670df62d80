"""The border of a job's thread, the lease, the slots, and models on their way: nobody waits for ever."""

import copy
import gc
import shutil
import threading
import time
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from analysis.engine.lane import Lane
from analysis.models import loading as library
from analysis.policies import parse
from analysis.runs.spec import Spec
from app.jobs import base
from app.jobs import registry as jobs_registry
from app.jobs.base import Job
from app.jobs.chat import ChatJob
from app.jobs.loading import Models
from app.jobs.reading import ReadingJob
from app.jobs.registry import MAX_LIVE, Full

from .fuzz import switches
from .fuzz.jobs import Panic, kinds, model_with_words, settled, storm
from .test_jobs_reading import begin
from .waiting import until

pytestmark = pytest.mark.whole

KINDS = list(kinds("", Path()))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tiny model that has a tokenizer."""
    return model_with_words(tmp_path_factory.mktemp("words"))


class Tab:
    """A page that somebody looked from."""

    open = True


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_raised_in_a_job_is_one_sentence_and_a_line_in_the_log(words, kind):
    """And the slot is free.  A few of the places at which something can be raised; the fuzzer takes more."""
    ends, wrong = storm(words, kind, 5, seed=11)
    assert not wrong and ends.total() == 5


def test_a_conversation_is_switched_to_measured_heads_before_a_word_was_said(registry, words, tmp_path):
    talk = registry.start(partial(ChatJob, kinds(words, tmp_path)["chat"].args[0]))
    until(talk, lambda: talk.status == "waiting")
    talk.switch(0, parse("duo:window=8"), pin=True)
    until(talk, lambda: "from the next token on" in talk.note)
    talk.say("to be or not to be")
    until(talk, lambda: talk.idle and talk.status == "waiting")
    assert [lane.turns[-1].why for lane in talk.lanes] == ["limit", "limit"]


def test_a_word_that_the_model_has_no_token_for_is_said(registry, words, tmp_path, monkeypatch):
    talk = registry.start(partial(ChatJob, kinds(words, tmp_path)["chat"].args[0]))
    until(talk, lambda: talk.status == "waiting")
    odd = np.array([5, 9999], np.int32), np.ones(2, np.int8), ()
    with monkeypatch.context() as patch:
        patch.setattr(talk.lanes[0].partner, "encode", lambda *_: odd)
        talk.say("to be")
        until(talk, lambda: "makes token 9999 of this, and the model knows 400 tokens" in talk.note)
    talk.say("to be")
    until(talk, lambda: talk.idle and talk.status == "waiting")
    assert [len(lane.turns) for lane in talk.lanes] == [1, 1]


@pytest.mark.parametrize("job", [switches.reading, switches.talking])
def test_frames_are_whole_while_lanes_are_switched(registry, words, job):
    assert not job(registry, words, 12, seed=5)


@pytest.mark.parametrize("thrown", [KeyError("parts"), Panic("slice"), SystemExit(1)], ids=repr)
def test_a_job_that_cannot_even_be_shown_ends(registry, model, monkeypatch, caplog, thrown):
    def broken(self):
        if self.lanes:
            raise thrown
        return real(self)

    real = ReadingJob.take_snapshot
    monkeypatch.setattr(ReadingJob, "take_snapshot", broken)
    run = begin(registry, model)
    until(run, lambda: run.status == "failed")
    assert f"Something failed inside Sinkscope ({type(thrown).__name__})" in run.note and run.id in run.note
    assert run.id in caplog.text


def fails_in(monkeypatch, what, label, thrown, times=10**9):
    """Let a method of some lanes raise, so many times."""
    real, left = getattr(Lane, what), [times]

    def method(self, *args, **settings):
        if self.policy.label == label and left[0]:
            left[0] -= 1
            raise thrown
        return real(self, *args, **settings)

    monkeypatch.setattr(Lane, what, method)


def test_a_lane_that_cannot_read_on_ends_no_other(registry, model, monkeypatch, caplog):
    fails_in(monkeypatch, "read", "Window 16", KeyError("parts"))
    run = begin(registry, model)
    until(run, lambda: not run.live)
    assert run.status == "finished" and [len(t.nll) for t in run.run.tracks] == [199, 0, 199, 199]
    assert run.note.startswith("Window 16 stands still at token 1. Something failed inside Sinkscope (KeyError)")
    assert run.id in caplog.text


def test_a_run_none_of_whose_lanes_can_read_has_failed(registry, model, monkeypatch):
    run = begin(registry, model, pace=5)
    until(run, lambda: run.status == "running")
    monkeypatch.setattr(Lane, "read", lambda *_: 1 / 0)
    run.set_pace(0)
    until(run, lambda: not run.live)
    assert run.status == "failed" and "(ZeroDivisionError)" in run.note


@pytest.mark.parametrize("what", ["switch", "missing_sinks"])
@pytest.mark.parametrize("thrown", [AttributeError("'LayerCache' object has no attribute 'parts'"), Exception("?")])
def test_a_switch_that_fails_ends_no_lane(registry, model, monkeypatch, what, thrown):
    run = begin(registry, model, count=200, pace=50)
    until(run, lambda: min(len(t.nll) for t in run.run.tracks) > 3)
    fails_in(monkeypatch, what, "Window 16", thrown)
    run.switch(1, parse("duo:window=8"), pin=True)
    until(run, lambda: type(thrown).__name__ in run.note)
    run.set_pace(0)
    until(run, lambda: run.status == "finished")
    assert [len(t.nll) for t in run.run.tracks] == [199] * 4
    with pytest.raises(ValueError, match="there is no lane 9"):
        run.switch(9, parse("dense"), pin=False)


def test_a_map_that_cannot_be_drawn_ends_no_run(registry, model, monkeypatch):
    monkeypatch.setattr("analysis.maps.recent.head_map", lambda *_: [][0])
    run = begin(registry, model)
    until(run, lambda: run.map(0, 1, 1) is None and "(IndexError)" in run.note)
    until(run, lambda: run.status == "finished" and run.map(0, 1, 1) is None)


def test_what_nobody_looks_at_is_freed_though_nobody_asks(registry, model, monkeypatch):
    monkeypatch.setattr(jobs_registry, "SWEEP_EVERY", 0.05)
    run = begin(registry, model, pace=5)
    until(run, lambda: run.status == "running")
    monkeypatch.setattr(jobs_registry, "FREE_AFTER", 0.1)
    gone = weakref.ref(run)
    del run
    end = time.monotonic() + 60
    while gone() is not None and time.monotonic() < end:
        time.sleep(0.05)
        gc.collect()
    assert gone() is None


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_every_kind_comes_back_though_nobody_asks(registry, words, tmp_path, monkeypatch, kind):
    """Lanes and models too: no page, no thread and no table of the registry holds them on."""
    monkeypatch.setattr(jobs_registry, "SWEEP_EVERY", 0.05)
    made, real = list[weakref.ref](), Lane.__init__
    monkeypatch.setattr(Lane, "__init__", lambda self, *a: (made.append(weakref.ref(self)), real(self, *a))[1])
    job = registry.start(kinds(words, tmp_path)[kind])
    until(job, lambda: settled(job))
    if kind != "training":
        made.append(weakref.ref(registry.model(job.spec, str)))
    made.append(weakref.ref(job))
    assert len(made) > (kind in ("reading", "chat", "knock-outs", "costs", "capture"))
    monkeypatch.setattr(jobs_registry, "FREE_AFTER", 0.3)
    del job
    end = time.monotonic() + 60
    while any(ref() is not None for ref in made) and time.monotonic() < end:
        time.sleep(0.05)
    assert [ref() for ref in made] == [None] * len(made)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_pauses_unseen(registry, words, tmp_path, monkeypatch, kind):
    with monkeypatch.context() as patch:
        patch.setattr(base, "PAUSE_AFTER", 0.0)
        job = registry.start(kinds(words, tmp_path)[kind])
        version, since = 0, time.monotonic()
        while time.monotonic() - since < 0.4:
            if job.version != version or job.status == "loading":
                version, since = job.version, time.monotonic()
            time.sleep(0.02)
        assert job.live and not settled(job)
    if job.status == "paused":
        job.request("running")
    until(job, lambda: settled(job))
    assert job.status in ("finished", "waiting"), job.note


@pytest.fixture
def gate(monkeypatch):
    """A model's loading stands still until this is set."""
    gate, real = threading.Event(), library.load

    def slow(name, **settings):
        settings["progress"]("Loading slowly")
        assert gate.wait(60)
        return real(name, **settings)

    monkeypatch.setattr(library, "load", slow)
    yield gate
    gate.set()


def test_a_model_on_its_way_stands_in_nobodys_way(registry, model, tmp_path, request):
    first = begin(registry, model)
    until(first, lambda: first.status == "finished")
    gate = request.getfixturevalue("gate")
    waits = begin(registry, str(tmp_path / "nowhere"))
    again = begin(registry, model)
    until(again, lambda: again.status == "finished")
    assert waits.status == "loading" and registry.get(waits.id) is waits
    gate.set()
    until(waits, lambda: waits.status == "failed")


def test_only_a_model_that_was_loaded_is_in_use(registry, model, tmp_path):
    wrong = begin(registry, str(tmp_path / "nowhere"))
    until(wrong, lambda: wrong.status == "failed")
    assert registry.get(wrong.id) is wrong and registry.models() == set()
    right = begin(registry, model)
    until(right, lambda: right.status == "finished")
    assert registry.models() == {model}


def test_stop_and_free_need_not_wait_for_a_model(registry, model, gate):
    one, two = begin(registry, model), begin(registry, model)
    until(one, lambda: one.note == "Loading slowly")
    one.request("stopped")
    until(one, lambda: one.status == "stopped")
    registry.free(two.id)
    two.join()
    assert not two.working and not gate.is_set()
    gate.set()
    three = begin(registry, model)
    until(three, lambda: three.status == "finished")


def test_models_are_loaded_once_for_all_who_wait(model, monkeypatch):
    times, real = [], library.load
    monkeypatch.setattr(library, "load", lambda *a, **k: (times.append(a), time.sleep(0.2), real(*a, **k))[2])
    loaded, found = Models(), []
    threads = [
        threading.Thread(target=lambda: found.append(loaded.get(Spec(model, "t", ("dense",)), lambda _: None)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 1 and len(found) == 4 and len(set(map(id, found))) == 1


def test_a_wrong_name_evicts_nothing_and_a_model_in_use_is_found_again(model, tmp_path):
    loaded = Models(most=1)
    spec = Spec(model, "t", ("dense",), device="cpu")
    mine = loaded.get(spec, lambda _: None)
    (tmp_path / "config.json").write_text("{}")
    for wrong in ("nowhere/at-all/x", "./nowhere", str(tmp_path), "embeded"):
        with pytest.raises(ValueError, match=r"\w"):
            loaded.get(Spec(wrong, "t", ("dense",)), lambda _: None)
        assert [*loaded._kept.values()] == [mine]
    other = loaded.get(Spec(model, "t", ("dense",), dtype="bfloat16", device="cpu"), lambda _: None)
    assert [*loaded._kept.values()] == [other] and loaded.get(spec, lambda _: None) is mine


def test_a_model_that_was_written_anew_at_its_path_is_loaded_anew(model, tmp_path):
    loaded, place = Models(), tmp_path / "mine"
    shutil.copytree(model, place)
    spec = Spec(str(place), "t", ("dense",), device="cpu")
    before = loaded.get(spec, lambda _: None)
    assert loaded.get(spec, lambda _: None) is before
    changed = copy.deepcopy(before.network)
    changed.get_input_embeddings().weight.data.mul_(2)
    changed.save_pretrained(place)
    after = loaded.get(spec, lambda _: None)
    assert after is not before and after.sha256 != before.sha256
    assert loaded.get(spec, lambda _: None) is after


def test_a_fifth_is_told_who_holds_the_four(registry, model, monkeypatch):
    held = [begin(registry, model, pace=5) for _ in range(MAX_LIVE)]
    tab = Tab()
    for run in held:
        run.renew_lease(tab)
    with pytest.raises(
        Full,
        match=r"4 runs are live already: reading of random.npy \(watched\).* close",
    ):
        begin(registry, model)
    monkeypatch.setattr(base, "PAUSE_AFTER", 0.1)
    time.sleep(0.3)
    # Nobody looks, but their pages are open: they are asked for, and not taken.
    with pytest.raises(Full, match=r"unwatched for 0 s\).*; take over one that nobody watches") as full:
        begin(registry, model)
    assert [h.id for h in full.value.holders] == [r.id for r in held] and all(h.unwatched for h in full.value.holders)
    assert registry.take_over(held[2].id)
    begin(registry, model, pace=5).renew_lease(tab)
    assert registry.get(held[2].id) is None and len(registry.holders()) == MAX_LIVE
    # A page that was closed will not come back for it.
    time.sleep(0.3)
    tab.open = False
    begin(registry, model, pace=5)
    assert sum(registry.get(run.id) is None for run in held) == 2 and len(registry.holders()) == MAX_LIVE


def test_a_fifth_in_place_of_one_that_has_ended_takes_a_slot_of_its_own(registry, model, monkeypatch):
    ended = begin(registry, model)
    until(ended, lambda: ended.status == "finished")
    held = [begin(registry, model, pace=5) for _ in range(MAX_LIVE)]
    monkeypatch.setattr(base, "PAUSE_AFTER", 0)
    registry.start(lambda m: ReadingJob(ended.spec, ended.text, m), instead=ended.id)
    assert len(registry.holders()) == MAX_LIVE and sum(registry.get(run.id) is None for run in held) == 1


def test_what_somebody_looks_at_is_not_taken_over(registry, model):
    run = begin(registry, model, pace=5)
    assert not registry.take_over(run.id) and registry.get(run.id) is run
    assert registry.take_over("gone")


def test_a_job_that_cannot_be_made_ends_no_other(registry, model):
    run = begin(registry, model, pace=5)

    def broken(_) -> Job:
        raise KeyError("?")

    with pytest.raises(KeyError):
        registry.start(broken, instead=run.id)
    assert registry.get(run.id) is run
    other = registry.start(lambda m: ReadingJob(run.spec, run.text, m), instead=run.id)
    assert registry.get(run.id) is None and registry.get(other.id) is other
