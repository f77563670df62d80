"""A recorded conversation shows at every position what the live page showed there, and says what it does not have."""

import base64
import gzip
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.chat.conversation import Conversation
from analysis.chat.partner import Partner
from analysis.maps.recent import head_row
from analysis.policies import parse
from analysis.runs import library
from analysis.runs.reader import load
from analysis.runs.recorded_chat import recorded_chat
from analysis.runs.recording import recorded_in, recording
from analysis.runs.run import Run
from analysis.runs.screen import RECENT
from analysis.runs.shares import ALL, MOST, SharesFile, read_shares, spacing
from analysis.runs.spec import Sampling, Spec
from app.frames.chat import ChatSender, _shares
from app.jobs.chat_lane import snapshot_of
from app.jobs.token_costs import TokenCosts
from app.jobs.transcript import Transcript
from app.view import ChatView

from . import tokenizers
from .recordings import decoded
from .test_bos import model_of

pytestmark = pytest.mark.whole

COMPONENTS = Path(__file__).parents[1] / "app" / "components"
PARTS = ("shared/frame", "shared/recording", "conversation/recorded")
SCRIPT = "\n".join((COMPONENTS / f"{part}.js").read_text(encoding="utf-8") for part in PARTS)
PROMPTS = ["to be or not to be", "what is yours", "hello there my cat", "say the question"]
ALIKE = ("streaming:sinks=4,window=12", "window:window=16", "dense", "recompute:window=16,stride=4")


@pytest.fixture(scope="module")
def script(chromium):
    """The script that plays conversations, in a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.add_script_tag(content=f"{SCRIPT}\nwindow.openTalk = openTalk;")
        yield page
        browser.close()


@pytest.fixture(scope="module")
def partner():
    return Partner(model_of(tokenizers.gemma_like()))


class Talk:
    """A conversation that is kept as the page keeps it, and what the live page would have shown after every token."""

    def __init__(self, partner, policies, name, most=40):
        sampling = Sampling(max_new=most, temperature=1.5, seed=3)
        self.spec = Spec("tiny", "typed", policies, sampling=sampling)
        self.transcript = Transcript(name, self.spec)
        self.transcript.open_for(partner, text_sha256="")
        self.lanes = [Conversation(partner, parse(p), sampling, index=i, history=256) for i, p in enumerate(policies)]
        self.costs = [TokenCosts() for _ in policies]
        self.seen, self.spent, self.facts = {}, {}, self.transcript.run.model

    def ask(self, prompt, stop_at=None, why="stopped"):
        """Let all lanes answer; `stop_at`: after so many tokens of the answer they are stopped, or have failed."""
        for lane in self.lanes:
            lane.ask(prompt)
        self.answer(stop_at, why)

    def answer(self, stop_at=None, why="stopped"):
        for lane in self.lanes:
            while (step := lane.step()) is not None:
                self.costs[lane.lane.index].append(step)
                self.transcript.take_in(lane, step)
                self.spent[lane.lane.index, step.start] = step.seconds
                if not lane.unread:
                    if lane.turns[-1].begin is not None and stop_at == len(lane.tokens) - lane.turns[-1].begin:
                        lane.stop()
                        lane.turns[-1].why = why
                        self.transcript.turn(lane)
                    self.see(lane)

    def see(self, lane):
        self.seen[lane.lane.index, len(lane.tokens)] = snapshot_of(lane, self.costs[lane.lane.index].snapshot())

    def again(self):
        for lane in self.lanes:
            switch = lane.again()
            index, at = lane.lane.index, len(lane.tokens)
            self.costs[index].truncate(at)
            self.seen = {key: of for key, of in self.seen.items() if key[0] != index or key[1] <= at}
            self.transcript.again(index, lane.turns[-1].begin)
            if switch is not None:
                self.transcript.switch(index, switch)
        self.answer()

    def switch(self, index, policy, pin=False):
        self.transcript.switch(index, self.lanes[index].switch(parse(policy), pin=pin))

    def finish(self):
        self.transcript.finish("finished")
        return library.home() / self.transcript.name

    def live_frame(self, totals, view, run):
        """What the page showed when the lanes had so many tokens; None where it never was so."""
        shown = []
        for lane, total in enumerate(totals):
            if (snapshot := self.seen.get((lane, total))) is None:
                return None
            costs, track = snapshot.costs, run.tracks[lane]
            whole = TokenCosts()
            begins = {start for start, _ in track.spans}
            known = [int(p) for p in costs.positions.view() if p not in begins]
            whole.positions.append(np.array(known, np.int64))
            whole.seconds.append(np.array([self.spent[lane, p] for p in known]))
            whole.bytes.append(track.cache_bytes.view()[np.array(known, int) - 1])
            # A token that lacked its last bytes has them in a recording.
            pieces = self.lanes[lane].pieces()
            text, first = pieces[snapshot.start : total], pieces[: len(snapshot.first_tokens)]
            shown.append(replace(snapshot, costs=whole, pieces=text, first_tokens=first))
        talk = SimpleNamespace(
            id="x", version=0, snapshot=tuple(shown), spec=self.spec, said="", status="answering", published=0.0,
            epoch=0, unsaid=0, caution="", pending=[], scripted=0, playing=False, facts=self.facts, begins="",
            row=lambda *_: None, once=lambda key, make: make(),
        )  # fmt: skip
        return decoded(ChatSender().frame(talk, view))


def frames(page, data, asked):
    """Headers and arrays of a recording at positions, each with a view; and the header of the recording."""
    answer = page.evaluate(
        """([data, asked]) => {
          const talk = openTalk(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)));
          const number = (x) => (Number.isNaN(x) ? null : x);
          const made = asked.map(([position, view]) => {
            const { arrays, ...head } = talk.frameAt(position, view);
            const numbers = ([k, { data, shape }]) => [k, [Array.from(data, number), shape]];
            return [head, Object.fromEntries(Object.entries(arrays).map(numbers))];
          });
          const seconds = Array.from({ length: talk.total }, (_, k) => talk.secondsAt(k + 1));
          return JSON.stringify([made, { total: talk.total, stops: talk.stops, marks: talk.marks, seconds }]);
        }""",
        [base64.b64encode(data).decode(), asked],
    )
    made, says = json.loads(answer)
    shown = [
        (head, {k: np.array(data, np.float64).reshape(shape) for k, (data, shape) in arrays.items()})
        for head, arrays in made
    ]
    return shown, says


def compare_all(page, talk, path, chosen=0):
    """Compare every frame of a recording with that of the live page, where there was one; returns how many there were,
    and what the recording says of itself."""
    run, data = load(path), gzip.decompress(recording(path))
    total = decoded(data)[0]["total"]
    view = {"chosen": chosen, "head": None, "token": None}
    made, says = frames(page, data, [(at, view) for at in range(1, total + 1)])
    compared = 0
    for head, arrays in made:
        live = talk.live_frame([lane["total"] for lane in head["lanes"]], ChatView(chosen), run)
        if live is None:
            continue
        compared += 1
        expected, numbers = live
        assert head["card"] == expected["card"] and head["chosen"] == expected["chosen"]
        for mine, theirs in zip(head["lanes"], expected["lanes"], strict=True):
            for name in theirs.keys() - {"ms", "offers"}:
                assert mine[name] == theirs[name], (name, mine["total"], mine["label"])
            assert mine["ms"] == (None if theirs["ms"] is None else pytest.approx(theirs["ms"], rel=1e-5))
        for name, array in numbers.items():
            np.testing.assert_allclose(arrays[name], array, rtol=1e-5, err_msg=name)
        track, count = run.tracks[chosen], head["lanes"][chosen]["total"] - 1
        spans, mass, seen = [span for span in track.spans if span[1] <= count + 1], 0.0, 0
        for (start, stop), of in zip(reversed(spans), track.sink_mass[: len(spans)][::-1], strict=True):
            if seen < RECENT:
                mass, seen = mass + of * (stop - start), seen + stop - start
        assert ("grid" in arrays) == bool(seen)
        if seen:
            np.testing.assert_allclose(arrays["grid"], mass / seen, atol=1e-5)
        start = head["lanes"][chosen]["start"]
        np.testing.assert_allclose(
            arrays[f"nll{chosen}"][1 - min(start, 1) :], track.nll.view()[max(0, start - 1) : count], rtol=1e-6
        )
    return compared, says


def test_a_recorded_conversation_shows_what_the_live_page_showed(script, partner):
    talk = Talk(partner, ALIKE, "alike")
    for prompt in PROMPTS:
        talk.ask(prompt)
    compared, says = compare_all(script, talk, talk.finish(), 1)
    # All positions but those within a prompt, which live is there at once.
    assert compared >= 40 * len(PROMPTS) and len(says["stops"]) == len(PROMPTS) and says["stops"][-1] == says["total"]
    assert says["seconds"] == sorted(says["seconds"]) and says["seconds"][-1] > 0


def test_switches_stops_and_answers_given_again_are_recorded(script, partner):
    talk = Talk(partner, ALIKE[:3], "switched")
    talk.ask(PROMPTS[0])
    talk.switch(0, "window:window=16")
    talk.switch(1, "streaming:sinks=4,window=12", pin=True)
    talk.switch(2, "streaming:sinks=4,window=12")
    talk.ask(PROMPTS[1], stop_at=7)
    talk.switch(0, "streaming:sinks=4,window=12")
    talk.again()
    talk.switch(1, "dense")
    talk.switch(0, "streaming:sinks=2,window=12")
    talk.ask(PROMPTS[2], stop_at=9, why="failed")
    talk.switch(1, "window:window=10")
    talk.ask(PROMPTS[3])
    compared, says = compare_all(script, talk, talk.finish())
    assert compared > 40 and {mark["lane"] for mark in says["marks"]} == {0, 1, 2}
    # Each calls its lane as it was called until then.
    names = [mark["text"].partition(": ")[0] for mark in says["marks"] if mark["lane"] == 1]
    assert names == ["Window 16", "Sinks + window 4 + 12", "Dense"]


def test_a_switch_in_the_middle_of_an_answer_is_recorded_where_it_was_made(partner):
    talk = Talk(partner, ALIKE[1:2], "middle")
    (lane,) = talk.lanes
    lane.ask(PROMPTS[0])
    while (step := lane.step()) is not None:
        talk.transcript.take_in(lane, step)
        if lane.turns[-1].begin == len(lane.tokens) - 5:
            talk.switch(0, ALIKE[0], pin=True)
    (switch,), run = lane.switches, load(talk.finish())
    assert run.tracks[0].policies == [(1, ALIKE[1]), (switch.position, str(switch.policy))]
    head, _ = decoded(recorded_chat(run, "middle", {}))
    assert [tuple(told) for told in head["lanes"][0]["switches"]] == [
        (switch.position, switch.label, switch.policy.label)
    ]


RANKED = ("h2o:budget=12,recent=4", "tova:budget=12", "duo:full=50,sinks=2,window=8")


def test_where_each_head_keeps_its_own_a_recording_dims_as_the_live_page_did(script, partner):
    talk = Talk(partner, RANKED, "shared", most=24)
    talk.ask(PROMPTS[0])
    talk.switch(0, "window:window=8")
    talk.switch(1, "h2o:budget=10,recent=4")
    talk.ask(PROMPTS[1], stop_at=9)
    talk.again()
    talk.switch(0, "tova:budget=12")
    talk.ask(PROMPTS[2])
    path = talk.finish()
    assert any(0 < level < ALL for one in read_shares(path, 3) for level in one.levels)
    compared, _ = compare_all(script, talk, path)
    assert compared > 50


@pytest.mark.parametrize("prompt", [range(0), range(2 * MOST - 1, 2 * MOST + 99)])
def test_moments_of_shares_lie_evenly_and_are_bounded(tmp_path, prompt):
    file, rng = SharesFile(tmp_path, 2), np.random.default_rng(0)
    # Tokens of a prompt are read together: there is no moment between them.
    for read in (read for read in range(1, 3 * MOST + 4) if read not in prompt):
        shares = rng.integers(0, 3, read).astype(np.float32) / 2
        view = SimpleNamespace(read=read)
        file.take_in(SimpleNamespace(index=1, view=view, shares=shares, sinks=0, first=read, protected=0))
    file.write()
    kept = read_shares(tmp_path, 2)
    assert MOST // 2 <= len(kept) <= MOST
    gaps = [(a.read, b.read) for a, b in itertools.pairwise(kept)]
    assert {b - a for a, b in gaps if b not in range(prompt.stop, prompt.stop + 4)} == {spacing(read)}
    # What is said anew takes the place of what was said before.
    file.take_in(SimpleNamespace(index=1, view=SimpleNamespace(read=256), shares=None))
    file.write()
    assert max(one.read for one in read_shares(tmp_path, 2)) < 256
    with pytest.raises(ValueError, match="another run"):
        read_shares(tmp_path, 1)


def test_what_one_head_of_hundreds_holds_is_not_gone_and_what_one_lacks_is_not_whole(tmp_path):
    shares = np.array([0, 1 / 300, 1 / 2, 299 / 300, 1], np.float32)
    file = SharesFile(tmp_path, 1)
    view = SimpleNamespace(read=5)
    file.take_in(SimpleNamespace(index=0, view=view, shares=shares, sinks=0, first=4, protected=0))
    file.write()
    assert read_shares(tmp_path, 1)[0].levels.tolist() == [0, 1, 50, 99, 100]
    pieces = [*"abcde"]
    live = _shares(SimpleNamespace(shares=shares, start=0, pieces=pieces, first_tokens=pieces[:4]))
    assert live == {"shares": [0, 0.01, 0.5, 0.99, 1], "first_shares": [0, 0.01, 0.5, 0.99]}


def test_what_a_clicked_token_looked_back_at_is_shown_again(script, partner):
    talk = Talk(partner, ALIKE[:2], "clicked", most=12)
    talk.ask(PROMPTS[0])
    row = head_row(talk.lanes[1].lane, 1, 0, 9)
    talk.transcript.row(1, row)
    # Of an answer that is given again nothing is left.
    begin = talk.lanes[1].turns[-1].begin
    talk.transcript.row(1, head_row(talk.lanes[1].lane, 0, 0, begin))
    talk.again()
    data = gzip.decompress(recording(talk.finish()))
    total = decoded(data)[0]["total"]
    asked = [({"head": [1, 0], "token": [1, 9]}, total), ({"head": None, "token": [1, 9]}, total)]
    asked += [({"head": [1, 0], "token": [1, 9]}, 5), ({"head": [0, 1], "token": [1, 9]}, total)]
    asked += [({"head": [0, 0], "token": [1, begin]}, total), ({"head": None, "token": None}, total)]
    made, _ = frames(script, data, [(at, {"chosen": 1, **view}) for view, at in asked])
    for head, arrays in made[:2]:
        assert head["row"] == {"lane": 1, "token": 9, "layer": 1, "head": 0} and "Shaded" in head["hint"]
        np.testing.assert_array_equal(arrays["row_places"], row.positions)
        np.testing.assert_allclose(arrays["row_weights"], row.weights, rtol=1e-6)
    for head, arrays in made[2:]:
        assert head["row"] is None and "row_places" not in arrays
    assert "not kept" in made[3][0]["hint"] and "Kept of this lane: the tokens at 9." in made[3][0]["hint"]
    # Before the token was said there is nothing to say of it.
    assert made[2][0]["hint"] == made[5][0]["hint"] and "is kept of the tokens at 9." in made[5][0]["hint"]


def test_a_token_that_was_all_but_certain_has_a_probability_in_digits(script, partner):
    talk = Talk(partner, ALIKE[:1], "certain", most=6)
    talk.ask(PROMPTS[0])
    run = load(talk.finish())
    run.tracks[0].nll.view()[:3] = 0.004, 1e-6, 4.6
    data, view = recorded_in(None, run, {}), {"chosen": 0, "head": None}
    total = decoded(data)[0]["total"]
    made, _ = frames(script, data, [(total, {**view, "token": [0, token]}) for token in (1, 2, 3)])
    said = [re.search(r"a probability of (.* %)\.", head["hint"]) for head, _ in made]
    assert [found and found[1] for found in said] == ["99.6 %", "100 %", "1.0 %"]


def test_damaged_rows_and_shares_are_refused_in_a_sentence(partner):
    talk = Talk(partner, RANKED[:1], "spoiled", most=6)
    talk.ask(PROMPTS[0])
    talk.transcript.row(0, head_row(talk.lanes[0].lane, 0, 0, 4))
    path = talk.finish()
    for name, others in (("rows.arrow", "shares.arrow"), ("shares.arrow", "rows.arrow")):
        whole = (path / name).read_bytes()
        (path / name).write_bytes((path / others).read_bytes())
        with pytest.raises(ValueError, match="is not the table of"):
            recording(path)
        (path / name).write_bytes(whole)
    assert recording(path)


def test_what_ranked_heads_keep_is_not_dimmed_but_said_to_be_unknown(script, partner):
    talk = Talk(partner, ("h2o:budget=12,recent=4", "window:window=16"), "ranked", most=12)
    talk.ask(PROMPTS[0])
    talk.switch(0, "window:window=8")
    talk.ask(PROMPTS[1])
    path = talk.finish()
    run = load(path)
    view = {"chosen": 0, "head": None, "token": [0, 3]}
    data = recorded_chat(run, "x", {})
    total = decoded(data)[0]["total"]
    ((early, _), (late, _)), _ = frames(script, data, [(30, view), (total, view)])
    assert early["lanes"][0]["unknown"] and early["lanes"][0]["first"] == 0 and not early["lanes"][1]["unknown"]
    assert not late["lanes"][0]["unknown"] and late["lanes"][0]["first"] == talk.lanes[0].lane.first
    assert "NLL" in late["hint"] and "not kept" in late["hint"]


def test_a_folder_without_ends_of_answers_takes_them_from_the_roles(partner):
    talk = Talk(partner, ALIKE[:2], "older", most=12)
    for prompt in PROMPTS[:3]:
        talk.ask(prompt)
    run = load(talk.finish())
    ends = decoded(recorded_chat(run, "x", {}))[0]["lanes"]
    run.events = []
    older = decoded(recorded_chat(run, "x", {}))[0]["lanes"]
    assert [[stop for stop, _ in lane["turns"]] for lane in older] == [[t[0] for t in lane["turns"]] for lane in ends]


def test_events_that_cannot_be_are_left_out(partner):
    talk = Talk(partner, ALIKE[:2], "odd", most=6)
    talk.ask(PROMPTS[0])
    run = load(talk.finish())
    for stop in ("x", -3, 10**9, None, [1]):
        run.event("answer", lane=0, position=3, stop=stop, why={})
    run.event("switch", lane=1, position=10**9, policy="dense", how=7)
    assert decoded(recorded_chat(run, "x", {}))[0]["total"] > 0


def test_a_conversation_in_which_nothing_was_said_has_no_recording():
    with pytest.raises(ValueError, match="nothing to replay"):
        recorded_chat(Run(Spec("m", "t", ("dense",), sampling=Sampling())), "x", {})
