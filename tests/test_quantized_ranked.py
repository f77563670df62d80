"""Quantized caches whose slots are ranked: what is stored, what it takes, and that a lane reads it as the plain rule
says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis.engine.check import adapt
from analysis.engine.context import SharedContext
from analysis.engine.kv.ranked import RankedStore
from analysis.engine.lane import Lane
from analysis.engine.layers.eviction import evict
from analysis.engine.layers.packed import STORED
from analysis.engine.layers.quantized import Quantization
from analysis.engine.layers.ranked import RankedLayer, compact
from analysis.engine.stream import open_lanes
from analysis.maps.recent import head_row
from analysis.policies import POLICIES, Ranked, parse
from analysis.policies.ranked import LayerState

from .families import shared, tiny, words
from .invariants import Tokens
from .reading import read
from .rounding import by_token, nearest
from .storms import written
from .switching import beside, check_held, follow, read_both, switch_both

HOLD = 64
SMALL = "group=4,residual=6"
QUANTIZED = {
    "h2o": "budget=16,recent=5,cache=int4,exact=2",
    "tova": "budget=16,cache=int4",
    "snapkv": "budget=16,sinks=2,recent=4,interval=4,cache=int4,exact=2",
    "adakv": "budget=16,recent=4,kernel=3,floor=30,positions=cache,cache=int4,exact=1",
    "knorm": "budget=16,sinks=1,recent=3,skip=1,cache=int8,exact=1",
    "keydiff": "budget=16,positions=cache,cache=int4",
    "scissorhands": "budget=16,sinks=1,recent=3,history=9,cache=int2",
    "lagkv": "budget=16,sinks=1,recent=4,cache=int4,exact=9",
    "expected-attention": "budget=16,sinks=2,future=20,cache=int4,exact=2",
    "pyramid": "budget=16,sinks=1,recent=2,steepness=2,cache=int4",
    "random": "budget=16,sinks=0,recent=2,seed=7,block=3,cache=int8",
    "late": "budget=16,sinks=3,start=6,interval=3,cache=int4,exact=4",
    "cam": "budget=16,sinks=2,merge=3,seed=1,cache=int4,exact=1",
}


def small(name, **more):
    return parse(f"{name}:{QUANTIZED[name]},{SMALL}" + "".join(f",{k}={v}" for k, v in more.items()))


def test_all_ranked_policies_are_here():
    assert {*QUANTIZED} == {name for name, policy in POLICIES.items() if issubclass(policy, Ranked)}


@pytest.mark.parametrize(("name", "chunk"), [(name, 1 + 12 * (i % 2)) for i, name in enumerate(QUANTIZED)])
def test_any_policy_reads_what_the_plain_rule_reads(name, chunk):
    """With one, two and four query heads for each KV head."""
    kv_heads = (4, 2, 1)[list(QUANTIZED).index(name) % 3]
    model = shared("llama", num_key_value_heads=kv_heads, num_hidden_layers=2)
    lane = open_lanes(model, words(64), [small(name)], history=HOLD)[0]
    reference = beside(lane)
    read_both(lane, reference, 63, chunk)
    check_held(lane, reference)
    if lane.policy.recent:
        Tokens(lane.context.model).check(lane, reference.rounded)
    assert reference.ties < 20 and reference.rounded


@pytest.mark.parametrize("positions", ["cache", "text"])
@pytest.mark.parametrize("policy", ["adakv:budget=24,sinks=0,recent=2,kernel=1,floor=0", "keydiff:budget=24"])
def test_what_is_quantized_in_the_midst_of_a_pass_is_rotated_to_where_it_stands(policy, positions):
    model = tiny("llama", num_key_value_heads=2, num_hidden_layers=2)
    for layer in model.model.layers:
        # Heads that look at little hold little where heads share a budget, and others hold more than the mean.
        layer.self_attn.q_proj.weight[: len(layer.self_attn.q_proj.weight) // 2] *= 30
    policy = parse(f"{policy},positions={positions},interval=3,cache=int4,exact=1,{SMALL}")
    lane = open_lanes(model, words(64), [policy], history=HOLD)[0]
    reference = beside(lane)
    read_both(lane, reference, 63, 20)
    check_held(lane, reference)
    if policy.store == "ragged":
        assert max(layer.own.sum(1).max() for layer in lane.store.layers) >= 32


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_families_read_what_the_plain_rule_reads(family):
    model = tiny(family, num_hidden_layers=2, num_key_value_heads=2, sliding_window=9)
    lane = open_lanes(model, words(50), [small("h2o", interval=3)], history=HOLD)[0]
    read_both(lane, beside(lane), 49, chunk=20)


def kept(lane):
    """All that the layers of a lane store."""
    for layer in lane.store.layers:
        yield from (layer.positions, layer.keys, layer.values, layer.packed.at)
        yield from (getattr(layer.packed, name) for name in STORED)


@pytest.mark.parametrize("name", ["h2o", "snapkv", "adakv", "random", "late", "cam"])
def test_chunk_size_changes_nothing(name):
    model, tokens = shared("llama", num_hidden_layers=2), words(50)
    one = read(model, tokens, small(name), 1)
    assert one.cache_bytes[-1] == one.lane.cache_bytes
    for chunk in (7, 64):
        other = read(model, tokens, small(name), chunk)
        np.testing.assert_allclose(other.nll, one.nll, atol=1e-5)
        np.testing.assert_array_equal(other.cache_bytes, one.cache_bytes)
        for a, b in zip(kept(other.lane), kept(one.lane), strict=True):
            # Tokens that are not read as a whole yet may differ in the last digit.
            assert torch.allclose(a, b, atol=1e-6) if a.is_floating_point() else torch.equal(a, b)


def test_a_full_lane_takes_as_many_passes_as_without(monkeypatch):
    """What is quantized ends no pass: queries before and after it go through the model together."""
    forward, begun = RankedStore.forward, []
    monkeypatch.setattr(RankedStore, "forward", lambda store, *of: begun.append(of) or forward(store, *of))
    counts = []
    for cache in ("", ",cache=int4,exact=4"):
        policy = parse(f"h2o:budget=64,recent=32,interval=16{cache}")
        lane = open_lanes(shared("llama", num_hidden_layers=2), words(400), [policy])[0]
        while not lane.done:
            lane.read(256)
        counts.append(sum(begin >= 100 for begin, _ in begun))
        begun.clear()
    assert counts[0] == counts[1] > 10


@pytest.mark.parametrize("name", ["cam", "adakv"])
def test_decoding_reads_what_the_plain_rule_reads(name):
    tokens = words(50)
    lane = open_lanes(shared("llama", num_hidden_layers=2), tokens[:20], [small(name)], history=HOLD)[0]
    reference = beside(lane)
    read_both(lane, reference, 19)
    for token in tokens[20:]:
        follow(lane, reference, lane.next(lambda _, token=token: int(token)))
    check_held(lane, reference)


@pytest.mark.parametrize("name", ["h2o", "adakv"])
def test_maps_show_the_keys_as_the_queries_met_them(name):
    lane = open_lanes(shared("llama", num_hidden_layers=2), words(60), [small(name, interval=2)], history=40)[0]
    reference = beside(lane)
    read_both(lane, reference, 59, chunk=9)
    for t in range(20, 59):
        row, (expected, _) = head_row(lane, 1, 2, t), reference.rows[t, 1, 2]
        assert row.positions.tolist() == sorted(expected)
        np.testing.assert_allclose(row.weights, [expected[p] for p in row.positions], atol=1e-5)


@pytest.mark.parametrize(("name", "pin"), [("h2o", False), ("adakv", True)])
def test_a_switch_stores_what_the_rule_says(name, pin):
    """To it and from it, from bands, from what is stored in another way, and with more room for a while."""
    lane = open_lanes(shared("llama", num_hidden_layers=2), words(300), [parse("window:window=20")], history=HOLD)[0]
    reference, streaming = beside(lane), parse(f"streaming:sinks=2,window=14,cache=int4,exact=2,{SMALL}")
    read_both(lane, reference, 30)
    policy = small(name, sinks=2)
    on = policy, policy.with_room(9), policy, streaming, policy, parse("tova:budget=12"), small("cam"), small("knorm")
    for other in (*on, policy, parse("dense")):
        switch_both(lane, reference, other, pin)
        check_held(lane, reference)
        Tokens(lane.context.model).check(lane, reference.rounded)
        read_both(lane, reference, 9, chunk=5)
    check_held(lane, reference)


@pytest.mark.parametrize("cache", ["cache=int4,exact=2", "cache=int8", "cache=own"])
def test_maps_reach_back_to_where_slots_were_stored_in_another_way_and_no_further(cache):
    """What a switch stores otherwise is not what the queries before it met."""
    lane = open_lanes(shared("llama", num_hidden_layers=2), words(60), [small("h2o")], history=HOLD)[0]
    lane.read(40)
    newest = lane.position - 2
    assert head_row(lane, 1, 2, newest) is not None
    after = parse(f"h2o:budget=16,recent=5,{cache}" + ("" if cache == "cache=own" else f",{SMALL}"))
    lane.switch(after)
    assert (head_row(lane, 1, 2, newest) is not None) == (after == small("h2o"))


def test_more_room_takes_nothing_from_what_is_stored():
    lane = read(shared("llama", num_hidden_layers=2), words(60), small("h2o")).lane
    before = list(kept(lane))
    for other in (small("h2o").with_room(20), small("h2o")):
        lane.switch(other)
        assert all(torch.equal(a, b) for a, b in zip(kept(lane), before, strict=True))


@pytest.mark.parametrize("name", ["h2o", "adakv", "cam"])
def test_a_lane_goes_on_from_what_is_stored_alone(name):
    """Inside a group of tokens that are read together, too."""
    model, tokens, policy = adapt(shared("llama", num_hidden_layers=2)), words(70), small(name, interval=3)
    lane = Lane(0, policy, SharedContext(model, tokens, 4, 0))
    for upto in (31, 32, 40):
        lane.read(40, upto=upto)
        state = lane.state()
        assert all("keys" not in key or len(t) < 16 * 4 for key, t in state.tensors.items())
        other = Lane(0, policy, SharedContext(model, tokens, 4, 0))
        other.load_state(written(state))
        assert other.cache_bytes == lane.cache_bytes
        assert all(torch.equal(a, b) for a, b in zip(kept(other), kept(lane), strict=True))
        twin = lane.snapshot()
        np.testing.assert_array_equal(other.read(30).nll, lane.read(30).nll)
        assert all(torch.equal(a, b) for a, b in zip(kept(other), kept(lane), strict=True))
        lane.restore(twin)


@pytest.mark.parametrize("name", ["groups", *STORED])
@pytest.mark.parametrize("damage", [lambda t: t[1:], lambda t: torch.cat((t, t[:1]))], ids=["fewer", "more"])
def test_what_is_damaged_is_not_loaded(name, damage):
    model, tokens = adapt(shared("llama", num_hidden_layers=2)), words(70)
    lane = Lane(0, small("h2o"), SharedContext(model, tokens, 4, 0))
    lane.read(40, upto=40)
    state = written(lane.state())
    state.tensors[f"store/0/packed/{name}"] = damage(state.tensors[f"store/0/packed/{name}"])
    with pytest.raises(ValueError, match="have not the scales that they need: it is damaged"):
        Lane(0, small("h2o"), SharedContext(model, tokens, 4, 0)).load_state(state)


def test_slots_that_share_a_code_are_not_loaded():
    model, tokens = adapt(shared("llama", num_hidden_layers=2)), words(70)
    lane = Lane(0, small("h2o"), SharedContext(model, tokens, 4, 0))
    lane.read(40, upto=40)
    state = written(lane.state())
    at = state.tensors["store/0/packed/at"]
    state.tensors["store/0/packed/at"] = torch.where(at == 1, 0, at)
    with pytest.raises(ValueError, match="have not the scales that they need: it is damaged"):
        Lane(0, small("h2o"), SharedContext(model, tokens, 4, 0)).load_state(state)


def layer_of(tokens, q, dtype, heads=2, dim=128):
    """A layer that holds so many tokens, and will quantize them."""
    torch.manual_seed(0)
    keys, values = torch.randn(2, heads, tokens, dim).to(dtype)
    return RankedLayer(keys, values, torch.arange(tokens).expand(heads, -1)).as_it_came(q)


def test_groups_that_are_packed_together_are_those_that_are_packed_one_by_one():
    """Also where the heads hold tokens far from one another, as after a switch in a long text."""
    torch.manual_seed(0)
    keys, values = torch.randn(2, 2, 7, 8)
    positions = torch.tensor([[0, 258, 259, 261, 270, 271, 300], [1, 2, 3, 5, 6, 258, 300]])
    layers = [RankedLayer(keys, values, positions).as_it_came(Quantization(4, 1, 4, 4)) for _ in range(2)]
    for end in range(5, 300, 4):
        layers[0].pack(end)
    assert len(layers[1].pack(297).positions) == 11
    assert torch.equal(layers[0].keys, layers[1].keys) and torch.equal(layers[0].values, layers[1].values)
    assert layers[0].nbytes == layers[1].nbytes


def test_bytes_are_those_of_codes_and_of_scales_that_some_slot_still_has():
    layer = layer_of(14, Quantization(4, 2, 4, 4), torch.float16)
    came = layer.pack(10)
    # Two heads with two groups of four tokens, and six tokens as they came; a scale and a zero point are two bytes.
    token, scales = 2 * 128 * 4 // 8 + 2 * 2, 2 * 128
    assert layer.nbytes == 2 * (8 * token + 2 * scales + 6 * 2 * 128 * 2) and len(came.positions) == 16
    codes = layer.keys
    for budget, packed, groups in ((9, 5, 2), (7, 3, 1), (5, 1, 1), (4, 0, 0)):
        evict([layer], parse(f"late:budget={budget},sinks=0,start=0"), [0], tell=False)
        compact([layer])
        assert layer.nbytes == 2 * (packed * token + groups * scales + 4 * 2 * 128 * 2)
        assert torch.equal(layer.keys, codes[:, -budget:]), "what stays is never rounded again"


def test_layers_that_are_compacted_together_are_those_that_are_compacted_one_by_one():
    """Layers that hold differently many, one of which has nothing packed and one of which loses nothing."""
    torch.manual_seed(2)
    layers = []
    for tokens, end, stays in ((14, 10, 6), (9, 0, 4), (22, 18, 22), (30, 26, 3), (18, 14, 1)):
        layer = layer_of(tokens, Quantization(4, 2, 4, 4), torch.float32)
        layer.pack(end)
        # Heads lose groups of their own.
        kept = torch.stack([torch.randperm(tokens)[:stays].sort().values for _ in range(2)])
        layers.append(replace(layer, packed=layer.packed.of_slots(kept)))
    alone = [layer.copy() for layer in layers]
    for layer in alone:
        compact([layer])
    compact(layers)
    for layer, one, had in zip(layers, alone, (8, 0, 16, 24, 12), strict=True):
        packed, kept = layer.packed, layer.packed.at >= 0
        assert packed.at[kept].tolist() == list(range(len(packed))) and len(packed) <= 2 * had
        assert packed.groups.unique().tolist() == list(range(len(packed.key_scales)))
        assert all(torch.equal(packed.state().tensors[n], t) for n, t in one.packed.state().tensors.items())
        for numbers, others in zip(packed.numbers(torch.float32), one.packed.numbers(torch.float32), strict=True):
            assert torch.equal(numbers, others)
    assert [len(layer.packed) for layer in layers[1:3]] == [0, 32]


def test_a_cache_of_four_bits_is_little_more_than_a_third():
    """Where a group leaves as a whole, and 16 to 32 of 256 tokens are as they came."""
    model = tiny("llama", num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=64).half()
    late = "late:budget=256,start=0,interval=16"
    lanes = open_lanes(model, words(400), [parse(f"{late}{cache}") for cache in ("", ",cache=int4,exact=4")])
    for lane in lanes:
        while not lane.done:
            lane.read(200)
    assert lanes[1].cache_bytes <= 0.37 * lanes[0].cache_bytes


@pytest.mark.parametrize(
    ("stored", "sinks", "leaving", "into"),
    [
        (26, 2, 10, 4),
        # Into the first that is stored.
        (26, 0, 2, 4),
        # Into two that are stored, and two that are as they came.
        (14, 2, 10, 2),
    ],
)
def test_what_is_merged_into_a_stored_value_is_quantized_anew(stored, sinks, leaving, into):
    """And what is as it came stays so."""
    layer = layer_of(30, Quantization(4, 2, 4, 4), torch.float32)
    policy = parse(f"cam:budget={30 - leaving},sinks={sinks},merge=4")
    layer.pack(stored)
    layer.accumulated_attention = torch.linspace(2, 1, 30).expand(2, -1)
    before, state = layer.values, LayerState(*layer.ends(30, 0), layer.positions, layer.accumulated_attention, None, 0)
    leaves = policy.order([state])[:, :leaving]
    merged = policy.merged(before, state, leaves)
    size = layer.nbytes
    evict([layer], policy, [0], tell=False)
    compact([layer])
    changed, ties = 0, 0
    for head in range(2):
        for value, position in zip(layer.values[head], layer.positions[head].tolist(), strict=True):
            expected = merged[head, position]
            if not torch.equal(expected, before[head, position]) and 2 <= position < stored:
                (expected,), more = nearest([expected], by_token, 4, [value])
                changed, ties = changed + 1, ties + more
            torch.testing.assert_close(value, expected)
    assert changed == 2 * into and ties < 5 and layer.nbytes < size
    stored = layer.packed.at >= 0
    assert torch.equal(layer.values[stored], layer.packed.numbers(torch.float32)[1][layer.packed.at[stored]])


def test_first_tokens_that_are_exact_read_as_without():
    model, tokens = shared("llama", num_hidden_layers=2), words(60)
    plain = read(model, tokens, "h2o:budget=16,recent=5").nll
    exact = read(model, tokens, f"h2o:budget=16,recent=5,cache=int2,exact=200,{SMALL}").nll
    np.testing.assert_allclose(exact, plain, atol=1e-5)
    assert np.abs(read(model, tokens, f"h2o:budget=16,recent=5,cache=int2,{SMALL}").nll - plain).max() > 0.01


def test_ranking_runs_on_the_meta_device(tiny_llama):
    model = adapt(type(tiny_llama)(tiny_llama.config).eval().to("meta"))
    for name in ("h2o", "adakv", "cam"):
        lane = open_lanes(model, words(60), [small(name)])[0]
        for begin, count in ((0, 5), (5, 1), (6, 2), (8, 2)):
            logits, mass, *_ = lane.store.forward(begin, count)
            assert logits.is_meta and mass.is_meta and mass.shape == (3, 4, count)
