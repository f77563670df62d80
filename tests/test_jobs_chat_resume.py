"""A page's conversation that goes on is the one that was never stopped: the same tokens, however it was stopped."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from starlette.requests import Request

from analysis.chat import resume as chats
from analysis.chat.conversation import Conversation
from analysis.chat.scripts import read_script
from analysis.cli import terminal
from analysis.cli.console import out
from analysis.models.loading import load as load_model
from analysis.policies import parse
from analysis.runs import library, resume
from analysis.runs.about import about_of
from analysis.runs.checkpoint import Saver
from analysis.runs.reader import load
from analysis.runs.recorded_chat import recorded_chat
from app import recordings
from app.frames.chat import ChatSender, ChatView
from app.jobs.chat import ChatJob

from .fuzz.jobs import kinds, model_with_words
from .recordings import decoded
from .test_jobs_kept import alike, settle
from .test_jobs_kept import home as home
from .test_resume import killed
from .test_resume_chat import stop_at
from .waiting import copied, until

pytestmark = pytest.mark.whole

SCRIPT = ["to be or not to be", "that is", "the question to be"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tiny model that has a tokenizer."""
    return model_with_words(tmp_path_factory.mktemp("words"))


@pytest.fixture
def begin(registry, words, home):
    """Begins a conversation of two lanes whose answers are sampled."""
    spec = kinds(words, home)["chat"].args[0]
    lanes = ("dense", "streaming:sinks=4,window=12", "h2o:budget=20,recent=4")
    spec = replace(spec, policies=lanes, sampling=replace(spec.sampling, max_new=24, temperature=1.5, seed=3))

    def begun(script=None, resumes="", text="typed", sha256=""):
        asked = partial(ChatJob, replace(spec, text=text), script=script, script_sha256=sha256, resumes=resumes)
        return registry.start(asked)

    return begun


def spoken(job) -> list[list[int]]:
    """The tokens of each lane."""
    return [lane.tokens.tolist() for lane in job.lanes]


@pytest.fixture(scope="module")
def told():
    """What `whole` has found out."""
    return []


@pytest.fixture
def whole(begin, registry, told):
    """What is said where nobody stops it, which is always the same."""
    if not told:
        job = begin(SCRIPT)
        settle(job, 3)
        told.extend(spoken(job))
        registry.free(job.id)
    return told


def answering(job, turns, tokens) -> None:
    """Wait until some lane is so far in an answer."""

    def far() -> bool:
        lanes = [lane for lane in job.lanes if len(lane.turns) == turns and lane.turns[-1].begin]
        return any(len(lane.tokens) > lane.turns[-1].begin + tokens for lane in lanes)

    until(job, far)


def ready(job) -> None:
    """Wait until the answer that was cut off has ended."""
    until(job, lambda: job.lanes and job.idle and job.status in ("waiting", "paused"))


@pytest.mark.parametrize(("turns", "tokens"), [(1, 0), (1, 12), (2, 6)])
def test_a_script_that_was_freed_in_an_answer_says_the_same(begin, registry, whole, home, turns, tokens):
    job = begin(SCRIPT)
    answering(job, turns, tokens)
    registry.free(job.id)
    job.join()
    assert about_of(home / job.id)["status"] == "interrupted" and (home / job.id / "checkpoint").exists()
    again = begin(resumes=job.id)
    until(again, lambda: again.lanes and again.idle and again.status == "paused")
    assert again.id == job.id and again.pending == SCRIPT[turns:] and again.scripted == len(SCRIPT)
    again.hold(True)
    settle(again, 3)
    assert spoken(again) == whole
    kept, lanes = load(home / job.id), again.lanes
    for lane, track, pieces in zip(lanes, kept.tracks, kept.pieces, strict=True):
        assert track.token_ids.view().tolist() == lane.tokens[1:].tolist() and pieces == lane.pieces()
    frame, arrays = decoded(ChatSender().frame(again, ChatView()))
    assert [lane["total"] for lane in frame["lanes"]] == [len(tokens) for tokens in whole]
    assert np.isfinite(arrays["ms0"]).all() and len(arrays["ms0"])
    registry.free(again.id)
    again.join()
    alike(load(home / again.id), again.transcript.run)


def test_what_was_killed_at_any_moment_says_the_same(begin, registry, whole, home, monkeypatch):
    """Also between two checkpoints: every copy is of a moment at which something had just been written."""
    from app.jobs.kept import RunKeeper

    real, copies = RunKeeper.step, []

    def step(self, *about):
        real(self, *about)
        copies.append(copied(home / self.name, home / f"killed-{len(copies)}"))

    monkeypatch.setattr(RunKeeper, "step", step)
    job = begin(SCRIPT)
    settle(job, 3)
    registry.free(job.id)
    monkeypatch.undo()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(home))
    assert len(copies) > 9
    for place in copies[1::5]:
        killed(place)
        again = begin(resumes=place.name)
        ready(again)
        if again.pending:
            again.hold(True)
        settle(again, 3)
        assert spoken(again) == whole
        registry.free(again.id)
        again.join()


@pytest.mark.parametrize("moment", ["asked again", "answered again", "switched", "stopped"])
def test_what_was_typed_goes_on_after_whatever_was_pressed(begin, registry, home, moment, monkeypatch):
    from app.jobs.kept import RunKeeper

    real, copies = RunKeeper.save, []

    def save(self, make, *, now=False):
        real(self, make, now=now)
        if now:
            # In the job's own thread, which writes nothing meanwhile.
            shutil.rmtree(home / "killed", ignore_errors=True)
            copies.append(copied(home / self.name, home / "killed"))

    monkeypatch.setattr(RunKeeper, "save", save)
    job = begin()
    job.say("a secret question")
    settle(job, 1)
    count, turns = len(copies), 1
    if moment in ("asked again", "answered again"):
        job.again()
        until(job, lambda: job.epoch == 1)
        if moment == "asked again":
            until(job, lambda: len(copies) > count)
            monkeypatch.undo()
            monkeypatch.setenv("SINKSCOPE_RUNS", str(home))
    elif moment == "switched":
        job.switch(1, parse("streaming:sinks=2,window=6"), True)
    else:
        job.say("to be")
        answering(job, 2, 1)
        job.stop()
        turns = 2
    until(job, lambda: job.requests_done)
    settle(job, turns)
    monkeypatch.undo()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(home))
    if moment == "switched":
        shutil.rmtree(home / "killed")
        copied(home / job.id, home / "killed")
    job.say("and on")
    settle(job, turns + 1)
    whole = spoken(job)
    registry.free(job.id)
    killed(home / "killed")
    again = begin(resumes="killed")
    ready(again)
    again.say("and on")
    settle(again, turns + 1)
    assert spoken(again) == whole
    assert library.entry("killed").problem == ""


def test_a_conversation_of_the_page_goes_on_at_a_command_line_too(begin, registry, words, whole, home):
    job = begin(SCRIPT)
    answering(job, 2, 10)
    registry.free(job.id)
    job.join()
    going = chats.resumed(resume.stopped(home / job.id), load_model(words, device="cpu"), text_sha256="")
    for lane, said in zip(going.lanes, whole, strict=True):
        while lane.step() is not None:
            pass
        assert lane.tokens.tolist() == said[: len(lane.tokens)]
    going.folder.finish("interrupted")


@pytest.mark.parametrize("typed", [[], ["or not"], ["question", "to be"]])
def test_a_command_says_what_is_left_of_a_script_whatever_was_typed_between(typed, begin, registry, words, home):
    job = begin(SCRIPT)
    answering(job, 1, 3)
    job.stop()
    ready(job)
    for i, prompt in enumerate(typed):
        job.say(prompt)
        until(job, lambda i=i: all(len(lane.turns) == 2 + i and not lane.busy for lane in job.lanes))
        ready(job)
    registry.free(job.id)
    job.join()
    going = chats.resumed(resume.stopped(home / job.id), load_model(words, device="cpu"), text_sha256="")
    saver = Saver(going.checkpoints, lambda wrong: None)
    made = partial(chats.checkpoint, going.run, going.lanes, [], 0)
    terminal.converse(going.lanes, (), going.folder, saver, out, made, chunk=64, pending=going.left(SCRIPT))
    going.folder.finish("finished")
    saver.close()
    for lane in going.lanes:
        assert [turn.prompt for turn in lane.turns] == [SCRIPT[0], *typed, *SCRIPT[1:]]


@pytest.mark.parametrize("first", ["typed", "questions", "what-was-uploaded.txt"])
def test_a_command_says_what_is_left_of_a_script_that_was_played_later(first, begin, registry, home, run, monkeypatch):
    sha256 = {"typed": "", "questions": read_script("questions")[1]}.get(first, "0" * 64)
    job = begin(text=first, sha256=sha256)
    job.say("hello")
    settle(job, 1)
    job.play(SCRIPT)
    answering(job, 2, 3)
    registry.free(job.id)
    job.join()
    # One that is interrupted and resumed again, by a command and by a page, knows it, too.
    stop_at(monkeypatch, 90)
    code, *_ = run("resume", str(home / job.id))
    assert code == 130
    monkeypatch.undo()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(home))
    again = begin(resumes=job.id)
    ready(again)
    assert 0 < len(again.pending) < len(SCRIPT) and again.scripted == len(SCRIPT)
    # A command tells one lane after the other, and was stopped between two.
    assert len({tuple(turn.prompt for turn in lane.turns) for lane in again.lanes}) == 1
    registry.free(again.id)
    again.join()
    code, said, wrong = run("resume", str(home / job.id))
    assert code == 0, wrong
    told = [e["text"] for e in load(home / job.id).events if e["what"] == "prompt" and e["lane"] == 0]
    assert told == SCRIPT[1:] and f"> {SCRIPT[-1]}" in said and f"> {SCRIPT[0]}" not in said


@pytest.mark.parametrize("skipped", [False, True])
def test_a_prompt_of_a_script_that_is_refused_is_said_later_or_skipped(skipped, begin, registry, monkeypatch):
    real, short = Conversation._check_room, [True]

    def check(lane, more):
        if short[0] and lane.turns:
            raise ValueError("there is no room: take another policy")
        real(lane, more)

    monkeypatch.setattr(Conversation, "_check_room", check)
    job = begin(SCRIPT)
    until(job, lambda: job.status == "paused" and job.idle)
    assert "no room" in job.note and job.pending == SCRIPT[1:] and len(job.lanes[0].turns) == 1
    # Whoever goes on with it elsewhere has it, too.
    assert job.transcript._saver.checkpoints.newest().about["pending"] == SCRIPT[1:]
    short[0] = False
    if skipped:
        job.skip()
    else:
        job.hold(True)
    settle(job, 2 if skipped else 3)
    said = [SCRIPT[0], SCRIPT[2]] if skipped else SCRIPT
    assert [turn.prompt for turn in job.lanes[2].turns] == said and job.status == "waiting" and not job.pending


def test_another_answer_is_not_given_where_the_cache_before_it_is_not_there(begin, registry):
    job = begin()
    job.say("to be")
    settle(job, 1)
    registry.free(job.id)
    job.join()
    again = begin(resumes=job.id)
    settle(again, 1)
    again.again()
    until(again, lambda: "say something first" in again.note)
    assert spoken(again) and again.epoch == 0


def test_a_conversation_that_was_ended_before_anything_was_said_begins_with_the_same_settings(begin, registry, home):
    job = begin()
    until(job, lambda: job.status == "waiting")
    place = copied(home / job.id, home / "killed")
    killed(place)
    job.say("to be")
    settle(job, 1)
    said = spoken(job)
    registry.free(job.id)
    answer = recordings.answer(Request({"type": "http", "path_params": {"name": "killed"}, "headers": []}))
    assert answer.status_code == 404 and "Nothing was said in this conversation yet" in answer.body.decode()
    assert recordings.find("killed", "chat").goes_on
    again = begin(resumes="killed")
    until(again, lambda: again.status == "waiting")
    again.say("to be")
    settle(again, 1)
    assert spoken(again) == said and again.spec == job.spec


def test_a_switch_that_an_answer_given_again_begins_with_is_kept_as_it_is_made(begin, registry, home):
    job = begin()
    job.say("to be or not to be that is the question")
    settle(job, 1)
    job.switch(1, parse("window:window=12"), False)
    job.say("to be")
    settle(job, 2)
    job.switch(1, parse("streaming:sinks=4,window=8"), False)
    job.again()
    until(job, lambda: job.epoch == 1)
    settle(job, 2)
    live = [(switch.position, switch.label, switch.policy.label) for switch in job.lanes[1].switches]
    assert live[-1][0] == job.lanes[1].turns[-1].begin and "without its sinks" in live[-1][1]
    assert job.snapshot[1].sinks == 0
    registry.free(job.id)
    job.join()
    head, arrays = decoded(recorded_chat(load(home / job.id), "x", {}))
    assert [tuple(switch) for switch in head["lanes"][1]["switches"]] == live
    # Nothing of the beginning is said to be held, since nothing is.
    assert arrays["sinks_from1"][-1] == arrays["sinks_next1"][-1] == 0
