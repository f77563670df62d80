"""A lane that changes its policy keeps what the new policy keeps of what it still has."""

import itertools

import numpy as np
import pytest
import torch

from analysis.engine.layers.ragged import RaggedLayer
from analysis.engine.layers.ranked import RankedLayer
from analysis.engine.stream import open_lanes
from analysis.maps.recent import head_map
from analysis.policies import (
    H2O,
    POLICIES,
    TOVA,
    AdaKV,
    Dense,
    Duo,
    Random,
    Recompute,
    SnapKV,
    Streaming,
    Window,
    parse,
)
from analysis.policies.late import Late

from .families import shared
from .reading import read
from .test_interventions import opened


@pytest.fixture
def tokens():
    return np.random.default_rng(1).integers(0, 97, 240)


def lane_at(model, tokens, policy, position):
    lane = open_lanes(model, tokens, [policy])[0]
    while lane.position < position:
        lane.read(25, upto=position)
    return lane


def rest_of(lane):
    """NLL and cached tokens of what a lane has not read yet."""
    steps = []
    while not lane.done:
        steps.append(lane.read(30))
    return [np.concatenate([getattr(step, name) for step in steps]) for name in ("nll", "cache_tokens")]


def test_switch_before_the_first_eviction_equals_having_begun_so(tiny_llama, tokens):
    for old in (Dense(), Window(40), Streaming(2, 38), Streaming(6, 34)):
        switched = lane_at(tiny_llama, tokens, old, 20)
        switched.switch(Streaming(4, 16))
        begun = lane_at(tiny_llama, tokens, Streaming(4, 16), 20)
        for _ in range(3):
            np.testing.assert_allclose(switched.read(25).nll, begun.read(25).nll, atol=1e-4)


@pytest.mark.parametrize("positions", ["cache", "none"])
@pytest.mark.parametrize("old", [Window(20), Recompute(20, 3)])
def test_pinned_again_equals_never_evicted_for_the_sink_keys(tiny_llama, tokens, old, positions):
    policy = Streaming(4, 16, positions)
    kept, pinned = lane_at(tiny_llama, tokens, policy, 150), lane_at(tiny_llama, tokens, old, 150)
    assert pinned.missing_sinks(policy) == 4
    pinned.switch(policy, pin=True)
    assert pinned.sinks == 4
    for a, b in zip(kept.store.layers, pinned.store.layers, strict=True):
        np.testing.assert_allclose(a.sink_keys, b.sink_keys, atol=1e-5)
        np.testing.assert_allclose(a.sink_values, b.sink_values, atol=1e-5)
    step = pinned.read(10)
    assert step.cache_tokens.tolist() == [20] * 10
    assert step.sink_mass.min() > 0


@pytest.mark.parametrize("name", POLICIES)
def test_a_switch_to_the_same_policy_changes_nothing(tiny_llama, tokens, name):
    """Nor does one to the same with more room, and back, as where a question is asked blind."""
    sizes = {"budget": 24, "window": 24, "recent": 6, "history": 20, "sinks": 2, "start": 8, "interval": 3}
    own = {f.name for f in POLICIES[name].settings()}
    policy = POLICIES[name](**{key: value for key, value in sizes.items() if key in own})
    plain, switched = (lane_at(tiny_llama, tokens[:90], policy, 61) for _ in range(2))
    switched.switch(policy.with_room(7))
    switched.switch(policy)
    one, other = rest_of(plain), rest_of(switched)
    np.testing.assert_allclose(one[0], other[0], atol=1e-4)
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "recompute"])
def test_nothing_leaves_where_there_is_more_room(tiny_llama, tokens, name):
    """Wherever in the text a question is asked blind.  Recomputation keeps nothing for long."""
    own = {f.name for f in POLICIES[name].settings()}
    sizes = {"budget": 24, "window": 24, "recent": 6, "sinks": 2, "start": 8}
    policy = POLICIES[name](**{key: value for key, value in sizes.items() if key in own})
    for position in range(60, 72):
        lane = lane_at(tiny_llama, tokens[:90], policy, position)
        before = lane.store.slots
        lane.switch(policy.with_room(10))
        while lane.position < position + 10:
            lane.read(10, upto=position + 10)
        assert lane.store.slots == before + 10 * lane.context.model.layers * lane.context.model.kv_heads


def test_what_was_observed_is_still_known_to_whoever_asks_for_it(tiny_llama, tokens):
    heavy = lane_at(tiny_llama, tokens, H2O(budget=40, recent=8), 60)
    total = heavy.store.layers[1].accumulated_attention
    heavy.switch(H2O(budget=40, recent=8, cache="int4"))
    assert torch.equal(heavy.store.layers[1].accumulated_attention, total)
    heavy.switch(Random(budget=40, recent=8))
    heavy.read(5)
    heavy.switch(H2O(budget=40, recent=8))
    assert heavy.store.layers[1].accumulated_attention is None
    snap = lane_at(tiny_llama, tokens, SnapKV(budget=40, recent=8), 60)
    newest = snap.store.layers[1].recent_attention
    snap.switch(TOVA(budget=40))
    assert newest.shape[1] == 8 and torch.equal(snap.store.layers[1].recent_attention, newest[:, -1:])


def test_going_on_without_keeps_the_window_only(tiny_llama, tokens):
    lane = lane_at(tiny_llama, tokens, Window(20), 150)
    lane.switch(Streaming(4, 16), pin=False)
    step = lane.read(30)
    assert lane.sinks == 0 and step.cache_tokens[-1] == 16 and step.sink_mass.max() == 0


def test_going_on_without_equals_a_window_of_what_is_left(tiny_llama, tokens):
    without, window = lane_at(tiny_llama, tokens, Window(20), 150), lane_at(tiny_llama, tokens, Window(20), 150)
    without.switch(Streaming(4, 16))
    window.switch(Window(16))
    np.testing.assert_allclose(without.read(60).nll, window.read(60).nll, atol=1e-4)


def test_dense_keeps_the_sinks_it_finds_and_grows(tiny_llama, tokens):
    lane = lane_at(tiny_llama, tokens, Streaming(4, 16), 150)
    lane.switch(Dense())
    assert lane.read(30).cache_tokens.tolist() == list(range(21, 51))


def test_window_drops_the_sinks(tiny_llama, tokens):
    lane = lane_at(tiny_llama, tokens, Streaming(4, 16), 150)
    lane.switch(Window(20))
    assert lane.sinks == 0 and lane.read(10).sink_mass.max() == 0


def test_switch_to_recompute_needs_nothing(tiny_llama, tokens):
    switched, begun = lane_at(tiny_llama, tokens, Window(3), 151), lane_at(tiny_llama, tokens, Recompute(16, 1), 151)
    switched.switch(Recompute(16, 1))
    np.testing.assert_allclose(switched.read(20).nll, begun.read(20).nll, atol=1e-4)


@pytest.mark.parametrize("through_a_state", [False, True])
def test_the_first_token_after_a_switch_to_recompute_is_read_in_its_own_window(tiny_llama, tokens, through_a_state):
    """Before the window is full, when it is, inside a stride, and at its end."""
    policy, expected = Recompute(8, 3), read(tiny_llama, tokens[:20], Recompute(8, 3)).nll
    for begun in range(2, 16):
        lane = lane_at(tiny_llama, tokens[:begun], Dense(), begun)
        lane.switch(policy)
        if through_a_state:
            state = lane.state()
            lane = open_lanes(tiny_llama, tokens[:begun], [policy])[0]
            lane.load_state(state)
        got = [lane.next(lambda _, token=token: int(token)).nll[0] for token in tokens[begun : begun + 4]]
        np.testing.assert_allclose(got, expected[begun - 1 : begun + 3], atol=1e-4)


def test_of_windows_that_were_read_together_the_newest_stays(tiny_llama, tokens):
    together, alone = (open_lanes(tiny_llama, tokens, [Recompute(8, 3)], history=64)[0] for _ in range(2))
    masses = [[together.read(64).sink_mass for _ in range(2)], []]
    while alone.position < together.position:
        masses[1].append(alone.read(1).sink_mass)
    np.testing.assert_allclose(*(np.concatenate(mass, -1) for mass in masses), atol=1e-5)
    assert together.position == alone.position == 27 and together.first == alone.first == 16
    maps = [head_map(lane, 1, 2) for lane in (together, alone)]
    assert maps[0].first == maps[1].first
    np.testing.assert_allclose(maps[0].weights, maps[1].weights, atol=1e-5)
    for lane in (together, alone):
        lane.switch(Dense())
    np.testing.assert_allclose(together.read(10).nll, alone.read(10).nll, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 9, 64])
def test_chunk_size_changes_nothing_after_a_switch(tiny_llama, tokens, chunk):
    def after(size):
        lane = lane_at(tiny_llama, tokens, Window(20), 100)
        lane.switch(Streaming(4, 30), pin=True)
        parts = []
        while not lane.done:
            parts.append(lane.read(size).nll)
        return np.concatenate(parts)

    np.testing.assert_allclose(after(chunk), after(31), atol=1e-4)


@pytest.mark.parametrize(
    ("policy", "sinks"),
    [
        (Streaming(4, 16), 4),
        (Window(20), 0),
        (Dense(), 0),
        (Recompute(16, 3), 0),
        (Duo(50, 3, 12), 3),
        # Protects others than the first.
        (Late(20, sinks=4, start=10), 0),
        (Late(20, sinks=4, start=0), 4),
        (H2O(20, 0, 8), 0),
        (Random(20, 2, 8), 2),
    ],
    ids=str,
)
def test_protected_are_the_sinks_of_the_policy_and_not_all_that_is_held_yet(tiny_llama, tokens, policy, sinks):
    for position in (3, 12, 150):
        lane = lane_at(tiny_llama, tokens, policy, position)
        assert lane.protected == min(sinks, position - 1) <= max(lane.sinks, lane.protected)
        assert lane.missing_sinks(policy) == lane.missing_sinks(Dense()) == 0


def test_first_tokens_are_missing_as_soon_as_they_have_left(tiny_llama, tokens):
    for window, position in itertools.product((1, 2, 3), range(2, 9)):
        lane = lane_at(tiny_llama, tokens, Window(window), position)
        # Those that are still in the window are not missing.
        assert lane.missing_sinks(Streaming(4, 16)) == min(4, max(0, position - 1 - window))


def test_sinks_that_are_gone_are_protected_when_they_are_pinned_again(tiny_llama, tokens):
    lane = lane_at(tiny_llama, tokens, Window(20), 150)
    lane.switch(Streaming(4, 16))
    assert lane.protected == 0
    lane.switch(Streaming(4, 16), pin=True)
    assert lane.protected == 4


def test_first_tokens_that_are_pinned_are_those_of_the_text_as_it_now_is(tiny_llama, tokens):
    """Of a text that was made shorter and went on in another way, from within the first tokens."""
    lane = open_lanes(tiny_llama, tokens[:3], [Window(8)])[0]
    lane.read(2)
    snapshot = lane.snapshot()
    for chosen in (5, 60):
        lane.restore(snapshot)
        for _ in range(12):
            lane.next(lambda _, chosen=chosen: chosen)
        lane.switch(Streaming(4, 8), pin=True)
        fresh = open_lanes(tiny_llama, [*tokens[:3], *[chosen] * 12], [Streaming(4, 8)])[0]
        fresh.read(14)
        for layer, expected in zip(lane.store.layers, fresh.store.layers, strict=True):
            torch.testing.assert_close(layer.sink_keys, expected.sink_keys, atol=1e-5, rtol=1e-5)


def test_heads_share_all_of_their_budget_where_first_tokens_were_pinned_in_some_that_lacked_them(tiny_llama, tokens):
    lane = lane_at(tiny_llama, tokens, AdaKV(16, 0, 4), 30)
    lane.switch(AdaKV(16, 3, 4), pin=True)
    assert any(layer.slots % layer.kv_heads for layer in lane.store.layers), "heads share their slots evenly"
    before, held, told = lane.snapshot(), [], []
    for _ in range(40):
        lane.read(1, upto=lane.position + 1)
        assert [layer.slots for layer in lane.store.layers] == [16 * 2] * 3
        held.append(lane.cache_bytes)
    lane.restore(before)
    while lane.position < before.position + 40:
        told += lane.read(16, upto=before.position + 40).cache_bytes.tolist()
    assert told == held


def test_where_heads_held_different_first_tokens_none_stands_twice_once_they_are_pinned():
    """All heads hold equally many, so of what came later each keeps the newest."""
    positions = torch.tensor([[1, 2, 5, 6, 7], [3, 5, 6, 7, 8]])
    first = torch.arange(4.0)[None, :, None].expand(2, -1, 2)
    keys = positions[..., None].expand(-1, -1, 2).float()
    pinned = RankedLayer(keys, -keys, positions).with_prefix(first, -first)
    assert pinned.positions.tolist() == [[0, 1, 2, 3, 5, 6, 7], [0, 1, 2, 3, 6, 7, 8]]
    torch.testing.assert_close(pinned.keys[..., 1], pinned.positions.float())
    torch.testing.assert_close(pinned.values, -pinned.keys)


def test_heads_that_held_more_than_others_keep_the_first_tokens_that_all_hold():
    heads = [0, 1, 9], [0, 1, 3, 7, 8, 9]
    of = sorted((position, head) for head, held in enumerate(heads) for position in held)
    positions, own = torch.tensor([[p for p, _ in of]]), torch.tensor([[head == i for _, head in of] for i in (0, 1)])
    keys = positions[..., None].float()
    rows = RaggedLayer(keys, -keys, positions, own=own).rows()
    assert rows.positions.tolist() == [[0, 1, 9]] * 2
    assert rows.keys[..., 0].tolist() == [[0, 1, 9]] * 2 and rows.values.sum() == -20


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Of two policies that put differently many first, the more are exchanged.
        ("streaming:sinks=8,window=20,first=macbeth", "dense:first=macbeth"),
        ("streaming:sinks=8,window=20,first=macbeth", "streaming:sinks=8,window=20,positions=text,first=newlines"),
        ("tova:budget=40,sinks=9,first=macbeth", "cam:budget=40,sinks=6"),
        ("adakv:budget=40,recent=5", "adakv:budget=40,recent=5,first=macbeth"),
        ("adakv:budget=40,recent=5,sinks=7,first=macbeth", "adakv:budget=40,recent=5"),
        ("duo:sinks=6,window=12,first=macbeth", "duo:sinks=3,window=12,first=newlines"),
    ],
)
def test_all_heads_hold_keys_and_values_of_the_first_tokens_that_are_exchanged(old, new, tokens):
    lane = opened(shared("llama"), tokens, old)
    lane.read(30)
    policy, before = parse(new), lane.store.early
    lane.switch(policy)
    early = lane.store.early
    wanted, seen = lane.context.prefix(max(before, early), policy.first, early), 0
    for layer, (keys, values) in zip(lane.store.layers, wanted, strict=True):
        for head in range(len(keys)):
            positions, *held = layer.of_head(head)
            first = positions < keys.shape[1]
            for own, exchanged in zip(held, (keys, values), strict=True):
                torch.testing.assert_close(own[first], exchanged[head, positions[first]])
            seen += int(first.sum())
    assert seen
