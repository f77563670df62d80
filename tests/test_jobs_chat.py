"""Live conversations: every lane answers, scripts are played and held, and nothing that is asked breaks them."""

import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.chat.conversation import Conversation
from analysis.maps.recent import head_row
from analysis.policies import Dense, Streaming, Window
from analysis.runs.spec import Sampling, Spec
from app.frames.chat import ChatSender, ChatView
from app.jobs import chat
from app.jobs.chat import ChatJob
from app.jobs.registry import Registry
from app.jobs.token_costs import TokenCosts

from .recordings import decoded, made_up
from .waiting import until

pytestmark = pytest.mark.real
LANES = ("streaming:sinks=4,window=28", "window:window=32")


@pytest.fixture(scope="module")
def runs():
    """One registry for all, since it holds the model."""
    runs = Registry()
    yield runs
    runs.close()


@pytest.fixture
def registry(runs):
    yield runs
    for run in [holder.id for holder in runs.holders()]:
        runs.free(run)


def begin(registry, script=None, policies=LANES, weights="int4", **sampling):
    spec = Spec("embedded", "typed", policies, device="cpu", weights=weights, sampling=Sampling(**sampling))
    return registry.start(partial(ChatJob, spec, script=script))


def waiting(talk):
    return talk.status in ("waiting", "paused") and talk.idle


def test_every_lane_answers_and_the_frame_shows_what_is_kept(registry):
    talk = begin(registry, max_new=10)
    talk.say("What is the capital of France?")
    until(talk, lambda: waiting(talk))
    assert [lane.turns[0].why for lane in talk.lanes] == ["ended", "ended"]
    view, sender = ChatView(head=(20, 3)), ChatSender()
    frame, arrays = decoded(sender.frame(talk, view))
    first, second = frame["lanes"]
    assert "Paris" in "".join(first["text"]) and len(first["text"]) == len(first["roles"]) == first["total"]
    assert (first["sinks"], second["sinks"]) == (first["protected"], second["protected"]) == (4, 0)
    assert first["first"] == first["total"] - 1 - 28 and second["first"] == second["total"] - 1 - 32
    assert arrays["grid"].shape == (30, 9)
    # A token that is clicked: what it looked back at is there soon, sums to one, and is of kept tokens only.
    view.token = (0, first["total"] - 3)
    sender.frame(talk, view)
    until(talk, lambda: talk.row(0, 20, 3, view.token[1]) is not None)
    frame, arrays = decoded(sender.frame(talk, view))
    assert frame["row"]["token"] == view.token[1]
    assert abs(arrays["row_weights"].sum() - 1) < 1e-4
    assert all(p < 4 or p >= view.token[1] - 28 for p in arrays["row_places"])
    assert sender.frame(talk, view) is sender.frame(talk, view)


def test_prompts_are_read_in_the_chunks_that_the_record_says(registry, monkeypatch):
    real, chunks = Conversation.step, []
    monkeypatch.setattr(Conversation, "step", lambda lane, chunk: chunks.append(chunk) or real(lane, chunk))
    spec = Spec("embedded", "typed", LANES[:1], chunk=11, device="cpu", sampling=Sampling(max_new=1))
    talk = registry.start(partial(ChatJob, spec, script=None))
    talk.say("Hello")
    until(talk, lambda: waiting(talk))
    assert talk.transcript.run.spec.chunk == 11 and set(chunks) == {11}


def test_viewers_who_look_at_different_tokens_do_not_have_rows_computed_in_turns(registry, monkeypatch):
    talk = begin(registry, max_new=4)
    talk.say("Hello")
    until(talk, lambda: waiting(talk))
    made = []
    monkeypatch.setattr(chat, "head_row", lambda lane, *of: made.append(of) or head_row(lane, *of))
    views = [ChatView(head=(20, 3), token=(0, token)) for token in (6, 8, 9)]
    until(talk, lambda: all(talk.row(0, 20, 3, view.token[1]) is not None for view in views))
    for _ in range(3):
        for view in views:
            frame, _ = decoded(ChatSender().frame(talk, view))
            assert frame["row"]["token"] == view.token[1]
    assert sorted(made) == [(20, 3, 6), (20, 3, 8), (20, 3, 9)]
    # Those that were asked for last are kept.
    for token in range(chat.ROWS + 1):
        talk.row(0, 2, 1, token)
    until(talk, lambda: talk.row(0, 2, 1, chat.ROWS) is not None)
    talk.row(0, 20, 3, 9)
    until(talk, lambda: talk.row(0, 20, 3, 9) is not None)
    assert made.count((20, 3, 9)) == 2 and made.count((2, 1, 7)) == 1


def test_a_token_that_was_clicked_too_soon_looks_back_while_the_answer_goes_on(registry):
    talk = begin(registry, max_new=60)
    talk.say("Tell me about the sea.")
    until(talk, lambda: talk.busy)
    newest = len(talk.lanes[0].tokens) + 30
    assert talk.row(0, 20, 3, newest) is None
    # It is told that it has no row, and no longer once it has one.
    until(talk, lambda: talk.note == f"Nothing has been said at token {newest} yet.")
    until(talk, lambda: talk.row(0, 20, 3, newest) is not None or waiting(talk))
    assert talk.row(0, 20, 3, newest) is not None and talk.note == ""


def test_a_script_is_played_held_and_gone_on_with(registry):
    talk = begin(registry, ["Hello", "What is two plus two?", "Bye"], max_new=5)
    until(talk, lambda: len(talk.pending) <= 1)
    talk.hold(False)
    until(talk, lambda: waiting(talk) and not talk.playing)
    assert talk.status == "paused" and len(talk.pending) == 1
    talk.say("Something else")
    until(talk, lambda: waiting(talk))
    talk.hold(True)
    until(talk, lambda: waiting(talk) and not talk.pending)
    prompts = [turn.prompt for turn in talk.lanes[0].turns]
    assert prompts[-2:] == ["Something else", "Bye"] and talk.status == "waiting"


def test_stop_and_skip_end_an_answer_in_the_middle(registry):
    talk = begin(registry, ["Write a long story about the sea.", "Hello"], max_new=4000)
    until(talk, lambda: talk.lanes and len(talk.lanes[0].tokens) > 60)
    talk.skip()
    until(talk, lambda: not talk.pending and talk.lanes[0].turns[-1].prompt == "Hello")
    talk.stop()
    until(talk, lambda: waiting(talk))
    assert talk.lanes[0].turns[0].why == "stopped" and talk.lanes[0].turns[1].why


def test_every_lane_that_failed_says_so_itself(registry, monkeypatch):
    real, failing = Conversation._step, {0: "no heads", 2: "no keys"}

    def step(lane, chunk):
        if lane.turns[-1].begin is not None and len(lane.tokens) > lane.turns[-1].begin + 1 and lane.index in failing:
            raise ValueError(failing.pop(lane.index))
        return real(lane, chunk)

    monkeypatch.setattr(Conversation, "_step", step)
    talk = begin(registry, policies=(*LANES, "dense"), max_new=4)
    talk.say("What is the capital of France?")
    until(talk, lambda: waiting(talk) and talk.lanes[0].turns)
    assert talk.note == "Sinks + window 4 + 28 says no more. No heads. Dense says no more. No keys."
    ends = [(lane.turns[-1].stop, lane.turns[-1].why) for lane in talk.lanes]
    assert [why for _, why in ends] == ["failed", "ended", "failed"]
    shown = [lane["cut"] for lane in decoded(ChatSender().frame(talk, ChatView()))[0]["lanes"]]
    assert shown == [[list(ends[0])], [], [list(ends[2])]]
    talk.say("Hello")
    until(talk, lambda: waiting(talk) and len(talk.lanes[0].turns) == 2)
    assert "says no more" not in talk.note and {lane.turns[-1].why for lane in talk.lanes} <= {"ended", "limit"}


def test_the_sink_grid_forgets_an_answer_that_is_given_again():
    costs = TokenCosts()

    def take(start, tokens, mass, role=2):
        sizes = np.full(tokens, 8)
        step = SimpleNamespace(start=start, nll=sizes, seconds=0.1, cache_tokens=sizes, cache_bytes=sizes)
        step.sink_mass, step.roles = np.full((2, 3, tokens), mass, np.float32), np.full(tokens, role)
        costs.append(step)

    # The last chunk of a prompt may be one token.
    take(1, 8, 0.25, role=1)
    take(9, 1, 0.25, role=1)
    assert not len(costs.positions)
    for position in range(10, 15):
        take(position, 1, 0.75)
    costs.truncate(10)
    assert costs.sink_mass.mean() == 0.25
    take(10, 1, 0.5)
    # As in a replay, every token counts as much.
    assert costs.sink_mass.mean() == pytest.approx((9 * 0.25 + 0.5) / 10)
    for position in range(11, 99):
        take(position, 1, 0.5)
    costs.truncate(11)
    assert costs.sink_mass is None and len(costs.positions) == 1


def test_the_sink_grid_is_that_of_the_newest_tokens_after_a_resume_too():
    run = made_up(100, chunk=12)
    track = run.tracks[1]
    track.roles.append(np.zeros(99, np.int8))
    # In whole chunks: the last one has three tokens, and those before it twelve.
    expected = np.average(track.sink_mass[-3:], axis=0, weights=[12, 12, 3])
    np.testing.assert_allclose(TokenCosts.of(track).sink_mass, expected)


def test_again_gives_every_lane_its_last_answer_again(registry):
    # In float32: packed weights multiply in bfloat16, which rounds otherwise when keys are rotated together.  No choice
    # in this answer is close (test_chat.py).
    talk = begin(registry, weights="model", max_new=8)
    talk.say("What is the capital of France?")
    until(talk, lambda: waiting(talk))
    before, epoch = [lane.tokens.tolist() for lane in talk.lanes], talk.epoch
    talk.again()
    until(talk, lambda: waiting(talk) and talk.epoch > epoch)
    assert [lane.tokens.tolist() for lane in talk.lanes] == before
    for costs in talk.costs:
        assert (np.diff(costs.positions.view()) > 0).all() and len(costs.positions) == len(costs.bytes)


def test_a_lane_is_switched_between_two_answers(registry):
    talk = begin(registry, max_new=12)
    talk.say("What is the capital of France?")
    until(talk, lambda: waiting(talk))
    talk.say("Tell me about the sea.")
    until(talk, lambda: waiting(talk))
    talk.switch(1, Streaming(4, 28), True)
    until(talk, lambda: "pinned again" in talk.note)
    talk.switch(0, Window(16), False)
    until(talk, lambda: talk.lanes[0].policy == Window(16))
    assert talk.lanes[1].kept[0] == 4 and talk.lanes[0].kept[0] == 0
    at, also = (lane.lane.position for lane in talk.lanes)
    talk.say("Hello")
    until(talk, lambda: waiting(talk))
    assert talk.lanes[1].kept[0] == 4 and talk.lanes[1].turns[-1].why
    # A switch leaves its mark where it was; one before an answer is given again holds for all of that answer.
    lanes = decoded(ChatSender().frame(talk, ChatView()))[0]["lanes"]
    pinned = "Sinks + window 4 + 28, with the sinks pinned again"
    assert [lane["switches"] for lane in lanes] == [[[at, "Window 16"]], [[also, pinned]]]
    assert [lane["past"] for lane in lanes] == [[[0, at, "Sinks + window 4 + 28"]], [[0, also, "Window 32"]]]
    talk.switch(0, Window(20), False)
    talk.again()
    until(talk, lambda: waiting(talk) and talk.lanes[0].policy == Window(20))
    answered = talk.lanes[0].turns[-1].begin
    assert [(s.position, s.policy) for s in talk.lanes[0].switches] == [(at, Window(16)), (answered, Window(20))]


def test_a_lane_that_was_switched_says_at_once_what_it_keeps(registry):
    talk = begin(registry, policies=("window:window=32", "dense"), max_new=12)
    talk.say("What is the capital of France?")
    until(talk, lambda: waiting(talk))
    before, whole = (lane.position - 1 for lane in talk.lanes)
    assert before > 32
    talk.switch(0, Window(16), False)
    talk.switch(1, Dense(cache="int4"), False)
    until(talk, lambda: waiting(talk) and talk.lanes[1].policy.cache == "int4")
    token = talk.model.bytes_per_token
    small, packed = decoded(ChatSender().frame(talk, ChatView()))[0]["lanes"]
    # Nobody has said anything since.
    assert (small["kept"], small["bytes"]) == (16, 16 * token) and small["first"] == before - 16
    assert packed["kept"] == whole and packed["bytes"] < whole * token


def test_a_switch_that_this_model_cannot_make_is_one_sentence(registry):
    talk = begin(registry)
    until(talk, lambda: waiting(talk))
    before = talk.lanes[0].policy
    talk.switch(0, Window(16, knockout="values", heads="99.0"), False)
    until(talk, lambda: "there is no head 99.0" in talk.note)
    assert talk.status == "waiting" and talk.lanes[0].policy == before


@pytest.mark.parametrize("prompt", ["", "   "])
def test_what_cannot_be_said_is_told_in_a_sentence(registry, prompt):
    talk = begin(registry)
    talk.say(prompt, 7)
    until(talk, lambda: "prompt is empty" in talk.note)
    assert talk.status == "waiting" and not talk.lanes[0].turns
    # Whoever said it has it in the field again.
    assert decoded(ChatSender().frame(talk, ChatView()))[0]["unsaid"] == 7


def test_two_who_speak_at_once_are_told_so(registry):
    talk = begin(registry, max_new=30)
    talk.say("Write a story.", 1)
    until(talk, lambda: talk.busy)
    talk.say("Me too.", 2)
    until(talk, lambda: "not finished" in talk.note)
    assert talk.unsaid == 2
    talk.stop()
    until(talk, lambda: waiting(talk))
    assert [t.prompt for t in talk.lanes[0].turns] == ["Write a story."]


def test_nobody_looks_and_nothing_is_said(registry, monkeypatch):
    from app.jobs import base

    talk = begin(registry, max_new=4000)
    talk.say("Write a long story about the sea.")
    until(talk, lambda: talk.lanes and len(talk.lanes[0].tokens) > 45)
    first, begun = len(talk.lanes[0].tokens), time.monotonic()
    until(talk, lambda: len(talk.lanes[0].tokens) > 50)
    # Longer than a token takes on this machine.
    several = max(0.3, 3 * (time.monotonic() - begun) / (len(talk.lanes[0].tokens) - first))
    monkeypatch.setattr(base, "PAUSE_AFTER", 0.0)
    time.sleep(several)
    count = len(talk.lanes[0].tokens)
    time.sleep(several)
    assert len(talk.lanes[0].tokens) == count
    monkeypatch.setattr(base, "PAUSE_AFTER", 10.0)
    until(talk, lambda: len(talk.lanes[0].tokens) > count)


def test_too_many_lanes_get_a_sentence(registry):
    with pytest.raises(ValueError, match="at most 3 lanes"):
        begin(registry, policies=("dense",) * 4)


def test_a_frame_before_anything_was_said_shows_the_lanes():
    frame, _ = decoded(ChatSender().empty([Streaming(4, 60), Window(64)], ChatView(), "Hello."))
    assert [lane["label"] for lane in frame["lanes"]] == ["Sinks + window 4 + 60", "Window 64"]
    assert frame["note"] == "Hello." and frame["status"] == "ready"
