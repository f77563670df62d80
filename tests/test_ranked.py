"""Policies that rank slots equal a reference without a cache: a full attention matrix and a list of kept positions."""

import copy
import functools

import numpy as np
import pytest
import torch

from analysis.engine.check import adapt
from analysis.engine.layers.ranked import RankedLayer, agreeing
from analysis.engine.stream import open_lanes, stream
from analysis.maps.recent import head_map, head_row
from analysis.policies import POLICIES, Dense, Ranked, Streaming, Window, parse
from analysis.policies.ranked import LayerState

from .families import few_layers, shared, words
from .published import naive
from .reading import read
from .switching import beside, check_held, follow, read_both, switch_both

RANKED = [name for name, policy in POLICIES.items() if issubclass(policy, Ranked)]
SMALL = {
    "h2o": "budget=16,recent=5",
    "tova": "budget=16",
    "snapkv": "budget=16,sinks=2,recent=4",
    "adakv": "budget=16,recent=4,kernel=3,floor=30",
    "knorm": "budget=16,sinks=1,recent=3,skip=1",
    "keydiff": "budget=16",
    "scissorhands": "budget=16,sinks=1,recent=3,history=9",
    "lagkv": "budget=16,sinks=3,recent=4",
    "expected-attention": "budget=16,sinks=2,future=20",
    "pyramid": "budget=16,sinks=1,recent=2,steepness=2",
    "random": "budget=16,sinks=0,recent=2,seed=7",
    "late": "budget=16,sinks=3,start=6",
    "cam": "budget=16,sinks=2,merge=3,seed=1",
}


def small(name: str, **more) -> Ranked:
    return parse(f"{name}:{SMALL[name]}" + "".join(f",{k}={v}" for k, v in more.items()))


def distinct(count):
    """No token twice: equal keys would have equal scores but for rounding."""
    return np.random.default_rng(1).permutation(90)[:count]


PAIRS = [(1, "cache", 1), (4, "text", 1), (4, "cache", 2), (1, "text", 2), (1, "cache", 4), (4, "text", 4)]
"""Intervals, positions and sizes of groups: each of these with each of the others."""


@pytest.mark.parametrize(("interval", "positions", "groups"), PAIRS)
@pytest.mark.parametrize("name", RANKED)
def test_policy_equals_its_reference_without_a_cache(name, interval, positions, groups):
    model, tokens = shared("llama", num_key_value_heads=4 // groups, num_hidden_layers=2), distinct(38)
    policy = small(name, interval=interval, positions=positions)
    expected, book = naive(model, tokens, policy)
    nll, mass, held, _, lane = read(model, tokens, policy)
    np.testing.assert_allclose(nll, expected, atol=1e-4)
    np.testing.assert_allclose(mass, book.mass, atol=1e-5)
    for (layer, head), kept in book.kept.items():
        assert lane.store.layers[layer].of_head(head)[0].tolist() == kept
    assert policy.name == "knorm" or held.max() <= policy.budget


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("name", RANKED)
def test_chunk_size_changes_nothing(name, interval, tiny_llama):
    policy, tokens = small(name, interval=interval), distinct(40)
    expected = read(tiny_llama, tokens, policy, 1)
    for chunk in (3, 64):
        got = read(tiny_llama, tokens, policy, chunk)
        np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
        np.testing.assert_array_equal(got.cache_tokens, expected.cache_tokens)


@pytest.mark.parametrize("name", RANKED)
def test_budget_for_the_whole_text_equals_dense(name, tiny_llama):
    tokens = words(60)
    more = {"pyramid": {"steepness": 1}, "late": {"start": 5, "sinks": 4}}.get(name, {})
    policy = POLICIES[name](**{"budget": len(tokens), "sinks": 0, "recent": 2, "interval": 4} | more)
    np.testing.assert_allclose(read(tiny_llama, tokens, policy)[0], read(tiny_llama, tokens, Dense())[0], atol=1e-5)


@pytest.mark.parametrize("chunk", [7, 64])
@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("positions", ["cache", "text"])
@pytest.mark.parametrize("name", ["h2o", "adakv", "pyramid"])
def test_maps_show_what_each_head_gave_to_its_own_slots(name, interval, positions, chunk, tiny_llama):
    tokens = distinct(70)
    policy = small(name, interval=interval, positions=positions)
    lane = open_lanes(tiny_llama, tokens, [policy], history=30)[0]
    while not lane.done:
        lane.read(chunk)
    _, book = naive(tiny_llama, tokens, policy)
    for layer, head in ((0, 0), (1, 3), (2, 2)):
        drawn = head_map(lane, layer, head, 24)
        rows = book.rows[layer][head][drawn.first : drawn.first + len(drawn.weights)]
        recent = rows[:, drawn.first : drawn.first + len(rows)]
        assert drawn.first + len(rows) == len(tokens) - 1 and len(rows) == 24
        np.testing.assert_allclose(drawn.weights, recent, atol=1e-5)
        np.testing.assert_allclose(drawn.sinks, rows[:, :4], atol=1e-5)
        row = head_row(lane, layer, head, 60)
        np.testing.assert_allclose(row.weights.sum(), 1, atol=1e-5)
        assert row.positions.tolist() == np.flatnonzero(~np.isnan(book.rows[layer][head][60])).tolist()


def test_what_goes_is_freed(tiny_llama):
    lane = read(tiny_llama, words(300), small("h2o")).lane
    for cache in lane.store.layers:
        assert cache.keys.shape == (2, 16, 8) and cache.keys.untyped_storage().nbytes() == cache.keys.nbytes
    assert lane.cache_bytes == 2 * 3 * 2 * 16 * 8 * 4


def test_heads_that_hold_differently_many_slots_take_no_memory_for_what_others_hold(tiny_llama):
    lane, lengths = open_lanes(tiny_llama, words(300), [small("adakv")])[0], set()
    while not lane.done:
        lane.read(16)
        for layer in lane.store.layers:
            counts = layer.own.sum(1).tolist()
            assert (layer.own.sum(0) == 1).all() and sum(counts) == layer.slots <= 2 * 16
            lengths.add(tuple(counts))
            for held in (layer.keys, layer.values):
                assert held.shape == (1, layer.slots, 8) and held.untyped_storage().nbytes() == held.nbytes
    assert any(a != b for a, b in lengths), "heads never held differently many"
    assert lane.cache_bytes == 2 * 3 * 2 * 16 * 8 * 4


def test_a_window_and_its_sinks_are_what_recency_ranks(tiny_llama):
    """Where every slot is protected but one, ranking is sinks + window."""
    tokens = words(90)
    ranked = POLICIES["knorm"](budget=17, sinks=4, recent=13, skip=0, positions="cache")
    np.testing.assert_allclose(
        read(tiny_llama, tokens, ranked)[0], read(tiny_llama, tokens, Streaming(4, 13))[0], atol=1e-5
    )


def test_late_sinks_that_begin_at_once_are_sinks_and_window(tiny_llama):
    tokens = words(90)
    late = read(tiny_llama, tokens, POLICIES["late"](budget=16, sinks=4, start=0))[0]
    np.testing.assert_allclose(late, read(tiny_llama, tokens, Streaming(4, 12))[0], atol=1e-5)
    lane = read(tiny_llama, tokens, small("late")).lane
    assert lane.store.layers[0].positions[0].tolist() == [6, 7, 8, *range(76, 89)]


def test_pyramid_gives_its_mean_and_no_more():
    for interval in (1, 4, 16):
        policy = POLICIES["pyramid"](budget=256, interval=interval)
        budgets = [policy.budget_of(layer, 30) for layer in range(30)]
        assert np.mean(budgets) == 256 and budgets == sorted(budgets, reverse=True)
        # Of what is not protected the top has a twentieth of the mean.
        top = policy.recent + interval - 1 + (256 - policy.recent - interval + 1) / 20
        assert {b % interval for b in budgets} == {256 % interval} and 0 <= budgets[-1] - top < interval


def test_random_lots_are_even():
    from analysis.policies.random import lot

    drawn = lot(torch.arange(20_000), torch.tensor(5))
    assert abs(drawn.mean() - 0.5) < 0.01 and abs(drawn.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03
    assert not torch.equal(drawn, lot(torch.arange(20_000), torch.tensor(6)))


def splitmix(position, stream):
    """The generator of Steele et al. 2014 in whole numbers of any size."""
    x = (position * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return ((x ^ (x >> 31)) >> 11) / 2**53


def test_random_lots_are_those_of_the_generator():
    positions = torch.tensor([[0, 1, 2, 77, 10**6], [0, 3, 4, 5, 2**31]])
    for layer, seed in ((0, 0), (3, 0), (2, 7)):
        state = LayerState(torch.empty(2, 5, 1), torch.empty(2, 5, 1), positions, None, None, layer)
        lots = POLICIES["random"](seed=seed).score(state)
        for head, row in enumerate(positions.tolist()):
            stream = 1 + head + 1000 * layer + 1_000_003 * seed
            assert lots[head].tolist() == [splitmix(p, stream) for p in row]


def test_random_keeps_an_even_sample_of_the_text(tiny_llama):
    policy = POLICIES["random"](budget=200, sinks=0, recent=1, interval=8)
    lane = read(tiny_llama, np.resize(words(), 2000), policy).lane
    positions = torch.stack([c.positions for c in lane.store.layers]).float()
    assert 900 < positions.mean() < 1100


@pytest.mark.parametrize(
    "settings",
    [
        "h2o:budget=64",
        "knorm:budget=64,sinks=4,recent=61",
        "tova:budget=16,interval=17",
        "snapkv:kernel=4",
        "late:start=260",
    ],
)
def test_settings_that_leave_nothing_to_choose_are_refused(settings):
    with pytest.raises(ValueError, match=r"larger budget|odd number"):
        parse(settings)


@pytest.mark.parametrize("interval", [1, 3, 16])
def test_late_sinks_are_read_before_the_first_token_leaves(tiny_llama, interval):
    last = f"late:budget=30,sinks=4,start=26,interval={interval}"
    for chunk in (1, 16, 64):
        lane = open_lanes(tiny_llama, words(), [parse(last)])[0]
        while not lane.done:
            lane.read(chunk)
            held = [set(p) for c in lane.store.layers for p in c.positions.tolist()]
            assert all(set(range(26, min(lane.position - 1, 30))) <= p for p in held)
        assert all(min(p) == 26 for p in held)
    with pytest.raises(ValueError, match="the first 31 tokens must be in the cache before any leaves"):
        parse(last.replace("start=26", "start=27"))


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt_oss", "smollm3", "phi", "falcon", "mpt"])
@pytest.mark.parametrize(("policy", "positions"), [("h2o", "text"), ("expected-attention", "cache"), ("adakv", "text")])
def test_any_family_can_be_ranked(policy, positions, name):
    """Everything is protected, so it must be sinks + window, with all that a family adds to attention."""
    model, tokens = few_layers(name), words(48)
    ranked = POLICIES[policy](budget=17, sinks=4, recent=13, positions=positions)
    same = Streaming(4, 13, positions)
    np.testing.assert_allclose(read(model, tokens, ranked)[0], read(model, tokens, same)[0], atol=1e-4)


def test_dimensions_that_carry_a_position_are_not_compared():
    """ALiBi's are the last two of a head; the key that leaves is the nearest to the mean of the model's own."""
    model, tokens = few_layers("bloom"), words(48)
    lane, dense = (open_lanes(model, tokens, [parse(p)])[0] for p in ("keydiff:budget=40", "dense"))
    while lane.position < 42:
        lane.read(41, upto=42)
    dense.read(41)
    for layer, whole in zip(lane.store.layers, dense.store.layers, strict=True):
        keys = whole.keys.view()[..., :-2]
        mean = (keys / keys.norm(dim=-1, keepdim=True)).mean(1, keepdim=True)
        leaving = torch.cosine_similarity(keys, mean, dim=-1).argmax(1).tolist()
        assert [{*range(41)} - {*layer.of_head(i)[0].tolist()} for i in range(len(keys))] == [
            {slot} for slot in leaving
        ]


def test_answers_equal_reading(tiny_llama):
    tokens = words(70)
    for policy in (small("h2o"), small("snapkv", interval=4, positions="text"), small("adakv")):
        expected = read(tiny_llama, tokens, policy)[0]
        lane = open_lanes(tiny_llama, tokens[:30], [policy])[0]
        lane.context.trace()
        while not lane.done:
            lane.read(16)
        before = lane.snapshot()
        for _ in range(2):
            got = [lane.next(lambda _, token=token: int(token)).nll[0] for token in tokens[30:]]
            np.testing.assert_allclose(got, expected[29:], atol=1e-4)
            lane.restore(before)


@pytest.mark.parametrize("first", ["dense", "streaming:sinks=4,window=20", "recompute:window=24,stride=4"])
@pytest.mark.parametrize(
    "then", ["h2o:budget=16,recent=5", "knorm:budget=16,sinks=4,recent=3,skip=0", "adakv:budget=16,recent=5"]
)
def test_a_lane_switches_to_ranking_and_back(first, then, tiny_llama):
    lane = open_lanes(tiny_llama, words(200), [parse(first)], history=64)[0]
    reference = beside(lane)
    read_both(lane, reference, 40)
    switch_both(lane, reference, parse(then))
    read_both(lane, reference, 1)
    assert {len(c) for c in lane.store.layers} == {16} and isinstance(lane.policy, Ranked)
    read_both(lane, reference, 16)
    switch_both(lane, reference, Window(30))
    assert 1 <= len(lane.store.layers[0]) <= 16
    read_both(lane, reference, 60)
    assert len(lane.store.layers[0]) == 30


def test_dense_goes_on_exactly_where_nothing_was_evicted(tiny_llama):
    tokens = words(80)
    lane = open_lanes(tiny_llama, tokens, [POLICIES["h2o"](budget=64, recent=8)])[0]
    parts = [lane.read(16).nll, lane.read(16).nll]
    lane.switch(Dense())
    while not lane.done:
        parts.append(lane.read(16).nll)
    np.testing.assert_allclose(np.concatenate(parts), read(tiny_llama, tokens, Dense())[0], atol=1e-5)


def test_pinned_sinks_are_in_front_of_every_head(tiny_llama):
    lane = open_lanes(tiny_llama, words(200), [Window(24)])[0]
    lane.read(60)
    policy = POLICIES["knorm"](budget=20, sinks=4, recent=4, skip=0)
    assert lane.missing_sinks(policy) == 4
    lane.switch(policy, pin=True)
    assert lane.sinks == 4 and lane.missing_sinks(policy) == 0
    lane.read(30)
    assert lane.sinks == 4
    prefix = lane.context.prefix(4)
    for cache, (keys, _) in zip(lane.store.layers, prefix, strict=True):
        torch.testing.assert_close(cache.keys[:, :4], keys)


def test_a_model_is_traced_once_for_all_its_runs(embedded, monkeypatch):
    from analysis.models import language_model as models

    made = []
    monkeypatch.setattr(models, "one_token", lambda model: made.append(model) or (lambda ids, reader: None))
    model = copy.copy(embedded)
    model.__dict__.pop("one_token", None)
    for _ in range(2):
        open_lanes(model, np.arange(300), [small("knorm")])[0].context.trace()
    assert made == [model.adapted]


def test_keys_that_cannot_be_moved_are_not_ranked():
    with pytest.raises(ValueError, match="cannot be moved"):
        open_lanes(shared("gpt2"), words(), [small("h2o")])


def test_a_layer_that_holds_nothing_is_of_the_models_own_numbers(tiny_llama):
    empty = RankedLayer.empty(adapt(copy.deepcopy(tiny_llama).bfloat16()), 0)
    assert empty.keys.dtype == empty.values.dtype == torch.bfloat16 and empty.keys.shape[1] == 0


def test_only_what_all_heads_have_from_the_first_on_agrees():
    expected = torch.arange(4)
    for rows, count in (([[0, 1, 2, 9], [0, 1, 9, 3]], 2), ([[9, 1, 2, 3], [0, 1, 2, 3]], 0), ([[0, 1, 2, 3]] * 2, 4)):
        assert agreeing(torch.tensor(rows), expected) == count


def test_ranking_runs_on_the_meta_device(tiny_llama):
    model = adapt(type(tiny_llama)(tiny_llama.config).eval().to("meta"))
    for name in RANKED:
        for positions in ("cache", "text"):
            lane = open_lanes(model, words(60), [small(name, positions=positions, interval=2)])[0]
            for begin, count in ((0, 5), (5, 12), (17, 2), (19, 1)):
                logits, mass, *_ = lane.store.forward(begin, count)
                assert logits.is_meta and mass.is_meta and mass.shape == (3, 4, count)
            assert all(isinstance(c, RankedLayer) and c.keys.is_meta for c in lane.store.layers)


def test_lanes_of_all_kinds_read_one_text(tiny_llama):
    policies = [Dense(), Streaming(4, 12), *(small(name) for name in RANKED)]
    read_by = {step.lane for step in stream(tiny_llama, words(64), policies, chunk=16)}
    assert read_by == set(range(len(policies)))


def test_shares_say_how_many_heads_hold_a_token(tiny_llama):
    lane = open_lanes(tiny_llama, words(80), [small("h2o")])[0]
    assert lane.shares is None
    while not lane.done:
        lane.read(16)
    shares = lane.shares
    assert shares.shape == (79,) and (shares[-5:] == 1).all()
    np.testing.assert_allclose(shares.sum(), 16, rtol=1e-6)
    held = [sum(t in head for c in lane.store.layers for head in c.positions.tolist()) / 6 for t in range(79)]
    np.testing.assert_allclose(shares, held, rtol=1e-6)
    lane.switch(Window(12))
    assert lane.shares is None


@functools.cache
def dropping(name):
    """A lane that has read 39 tokens, as it was then, and its reference: read once, and gone back to."""
    policy = parse(f"{name}:budget=12,interval=3" + (",skip=0" if name == "knorm" else ""))
    lane = open_lanes(shared("llama", num_hidden_layers=2), words(120)[:40], [policy], history=64)[0]
    reference = beside(lane)
    read_both(lane, reference, 39)
    return lane, lane.snapshot(), reference


@pytest.mark.parametrize(
    "then", ["dense", "window:window=9", "streaming:sinks=4,window=9", "duo:window=9", "h2o:recent=8", "adakv"]
)
@pytest.mark.parametrize("name", ["tova", "knorm", "keydiff", "expected-attention"])
def test_a_policy_that_may_drop_the_newest_token_is_left_for_any_other(name, then):
    tokens, (lane, snapshot, reference) = words(120), dropping(name)
    lane.restore(snapshot)
    reference, met = reference.copy(), set()
    # Every moment between two evictions, twice.
    for count in range(40, 46):
        lane.context.extend(tokens[count : count + 1].astype(np.int32))
        read_both(lane, reference, 1)
        before, then_reference = lane.snapshot(), reference.copy()
        met.add(lane.first == lane.position - 1)
        switch_both(lane, reference, parse(then))
        check_held(lane, reference)
        lane.context.extend(tokens[count + 1 : count + 15].astype(np.int32))
        read_both(lane, reference, 14, chunk=7)
        follow(lane, reference, lane.next(lambda _: 5))
        lane.restore(before)
        reference = then_reference
    # Now and then some head had evicted the newest token.
    assert name == "tova" or True in met
