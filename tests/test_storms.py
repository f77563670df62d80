"""A lane that switches is what its reference is: in what it holds, in what it computes, in what its maps show."""

import threading
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis.stateful import run_state_machine_as_test

from analysis.engine.stream import open_lanes
from analysis.maps.recent import head_map, head_row
from analysis.policies import Dense, Duo, Streaming, Window, parse

from .families import words
from .invariants import Tokens
from .storms import Storm, settled
from .switching import beside, check_held, read_both, switch_both

pytestmark = pytest.mark.whole

HOLD = 64


def begun(model, policy, tokens=0, chunk=16):
    """A lane that has read so many tokens, and its reference."""
    lane = open_lanes(model, words(400), [policy], history=HOLD)[0]
    reference = beside(lane)
    read_both(lane, reference, tokens, chunk)
    return lane, reference


def checked(lane, reference):
    Tokens(lane.context.model).check(lane, reference.rounded)
    check_held(lane, reference)


def test_random_switches_equal_the_reference():
    """Some hundred steps, always the same ones.  `python -m tests.storms` takes many more."""
    run_state_machine_as_test(Storm, settings=settled(12, 30, derandomize=True))


@pytest.mark.parametrize("after", [0, 1, 5, 30])
def test_a_band_after_duo_with_pinned_sinks(tiny_llama, after):
    lane, begin = begun(tiny_llama, Window(16), 60)
    switch_both(lane, begin, Duo(50, 4, 28), pin=True)
    assert lane.sinks == 4
    checked(lane, begin)
    read_both(lane, begin, after)
    before = lane.snapshot()
    policies = "streaming:sinks=4,window=12", "dense", "window:window=9", "h2o:budget=16,recent=5"
    for then, pinned in product(map(parse, policies), (True, False)):
        reference = begin.copy()
        switch_both(lane, reference, then, pin=pinned)
        checked(lane, reference)
        read_both(lane, reference, 20)
        checked(lane, reference)
        lane.restore(before)


def test_pinned_sinks_are_lost_to_the_text_after_a_while(tiny_llama):
    """By whatever way a lane came to its sinks: when all else has left, it is as if it had always been so."""
    policy, nll = Streaming(4, 12), []
    for way in (
        [policy],
        [Window(16), policy],
        [Window(16), Duo(50, 4, 28), policy],
        [parse("tova:budget=16"), policy],
    ):
        lane = open_lanes(tiny_llama, words(400), way[:1])[0]
        for other in way[1:]:
            lane.read(30, upto=lane.position + 30)
            lane.switch(other, pin=True)
        while lane.position < 300:
            lane.read(60, upto=300)
        nll.append(lane.read(99).nll)
    for other in nll[1:]:
        np.testing.assert_allclose(other, nll[0], atol=1e-4)


@pytest.mark.parametrize("full", [0, 50, 100])
@pytest.mark.parametrize("old", ["window:window=16", "streaming:sinks=2,window=9", "recompute:window=7,stride=3"])
def test_pinned_sinks_are_held_by_all_heads(tiny_llama, old, full):
    lane, reference = begun(tiny_llama, parse(old), 50)
    switch_both(lane, reference, Duo(full, 4, 16), pin=True)
    assert lane.sinks == 4 and lane.missing_sinks(Duo(full, 4, 16)) == 0
    checked(lane, reference)


@pytest.mark.parametrize("then", [Duo(50, 40, 9), Duo(100, 40, 9), Streaming(40, 9)], ids=str)
def test_more_sinks_may_be_pinned_than_were_read(tiny_llama, then):
    lane, reference = begun(tiny_llama, Window(9), 24)
    switch_both(lane, reference, then, pin=True)
    checked(lane, reference)
    for tokens, chunk in ((3, 1), (30, 16)):
        read_both(lane, reference, tokens, chunk)
        checked(lane, reference)


def test_what_all_heads_hold_stays_when_all_are_full(tiny_llama):
    lane, reference = begun(tiny_llama, Duo(100, 4, 8), 40)
    assert (lane.sinks, lane.first, lane.shares) == (40, 0, None)
    switch_both(lane, reference, Dense())
    assert len(lane.store.layers[0]) == 40
    read_both(lane, reference, 20)
    checked(lane, reference)


@pytest.mark.parametrize(
    "policy",
    [
        "dense",
        "recompute:window=9",
        "streaming:sinks=3,window=9",
        "duo:sinks=3,window=9,full=50",
        "h2o:budget=20,recent=9",
    ],
)
def test_which_heads_hold_a_token_is_said_where_they_differ(tiny_llama, policy):
    lane = open_lanes(tiny_llama, words(41), [parse(policy)])[0]
    assert lane.shares is None, "nothing has been read"
    while not lane.done:
        lane.read(64)
    model, counts = lane.context.model, np.zeros(40)
    for layer, head in product(range(len(lane.store.layers)), range(model.kv_heads)):
        counts[lane.store.layers[layer].of_head(head)[0].numpy()] += 1
    if policy.startswith(("duo", "h2o")):
        np.testing.assert_allclose(lane.shares, counts / (model.layers * model.kv_heads), rtol=1e-6)
    else:
        assert lane.shares is None and set(counts) <= {0, model.layers * model.kv_heads}


@pytest.mark.parametrize("changed", [{"softmax": "off-by-one"}, {"softmax": "logit", "logit": 2.5, "heads": "0.1"}])
def test_pinned_sinks_are_as_the_new_policy_reads_them(tiny_llama, changed):
    policy = Streaming(6, 12, **changed)
    kept, _ = begun(tiny_llama, policy, 50)
    lane, reference = begun(tiny_llama, Window(16), 50)
    switch_both(lane, reference, policy, pin=True)
    for a, b in zip(kept.store.layers, lane.store.layers, strict=True):
        torch.testing.assert_close(a.sink_keys, b.sink_keys, atol=1e-5, rtol=1e-5)
    read_both(lane, reference, 20)


def test_a_policy_that_keeps_later_tokens_misses_no_first_ones(tiny_llama):
    lane, reference = begun(tiny_llama, Window(16), 50)
    late = parse("late:budget=16,sinks=3,start=6")
    assert lane.missing_sinks(late) == 0 and lane.missing_sinks(parse("late:budget=16,sinks=3,start=0")) == 3
    switch_both(lane, reference, late, pin=True)
    assert lane.sinks == 0
    read_both(lane, reference, 10)
    checked(lane, reference)


@pytest.mark.parametrize("read", [1, 2, 3, 4, 5])
def test_a_lane_that_holds_nothing_but_sinks_has_a_map(tiny_llama, read):
    lane, reference = begun(tiny_llama, Streaming(4, 8), read)
    drawn = head_map(lane, 1, 2)
    assert drawn.weights.shape == (read, read)
    for i in range(read):
        expected, _ = reference.rows[i, 1, 2]
        np.testing.assert_allclose(
            drawn.sinks[i, : i + 1], [expected[j] for j in range(min(i + 1, 4))][: i + 1], atol=1e-5
        )
        np.testing.assert_allclose(head_row(lane, 1, 2, i).weights.sum(), 1, atol=1e-5)


def test_sinks_without_a_position_get_one_when_they_are_kept(tiny_llama):
    """Decoding remembers how sinks are rotated, and a switch makes it forget."""
    lane = open_lanes(tiny_llama, words(30), [Streaming(4, 8, "none")])[0]
    lane.read(40)
    reference = beside(lane)
    for _ in range(29):
        reference.step()
    for policy in (Streaming(4, 8, "none"), Dense(), Streaming(4, 8, "naive"), Streaming(4, 8)):
        switch_both(lane, reference, policy)
        for token in words(3):
            step = lane.next(lambda _, token=token: int(token))
            logits, _ = reference.step()
            np.testing.assert_allclose(step.nll[0], torch.logsumexp(logits, -1) - logits[int(token)], atol=1e-4)


@pytest.mark.parametrize(
    "policy",
    [
        Dense(),
        Streaming(4, 16),
        Duo(50, 4, 8, scores="0.1 0.9; 0.8 0.2; 0.3 0.7"),
        parse("h2o:budget=16,recent=5"),
    ],
    ids=str,
)
def test_a_map_between_two_decoded_tokens_is_that_of_read_ones(tiny_llama, policy):
    tokens = words(60)
    read, _ = begun(tiny_llama, policy, 59)
    lane = open_lanes(tiny_llama, tokens[:20], [policy], history=HOLD)[0]
    lane.read(20)
    for token in tokens[20:]:
        lane.next(lambda _, token=token: int(token))
        last = head_map(lane, 1, 2, 9)
        assert last.first + len(last.weights) == lane.position - 1
    np.testing.assert_allclose(last.weights, head_map(read, 1, 2, 9).weights, atol=1e-5)
    np.testing.assert_allclose(last.sinks, head_map(read, 1, 2, 9).sinks, atol=1e-5)


@pytest.mark.parametrize("policy", ["dense", "streaming:sinks=4,window=12", "duo:window=9", "h2o:budget=16,recent=5"])
def test_snapshots_do_not_see_each_others_tokens(tiny_llama, policy):
    """Several of one lane, taken one after the other and gone back to in any order."""
    lane, reference = begun(tiny_llama, parse(policy), 20)
    kept = [(lane.snapshot(), reference.copy())]
    for _ in range(3):
        read_both(lane, reference, 9)
        kept.append((lane.snapshot(), reference.copy()))
    for i in (0, 2, 1, 3, 0, 3):
        snapshot, then = kept[i]
        lane.restore(snapshot)
        reference = then.copy()
        checked(lane, reference)
        read_both(lane, reference, 11, chunk=3)
        checked(lane, reference)


def test_a_switch_that_fails_leaves_the_lane_as_it_was(tiny_llama, monkeypatch):
    lane, reference = begun(tiny_llama, Window(16), 50)

    def full(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as m:
        m.setattr(lane.context, "prefix", full)
        with pytest.raises(RuntimeError):
            lane.switch(Duo(50, 4, 8), pin=True)
    assert lane.policy == Window(16) and lane.store.layers[0].held(1)
    checked(lane, reference)
    read_both(lane, reference, 20)


@pytest.mark.parametrize("policy", ["dense", "streaming:sinks=4,window=12", "duo:window=9", "h2o:budget=16,recent=5"])
def test_somebody_else_sees_whole_rows_while_a_lane_reads_and_switches(tiny_llama, policy):
    policies = [parse(p) for p in (policy, "window:window=9", policy, "recompute:window=6,stride=2", policy)]
    lane = open_lanes(tiny_llama, words(400), policies[:1], history=HOLD)[0]
    wrong, seen, done = [], [0], threading.Event()

    def look():
        while not done.is_set():
            try:
                if (drawn := head_map(lane, 1, 2, 16)) is None:
                    continue
                seen[0] += 1
                assert 0 <= lane.sinks <= 399 and 0 <= lane.first <= 399
                last = head_row(lane, 1, 2, drawn.first + len(drawn.weights) - 1)
                assert last is None or abs(last.weights.sum() - 1) < 1e-4
            except Exception as e:
                wrong.append(e)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for number, following in enumerate((*policies[1:], *policies)):
            for _ in range(12):
                lane.read(1)
            lane.switch(following, pin=number % 2 == 1)
    finally:
        done.set()
        thread.join()
    assert not wrong and seen[0]
