"""A conversation that goes on is the one that was never stopped: the same words, however it was stopped."""

import io
import json
import shutil
import signal
import sys

import numpy as np
import pytest

from analysis.chat import resume as chats
from analysis.chat.conversation import Conversation
from analysis.chat.partner import Partner
from analysis.engine.state import State
from analysis.models.loading import load as load_model
from analysis.policies import parse
from analysis.runs import resume
from analysis.runs.checkpoint import Checkpoints, Saver
from analysis.runs.folder import Folder
from analysis.runs.reader import load
from analysis.runs.spec import Sampling

from . import tokenizers, waiting
from .fuzz import seeds
from .test_bos import tiny
from .test_resume import killed, same

pytestmark = pytest.mark.whole

SCRIPT = ["to be or not to be", "what is yours", "hello there my cat", "say the question"]
LANES = ["streaming:sinks=4,window=12", "dense", "h2o:budget=20,recent=4"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A folder with a tiny model that has a tokenizer."""
    folder = tmp_path_factory.mktemp("words")
    tiny().save_pretrained(folder)
    tokenizers.gemma_like().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "prompts.txt"
    path.write_text("\n".join(SCRIPT))
    return str(path)


def chat(words, place, script=None, *more):
    lanes = [word for lane in LANES for word in ("--policy", lane)]
    scripted = ["--script", script] if script else []
    sampled = ["--max-new", "12", "--temperature", "1.5", "--seed", "3"]
    return ["chat", "--model", words, "--device", "cpu", "--out", str(place), *scripted, *sampled, *lanes, *more]


def stop_at(monkeypatch, count, number=signal.SIGTERM):
    """Send a signal at the n-th token that is chosen."""
    real, calls = Conversation.step, [0]

    def step(self, chunk=256):
        calls[0] += 1
        if calls[0] == count:
            signal.raise_signal(number)
        return real(self, chunk)

    monkeypatch.setattr(Conversation, "step", step)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Where `whole` lies once it has been said."""
    return tmp_path_factory.mktemp("once") / "whole"


@pytest.fixture
def whole(words, script, once, command):
    """The conversation that is never stopped, which is always the same."""
    if not once.exists():
        command(*chat(words, once, script))
    return load(once)


def turns(run):
    return [(e["lane"], e["position"], e["stop"], e["why"]) for e in run.events if e["what"] == "answer"]


@pytest.mark.parametrize(("count", "number"), [(1, 15), (7, 2), (30, 15), (90, 2)])
def test_a_script_goes_on_in_the_middle_of_an_answer(
    count, number, words, script, whole, tmp_path, command, monkeypatch
):
    place = tmp_path / "run"
    stop_at(monkeypatch, count, number)
    said = command(*chat(words, place, script), code=130)
    assert f"analysis resume {place}" in said
    monkeypatch.undo()
    assert "again" in command("resume", place)
    found = load(place)
    same(found, whole)
    assert sorted(turns(found)) == sorted(turns(whole))
    assert not (place / "checkpoint").exists()
    assert "prompts of this script were said" in command("resume", place, code=2)


@pytest.mark.parametrize(("saved", "moments"), [(True, (1, 2, 5, 9, 14, 30)), (False, (2, 9))])
def test_a_script_that_was_killed_goes_on(saved, moments, words, script, whole, tmp_path, command, monkeypatch):
    """With a checkpoint at every moment, and with none."""
    # A disk that is slow for its processor would make fewer of them.
    monkeypatch.setattr(Saver, "save", Saver.close if saved else lambda saver, make: None)
    real, calls, copied = Folder.append, [0], []

    def append(self, step):
        real(self, step)
        calls[0] += 1
        if calls[0] in moments:
            copied.append(tmp_path / f"killed-{calls[0]}")
            waiting.copied(self.path, copied[-1])
            killed(copied[-1])

    monkeypatch.setattr(Folder, "append", append)
    command(*chat(words, tmp_path / "run", script))
    monkeypatch.undo()
    assert len(copied) == len(moments)
    for place in copied:
        command("resume", place)
        found = load(place)
        same(found, whole)
        assert sorted(set(turns(found))) == sorted(turns(whole))


def test_a_lane_that_was_told_nothing_yet_is_no_reason_to_write_no_checkpoint(
    words, script, tmp_path, command, monkeypatch
):
    wrong = []
    monkeypatch.setattr(Saver, "save", lambda saver, make: wrong.append(saver.close(make)))
    command(*chat(words, tmp_path / "run", script))
    assert wrong and not any(wrong)


@pytest.mark.parametrize("count", [3, 16])
def test_a_lane_that_was_told_nothing_yet_is_no_reason_to_begin_anew(
    count, words, whole, tmp_path, command, monkeypatch
):
    """Stopped in the first answer of the first lane, and of the second."""
    place = tmp_path / "run"
    monkeypatch.setattr(sys, "stdin", io.StringIO(SCRIPT[0] + "\n"))
    stop_at(monkeypatch, count)
    command(*chat(words, place), code=130)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(SCRIPT[1:]) + "\n"))
    shown = " ".join(command("resume", place).split())
    assert "goes on from a checkpoint" in shown and "Nothing had to be read again" in shown
    same(load(place), whole)


def test_what_was_typed_goes_on_where_it_was(words, whole, tmp_path, command, monkeypatch):
    place = tmp_path / "run"
    for i in range(0, len(SCRIPT), 2):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(SCRIPT[i : i + 2]) + "\n"))
        command(*(["resume", place] if i else chat(words, place)))
    same(load(place), whole)
    assert (place / "checkpoint").exists()


def test_a_conversation_in_which_nothing_was_said_ends_without_a_warning_and_goes_on(
    words, whole, tmp_path, command, monkeypatch
):
    place = tmp_path / "run"
    for i, said in enumerate(("", "", "\n".join(SCRIPT) + "\n", "")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        shown = command(*(["resume", place] if i else chat(words, place)))
        assert "no checkpoint could be written" not in shown and "does not fit" not in shown
    same(load(place), whole)
    assert any((place / "checkpoint").iterdir())


def test_an_answer_that_was_typed_for_and_cut_off_goes_on(words, whole, tmp_path, command, monkeypatch):
    place = tmp_path / "run"
    monkeypatch.setattr(sys, "stdin", io.StringIO(SCRIPT[0] + "\n"))
    stop_at(monkeypatch, 30)
    command(*chat(words, place), code=130)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(SCRIPT[1:]) + "\n"))
    command("resume", place)
    same(load(place), whole)


def test_a_script_that_was_changed_is_refused(words, script, tmp_path, command, monkeypatch):
    mine, place = tmp_path / "mine.txt", tmp_path / "run"
    shutil.copy(script, mine)
    stop_at(monkeypatch, 30)
    command(*chat(words, place, str(mine)), code=130)
    mine.write_text("something else\n" * 4)
    assert "is not the one that this run was read with" in command("resume", place, code=2)


def test_tokens_are_not_for_conversations(words, script, tmp_path, command):
    command(*chat(words, tmp_path / "run", script))
    assert "leave out --tokens" in command("resume", tmp_path / "run", "--tokens", 99, code=2)


@pytest.mark.parametrize("policy", LANES)
def test_a_conversation_loaded_from_its_state_gives_the_same_answers(policy, words, tmp_path):
    """Whatever moment it is of, with the same random numbers, and after a switch."""
    partner, sampling = Partner(load_model(words, device="cpu")), Sampling(max_new=12, temperature=1.5)
    talk = Conversation(partner, parse(policy), sampling)
    checkpoints = Checkpoints(tmp_path)
    talk.ask(SCRIPT[0])
    for moment in range(30):
        if talk.step(3) is None:
            if moment > 12:
                talk.switch(parse("streaming:sinks=2,window=9"), pin=True)
            talk.ask(SCRIPT[1])
        state = talk.state()
        checkpoints.write(state.values, state.tensors)
        found = checkpoints.newest()
        other = Conversation(partner, talk.policy, sampling)
        other.load_state(State(found.about, found.tensors))
        assert (other.turns, other.switches, other.busy) == (talk.turns, talk.switches, talk.busy)
        if moment % 7 == 0:
            twin = Conversation(partner, talk.policy, sampling)
            twin.load_state(talk.state())
            for one in (twin, other):
                while one.step(3) is not None:
                    pass
                one.ask(SCRIPT[2])
                while one.step(3) is not None:
                    pass
            np.testing.assert_array_equal(twin.tokens, other.tokens)
    while talk.step(3) is not None:
        other.step(3)
    np.testing.assert_array_equal(talk.tokens, other.tokens)


def is_given_again(talk):
    """The answer that is being given, once more: the same where the most probable token is chosen."""
    while talk.step() is not None:
        pass
    before = talk.tokens.copy()
    talk.again()
    while talk.step() is not None:
        pass
    np.testing.assert_array_equal(talk.tokens, before)


def test_after_going_on_the_last_answer_cannot_be_given_again_but_the_next_one_can(words):
    partner, sampling = Partner(load_model(words, device="cpu")), Sampling(max_new=5)
    talk, other = (Conversation(partner, parse("dense"), sampling) for _ in range(2))
    talk.ask(SCRIPT[0])
    while talk.step() is not None:
        pass
    other.load_state(talk.state())
    with pytest.raises(ValueError, match=r"^what the cache held before the last answer is not kept[^\n]*$"):
        other.again()
    other.ask(SCRIPT[1])
    is_given_again(other)


def test_an_answer_that_began_after_going_on_in_its_prompt_can_be_given_again(words):
    partner, sampling = Partner(load_model(words, device="cpu")), Sampling(max_new=5)
    talk, other = (Conversation(partner, parse("dense"), sampling) for _ in range(2))
    talk.ask(SCRIPT[0])
    talk.step(1)
    assert talk.unread > 1
    other.load_state(talk.state())
    is_given_again(other)


def test_a_template_that_writes_something_else_is_said_to_be_the_reason(words, script, tmp_path, command, monkeypatch):
    """As one that writes the date does on another day."""
    model, place = shutil.copytree(words, tmp_path / "model"), tmp_path / "run"
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template.replace("{{ bos_token }}", "{{ bos_token }}on monday", 1))
    stop_at(monkeypatch, 30)
    command(*chat(model, place, script), code=130)
    monkeypatch.undo()
    shutil.rmtree(place / "checkpoint")
    (model / "chat_template.jinja").write_text(template.replace("{{ bos_token }}", "{{ bos_token }}on tuesday", 1))
    said = " ".join(command("resume", place, code=2).split())
    assert "is of the chat template, which writes something else now" in said and "this machine" not in said


def test_a_record_whose_tokens_no_prompt_explains_does_not_go_on(words, script, tmp_path, command, monkeypatch):
    place = tmp_path / "run"
    stop_at(monkeypatch, 60)
    command(*chat(words, place, script), code=130)
    monkeypatch.undo()
    shutil.rmtree(place / "checkpoint")
    lines = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    (place / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines if e["what"] != "prompt"))
    network = load_model(words, device="cpu")
    asked = resume.stopped(place)
    with pytest.raises(ValueError, match=r"^the record of lane 0 has tokens that its events do not explain[^\n]*$"):
        chats.resumed(asked, network, text_sha256=asked.text_sha256)


@pytest.mark.parametrize("more", [{}, {"lane": 1}, {"position": 5}])
def test_an_answer_given_again_nobody_knows_where_is_passed_over(tmp_path, more):
    seeds.run(tmp_path / "a", end="interrupted", chat=True)
    with open(tmp_path / "a" / "events.jsonl", "a") as f:
        f.write(json.dumps({"what": "again", "seconds": 1e9, **more}) + "\n")
    run = load(tmp_path / "a")
    chats._forget_answers(run)
    assert [len(track.nll) for track in run.tracks] == [39, 39]
