"""Quantized caches: what is stored, when, how many bytes it takes, and that a lane reads it as the plain rule says."""

from functools import cache

import numpy as np
import pytest
import torch

from analysis.engine.layers.banded import BandedLayer, QuantizedLayer
from analysis.engine.layers.quantized import Quantization
from analysis.engine.stream import open_lanes
from analysis.maps.recent import head_row
from analysis.policies import POLICIES, Dense, Streaming, parse

from .families import shared, tiny, words
from .invariants import Tokens
from .reading import read
from .rounding import by_channel, by_token, due, rounded
from .switching import Slot, beside, check_held, follow, read_both, switch_both

HOLD = 64
SMALL = "group=4,residual=6"
QUANTIZED = [
    f"dense:cache=int4,{SMALL}",
    f"dense:cache=int2,exact=3,{SMALL}",
    f"window:window=20,cache=int4,{SMALL}",
    f"window:window=20,cache=int8,exact=9,{SMALL}",
    f"streaming:sinks=4,window=16,cache=int4,exact=4,{SMALL}",
    f"streaming:sinks=4,window=16,cache=int2,{SMALL}",
    f"streaming:sinks=6,window=16,cache=int4,exact=1,{SMALL}",
    f"streaming:sinks=11,window=7,positions=text,cache=int4,exact=2,{SMALL}",
    f"streaming:sinks=4,window=70,cache=int4,exact=4,{SMALL}",
    f"shift:window=16,keep=2,cache=int4,{SMALL}",
    f"streaming:sinks=4,window=16,block=5,cache=int4,{SMALL}",
    "streaming:sinks=2,window=16,cache=int4,group=1,residual=1",
    "streaming:sinks=4,window=24,cache=int4,exact=30,group=16,residual=16",
    f"duo:sinks=4,window=12,cache=int4,exact=2,{SMALL}",
    f"duo:sinks=9,window=16,positions=cache,cache=int2,{SMALL}",
]


@pytest.fixture(scope="module")
def small():
    """Two layers, two KV heads with two query heads each."""
    return tiny("llama", num_hidden_layers=2, num_key_value_heads=2)


def uneven(heads, tokens, dim):
    """Numbers as keys are: some channels far from 0, some wide, one that is always the same."""
    torch.manual_seed(tokens)
    x = torch.randn(heads, tokens, dim) * torch.logspace(-3, 2, dim) + torch.linspace(-50, 50, dim)
    x[..., 3] = 7.0
    return x


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_packed_tokens_equal_the_plain_rule_and_are_half_a_step_off_at_most(bits):
    keys, values = uneven(2, 23, 128), uneven(2, 23, 128).flip(2)
    layer = QuantizedLayer.of(held(keys, values), Quantization(bits, 2, 4, 4))
    layer.pack(layer.q.end(23))
    parts, decided = (layer.keys.head, layer.keys.codes, layer.keys.tail), 0
    assert ([len(part) for part in parts], len(layer.keys), layer.keys.first) == ([2, 20, 1], 23, 0)
    for head in range(2):
        positions, *got = layer.of_head(head)
        given = [Slot(*of) for of in zip(positions.tolist(), keys[head], values[head], strict=True)]
        stored = {p: (k, v) for p, k, v in zip(positions.tolist(), *got, strict=True)}
        for p in (0, 1, 22):
            assert torch.equal(stored[p][0], given[p].key) and torch.equal(stored[p][1], given[p].value)
        for begin in range(2, 22, 4):
            expected, ties = rounded(given[begin : begin + 4], bits, stored)
            decided += ties
            for i, rule in ((0, by_channel), (1, by_token)):
                came = torch.stack([s[i + 1] for s in given[begin : begin + 4]])
                torch.testing.assert_close(got[i][begin : begin + 4], torch.stack([s[i + 1] for s in expected]))
                # A scale is a whole eighth of a power of 2, so up to 9 % wider than it had to be.
                off = (got[i][begin : begin + 4] - came).abs()
                assert (off <= 0.5 * 2 ** (1 / 8) * rule(came, bits)[1] + 1e-4).all()
    assert decided < 10


def held(keys, values):
    layer = BandedLayer(keys[:, :0])
    layer.append(keys, values)
    return layer


def test_when_a_token_is_quantized_depends_on_its_position_alone():
    for policy in map(parse, QUANTIZED):
        q = Quantization.of(policy)
        for count in range(70):
            done = due(policy, 0, count)
            assert q.end(count) == (done[-1] + q.group if done else q.exact)
            assert q.end(q.moment(count) - 1) == q.end(count) < q.end(q.moment(count))
            t, at = torch.tensor([count]), torch.arange(count)
            stored = [p for begin in done for p in range(begin, begin + q.group)]
            assert q.met(t, at)[0].nonzero().flatten().tolist() == stored


def long(policy):
    """Tokens that pass every window twice; the longest window once, which is no other in kind."""
    return 110 if "window=70" in policy else 70


@pytest.mark.parametrize("chunk", [13, 200])
@pytest.mark.parametrize("policy", QUANTIZED)
def test_any_chunk_reads_what_the_plain_rule_reads(small, policy, chunk):
    lane = open_lanes(small, words(long(policy)), [parse(policy)], history=HOLD)[0]
    reference = beside(lane)
    read_both(lane, reference, long(policy) - 1, chunk)
    Tokens(lane.context.model).check(lane, reference.rounded)
    check_held(lane, reference)
    assert reference.ties < 20


@pytest.mark.parametrize("policy", [f"dense:cache=int4,{SMALL}", f"streaming:sinks=4,window=16,cache=int4,{SMALL}"])
def test_layers_that_see_less_than_what_waits_read_what_the_plain_rule_reads(policy):
    lane = open_lanes(shared("mistral", sliding_window=5, num_hidden_layers=2), words(60), [parse(policy)])[0]
    read_both(lane, beside(lane), 59, 13)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_families_and_shared_heads_read_what_the_plain_rule_reads(family, kv_heads):
    more = {"sliding_window": 9} if family != "llama" else {}
    model = tiny(family, num_hidden_layers=2, num_key_value_heads=kv_heads, **more)
    for policy in (QUANTIZED[4], QUANTIZED[5], f"dense:cache=int4,exact=2,{SMALL}"):
        lane = open_lanes(model, words(60), [parse(policy)], history=HOLD)[0]
        reference = beside(lane)
        read_both(lane, reference, 59, chunk=40)


@pytest.mark.parametrize(
    ("policy", "kv_chunk"),
    [
        *((policy, None) for policy in QUANTIZED),
        (QUANTIZED[1], 5),
        (QUANTIZED[5], 3),
        ("window:window=20,cache=int4,group=1,residual=3", None),
    ],
)
def test_decoding_reads_what_the_plain_rule_reads(small, policy, kv_chunk):
    tokens = words(70)
    lane = open_lanes(small, tokens[:3], [parse(policy)], history=HOLD)[0]
    reference = beside(lane)
    read_both(lane, reference, 2)
    for token in tokens[3:]:
        follow(lane, reference, lane.next(lambda _, token=token: int(token), kv_chunk=kv_chunk))
    check_held(lane, reference)


def test_a_long_past_is_read_in_pieces(small, monkeypatch):
    from analysis.engine.attention import banded

    monkeypatch.setattr(banded, "PAST", 16)
    lane = open_lanes(small, words(100), [parse(QUANTIZED[0])], history=HOLD)[0]
    reference = beside(lane)
    read_both(lane, reference, 99, chunk=20)


@pytest.mark.parametrize("policy", QUANTIZED)
def test_maps_show_the_keys_as_the_queries_met_them(small, policy):
    count = long(policy)
    tokens = words(count + 20)
    lane = open_lanes(small, tokens[:count], [parse(policy)], history=HOLD)[0]
    reference = beside(lane)
    read_both(lane, reference, count - 1, chunk=30)
    for token in tokens[count:]:
        follow(lane, reference, lane.next(lambda _, token=token: int(token)))
    seen = 0
    for t in range(count + 19):
        if (row := head_row(lane, 1, 2, t)) is not None:
            expected, _ = reference.rows[t, 1, 2]
            np.testing.assert_allclose(row.weights, [expected[p] for p in row.positions], atol=1e-5)
            assert len(row.weights) == len(expected)
            seen += 1
    assert seen >= HOLD


@pytest.fixture(scope="module")
def after(small):
    """A lane and its reference that have read fifty tokens under a policy: read once, and gone back to."""

    @cache
    def begun(policy):
        lane = open_lanes(small, words(200), [parse(policy)], history=HOLD)[0]
        reference = beside(lane)
        read_both(lane, reference, 50)
        return lane, lane.snapshot(), reference

    def read(policy):
        lane, snapshot, reference = begun(policy)
        lane.restore(snapshot)
        return lane, reference.copy()

    return read


@pytest.mark.parametrize("new", ["dense", "window:window=9", QUANTIZED[0], QUANTIZED[4], QUANTIZED[5], QUANTIZED[7]])
@pytest.mark.parametrize("old", ["dense", "window:window=9", QUANTIZED[4], QUANTIZED[5], "h2o:budget=20,recent=5"])
def test_a_switch_stores_what_the_rule_says(after, old, new):
    for pin in (False, True):
        lane, reference = after(old)
        switch_both(lane, reference, parse(new), pin)
        check_held(lane, reference)
        Tokens(lane.context.model).check(lane, reference.rounded)
        read_both(lane, reference, 30, chunk=13)
        check_held(lane, reference)


@pytest.mark.parametrize("pin", [False, True])
def test_heads_of_two_kinds_are_switched_to_and_from(small, pin):
    lane = open_lanes(small, words(300), [parse("window:window=9")], history=HOLD)[0]
    reference, duo = beside(lane), parse(QUANTIZED[-2])
    read_both(lane, reference, 30)
    for policy in (duo, duo.with_room(5), parse(QUANTIZED[4]), duo, parse(QUANTIZED[-1]), parse("dense")):
        switch_both(lane, reference, policy, pin)
        check_held(lane, reference)
        Tokens(lane.context.model).check(lane, reference.rounded)
        read_both(lane, reference, 15, chunk=9)
    check_held(lane, reference)


def test_more_room_takes_nothing_from_what_is_stored(small):
    """Who asks in a lane that has more room for a while switches to and fro."""
    policy = parse(QUANTIZED[4])
    lane = open_lanes(small, words(200), [policy])[0]
    lane.read(60)
    before = [layer.everything() for layer in lane.store.layers]
    for other in (policy.with_room(20), policy):
        lane.switch(other)
        for layer, (keys, values) in zip(lane.store.layers, before, strict=True):
            assert torch.equal(layer.everything()[0], keys) and torch.equal(layer.everything()[1], values)


def test_what_is_kept_exact_reads_as_without(small):
    tokens = words(90)
    plain = read(small, tokens, Streaming(4, 16))
    for policy in (Streaming(4, 16, cache="int2", exact=200, residual=4, group=4), Streaming(4, 16)):
        other = read(small, tokens, policy)
        np.testing.assert_allclose(other.nll, plain.nll, atol=1e-5)
    other = read(small, tokens, Streaming(4, 16, cache="int2", residual=4, group=4))
    assert np.abs(other.nll - plain.nll).max() > 0.01


def test_bytes_are_those_of_packed_tensors():
    """Four bits, half of 32 tokens, one scale for 32 keys of a channel and one for each token's values."""
    model = tiny("llama", num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=64).half()
    lane = open_lanes(model, words(1400), [parse("streaming:sinks=4,window=1020,cache=int4,exact=4")])[0]
    while lane.position < 1300:
        lane.read(100, upto=1300)
    shares = []
    for _ in range(64):
        lane.read(1, upto=lane.position + 1)
        shares.append(lane.cache_bytes / (1024 * 2 * 64 * 2))
    assert np.mean(shares) <= 0.29 and max(shares) <= 0.30
    with torch.inference_mode():
        layer = lane.store.layers[0]
        stored = [getattr(slots, part).view() for slots in (*layer.sinks, layer.keys, layer.values) for part in PARTS]
    assert lane.cache_bytes == sum(t.numel() * t.element_size() for t in stored)


PARTS = ("head", "codes", "scales", "zeros", "tail")


@pytest.mark.parametrize("policy", [*QUANTIZED, QUANTIZED[-1].replace("duo:", "duo:full=25,")])
def test_bytes_of_every_token_are_those_that_were_held_then(small, policy):
    """Token by token, what is held is counted in its tensors."""
    lane = open_lanes(small, words(70), [parse(policy)])[0]
    held = []
    while not lane.done:
        lane.read(1)
        held.append(lane.cache_bytes)
    np.testing.assert_allclose(read(small, words(70), parse(policy), 40).cache_bytes, held, atol=1)


@torch.inference_mode()
def test_sinks_and_window_are_packed_as_if_they_stood_in_one_window():
    """Several groups of each at once, of which one stands in both."""
    q, (keys, values) = Quantization(bits=4, exact=2, group=4, residual=4), torch.randn(2, 2, 24, 16)
    parted, whole = (QuantizedLayer(keys, q, first) for first in (11, 0))
    parted.pin(keys[:, :11], values[:, :11])
    parted.append(keys[:, 11:], values[:, 11:])
    whole.append(keys, values)
    for layer in (parted, whole):
        layer.pack(18)
    for a, b in zip(parted.everything(), whole.everything(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("left", [1, 5, 9, 12])
@torch.inference_mode()
def test_values_that_a_decoded_token_meets_are_those_that_are_held(left):
    """Unpacked once and kept: also where tokens leave just after some were packed in the midst of the window."""
    q = Quantization(bits=4, exact=2, group=4, residual=6)
    layer = QuantizedLayer(torch.empty(2, 0, 16), q)
    for count in range(1, 13):
        new = torch.randn(2, 2, 1, 16, generator=torch.Generator().manual_seed(count))
        layer.met_values()
        layer.append(new[0], new[1], new[0])
        layer.pack(q.end(count))
    layer.keep_last(left)
    assert torch.equal(layer.met_values(), layer.values.view())


@pytest.mark.parametrize("policy", [QUANTIZED[1], QUANTIZED[4], QUANTIZED[5], QUANTIZED[6]])
def test_a_snapshot_goes_on_as_if_nothing_had_been_read(small, policy):
    lane = open_lanes(small, words(200), [parse(policy)], history=HOLD)[0]
    reference = beside(lane)
    read_both(lane, reference, 40)
    before, then = lane.snapshot(), reference.copy()
    for chunk in (1, 7, 30):
        lane.restore(before)
        reference = then.copy()
        check_held(lane, reference)
        read_both(lane, reference, 30, chunk)


def test_the_sink_spoils_the_scales_of_its_group():
    """One token far from the others takes the steps of all: with it exact, the others are stored as well as ever."""
    torch.manual_seed(0)
    keys = torch.randn(1, 64, 8)
    keys[:, 0] *= 100
    lost = []
    for exact in (0, 4):
        layer = QuantizedLayer.of(held(keys, keys), Quantization(4, exact, 32, 32))
        layer.pack(layer.q.end(64))
        lost.append(float((layer.keys.view() - keys)[:, 4:32].abs().mean()))
    assert lost[0] > 5 * lost[1]


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ("recompute:cache=int4", "its cache cannot be quantized: choose cache=own"),
        ("dense:cache=int3", "cache must be one of own, int8, int4, int2"),
        ("dense:cache=int4,group=64", "hold no group of 64"),
        ("streaming:window=20,cache=int4", "choose a larger window or a smaller residual"),
        ("shift:window=60,cache=int4", "may hold 31"),
        ("duo:window=20,cache=int4", "window may hold 20"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_a_sentence(policy, sentence):
    with pytest.raises(ValueError, match=sentence) as e:
        parse(policy)
    assert "\n" not in str(e.value)


def test_policies_whose_stores_cannot_pack_say_so():
    for name, kind in POLICIES.items():
        if not kind.quantizable:
            with pytest.raises(ValueError, match=f"{name}: its cache cannot be quantized"):
                kind(cache="int4")


def test_what_may_be_quantized_takes_less_memory(small):
    """Of a text so short that nothing leaves."""
    own = read(small, words(30), "dense").lane.cache_bytes
    for name, kind in POLICIES.items():
        if kind.quantizable:
            assert read(small, words(30), f"{name}:cache=int4,{SMALL}").lane.cache_bytes < own / 2, name


def test_heads_that_carry_positions_are_not_quantized():
    with pytest.raises(ValueError, match="carry positions, which cannot be quantized: choose cache=own"):
        open_lanes(tiny("bloom"), words(20), [Dense(cache="int4")])
    with pytest.raises(ValueError, match="have 6 dimensions, which cannot be quantized: choose cache=own"):
        open_lanes(tiny("llama", head_dim=6), words(20), [Dense(cache="int4")])


def test_the_contract_parses_and_says_what_it_is():
    policy = parse("streaming:sinks=4,window=252,cache=int4,exact=4")
    assert str(policy) == "streaming:sinks=4,window=252,positions=cache,cache=int4,exact=4"
    assert policy.label == "Sinks + window 4 + 252, int4 cache, first 4 exact"
    assert policy.capacity == 256 and policy.capturable and parse("dense").capturable
