"""One token at a time gives what reading in chunks gives, whatever the policy, the pieces, or the way it is run."""

import functools

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from analysis.engine.kv import banded
from analysis.engine.stream import open_lanes
from analysis.maps.recent import head_map
from analysis.policies import Dense, Recompute, Streaming, Window, parse

from .families import tiny
from .naive import OneByOne
from .reading import read

WITHIN = {"rtol": 2e-5, "atol": 3e-5}
"""NLLs that are computed in another order.  The relative part is for processors without vector instructions, where they
are up to 1.6e-5 of their size apart; a wrong position or key is off by hundredths."""

POLICIES = [
    "dense",
    "window:window=20",
    "streaming:sinks=4,window=16",
    "streaming:sinks=40,window=16",
    "shift:window=16,keep=2",
    "streaming:sinks=4,window=16,block=5",
    "streaming:sinks=2,window=16,positions=text",
    "recompute:window=12,stride=1",
    "recompute:window=12,stride=5",
]
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}

SCALED = {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 8}


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 97, 120)


def begun(model, tokens, policy, history=0):
    """A lane that has read these tokens, all but the newest."""
    lane = open_lanes(model, tokens, [policy], history=history)[0]
    while not lane.done:
        lane.read(16)
    return lane


def decode(lane, tokens, **settings):
    """The lane goes on with these tokens, one at a time."""
    steps = [lane.next(lambda logits, token=token: int(token), **settings) for token in tokens]
    return [np.concatenate([getattr(s, n) for s in steps], -1) for n in ("nll", "sink_mass", "cache_tokens")]


@pytest.mark.parametrize(("kv_chunk", "traced"), [(None, False), (None, True), (8, False)])
@pytest.mark.parametrize("policy", POLICIES)
def test_decoding_equals_reading(tiny_llama, tokens, policy, kv_chunk, traced):
    tokens = tokens[:80]
    nll, mass, kept, *_ = read(tiny_llama, tokens, parse(policy))
    for given in (2, 30) if not traced else (30,):
        lane = begun(tiny_llama, tokens[:given], parse(policy))
        if traced:
            lane.context.trace()
            assert lane.context.traced
        got = decode(lane, tokens[given:], kv_chunk=kv_chunk)
        np.testing.assert_allclose(got[0], nll[given - 1 :], **WITHIN)
        np.testing.assert_allclose(got[1], mass[..., given - 1 :], atol=3e-6)
        assert got[2].tolist() == kept[given - 1 :].tolist()


@pytest.mark.parametrize(
    ("policy", "sinks", "window"), [(Dense(), 0, None), (Window(20), 0, 20), (Streaming(4, 16), 4, 16)]
)
def test_decoding_equals_a_plain_list_of_kept_keys(tiny_llama, tokens, policy, sinks, window):
    naive = OneByOne(tiny_llama, sinks, window)
    for token in tokens[:9]:
        expected = naive.logits(int(token))
    lane = begun(tiny_llama, tokens[:9], policy)
    for token in tokens[9:]:
        seen = []
        lane.next(lambda logits, token=token, seen=seen: seen.append(logits) or int(token))
        torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-4)
        expected = naive.logits(int(token))


@pytest.mark.parametrize("policy", [Dense(), Window(33), Streaming(4, 29), Streaming(4, 29, "text")])
def test_pieces_of_a_long_run_change_no_number(tiny_llama, tokens, policy):
    for size in (1, 7, 16, 1000):
        whole, pieces = (begun(tiny_llama, tokens[:100], policy) for _ in range(2))
        a, b = decode(whole, tokens[100:]), decode(pieces, tokens[100:], kv_chunk=size)
        np.testing.assert_allclose(a[0], b[0], rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(a[1], b[1], atol=1e-6)


@pytest.mark.parametrize("policy", [Streaming(4, 12), Recompute(12, 5)])
def test_a_run_that_slides_far_is_counted_anew(tiny_llama, tokens, policy, monkeypatch):
    nll = read(tiny_llama, tokens, policy)[0]
    monkeypatch.setattr(banded, "FARTHEST", 20)
    lane = begun(tiny_llama, tokens[:10], policy)
    np.testing.assert_allclose(decode(lane, tokens[10:])[0], nll[9:], **WITHIN)
    assert lane.store.origin > 60


FAMILIES = {
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=10)),
    "softcap": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, sliding_window=10, attn_logit_softcapping=5.0)),
    "mixture of experts": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4)),
}


@functools.cache
def of_family(family):
    """One network for all its tests."""
    torch.manual_seed(0)
    return FAMILIES[family]().eval().requires_grad_(False)


@pytest.mark.parametrize("policy", [Dense(), Window(20), Streaming(4, 16), Streaming(4, 5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_equals_reading_in_families_with_their_own_ways(family, policy, tokens):
    """From before a layer's own sliding window is full, so that sinks leave it one by one."""
    model, tokens = of_family(family), tokens[:50]
    nll, mass, *_ = read(model, tokens, policy)
    lane = begun(model, tokens[:8], policy)
    # Where what is computed depends on the token, the trace must be refused, and the numbers are right all the same.
    lane.context.trace()
    got = decode(lane, tokens[8:])
    np.testing.assert_allclose(got[0], nll[7:], **WITHIN)
    np.testing.assert_allclose(got[1], mass[..., 7:], atol=3e-6)


@pytest.mark.parametrize("policy", [Dense(), Streaming(4, 60)])
def test_tables_of_rotations_go_on_where_the_last_one_ends(policy, tokens):
    """Where heads have many dimensions, a table has rotations for few positions."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL | {"head_dim": 128})).eval().requires_grad_(False)
    nll = read(model, tokens, policy).nll
    np.testing.assert_allclose(decode(begun(model, tokens[:30], policy), tokens[30:])[0], nll[29:], **WITHIN)


@pytest.mark.parametrize("policy", POLICIES)
def test_restored_lane_goes_on_as_if_nothing_had_been_said(tiny_llama, tokens, policy):
    nll = read(tiny_llama, tokens, parse(policy))[0]
    lane = begun(tiny_llama, tokens[:30], parse(policy), history=64)
    decode(lane, tokens[30:50])
    before = lane.snapshot()
    for _ in range(2):
        decode(lane, tokens[:45])
        lane.restore(before)
    assert lane.position == len(lane.context.tokens) == 50
    np.testing.assert_allclose(decode(lane, tokens[50:])[0], nll[49:], **WITHIN)


@pytest.mark.parametrize("new", [Dense(), Window(12), Streaming(4, 8), Recompute(12, 3)])
def test_switch_between_two_tokens_equals_switch_between_two_chunks(tiny_llama, tokens, new):
    decoded, chunked = (begun(tiny_llama, tokens[:60], Streaming(4, 16)) for _ in range(2))
    decode(decoded, tokens[60:80])
    chunked.context.extend(tokens[60:80].astype(np.int32))
    chunked.read(20)
    for lane in (decoded, chunked):
        lane.switch(new, pin=True)
    got = decode(decoded, tokens[80:])[0]
    chunked.context.extend(tokens[80:].astype(np.int32))
    expected = []
    while not chunked.done:
        expected.append(chunked.read(7).nll)
    np.testing.assert_allclose(got, np.concatenate(expected), **WITHIN)


@pytest.mark.parametrize(
    "policy", [Dense(), Window(20), Streaming(4, 16), parse("streaming:sinks=4,window=16,softmax=logit,logit=2.5")]
)
def test_map_of_decoded_tokens_equals_that_of_read_ones(tiny_llama, tokens, policy):
    chunked = read(tiny_llama, tokens, policy, history=64).lane
    lane = begun(tiny_llama, tokens[:30], policy, history=64)
    decode(lane, tokens[30:])
    lane.settle()
    expected, got = head_map(chunked, 1, 2, 40), head_map(lane, 1, 2, 40)
    np.testing.assert_allclose(got.weights, expected.weights, atol=1e-5)
    np.testing.assert_allclose(got.sinks, expected.sinks, atol=1e-5)


@pytest.mark.parametrize("knockout", ["none", "values", "weights"])
@pytest.mark.parametrize(
    "policy", ["dense:", "window:window=3,", "streaming:sinks=2,window=3,", "streaming:sinks=6,window=2,"]
)
def test_a_text_of_two_tokens_goes_on_as_it_is_read(tiny_llama, tokens, policy, knockout):
    """Tokens that are decoded may be first tokens themselves, and a lane never holds more than it tells."""
    policy = parse(f"{policy}knockout={knockout}")
    expected = read(tiny_llama, tokens[:16], policy)
    lane = begun(tiny_llama, tokens[:2], policy)
    for i, token in enumerate(tokens[2:16], 1):
        step = lane.next(lambda _, token=token: int(token))
        np.testing.assert_allclose(step.nll, expected.nll[[i]], **WITHIN)
        np.testing.assert_allclose(step.sink_mass[..., 0], expected.sink_mass[..., i], atol=1e-5)
        assert lane.cache_bytes == step.cache_bytes == expected.cache_bytes[i]


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "hunyuan_v1_dense", "ministral3"])
def test_a_window_that_is_encoded_anew_goes_on_from_its_own_beginning(family, stride, tokens):
    """Also where the network puts positions in itself, of which it may have fewer than the text has tokens."""
    few = {"gpt2": {"n_positions": 24}, "ministral3": {"rope_parameters": SCALED}}
    model, policy = tiny(family, **few.get(family, {})), Recompute(8, stride)
    expected = read(model, tokens[:60], policy)
    lane = begun(model, tokens[:2], policy)
    got = decode(lane, tokens[2:60])
    np.testing.assert_allclose(got[0], expected.nll[1:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got[1], expected.sink_mass[..., 1:], atol=1e-5)


@pytest.mark.parametrize(
    "policy",
    [
        "dense:cache=int2,exact=7,group=4,residual=7",
        "streaming:sinks=4,window=20,cache=int4,group=8,residual=8",
        "h2o:budget=30,recent=4,cache=int4,exact=4,group=8,residual=8",
        "duo:full=50,window=20,cache=int4,group=8,residual=8",
    ],
)
def test_bytes_of_a_quantized_cache_are_those_that_the_tensors_have(tiny_llama, tokens, policy):
    lane = begun(tiny_llama, tokens[:2], parse(policy))
    for token in tokens[2:70]:
        step = lane.next(lambda _, token=token: int(token))
        assert step.cache_bytes == [lane.cache_bytes]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda lane: lane.read(0), "a chunk has at least 1 token, not 0"),
        (lambda lane: lane.next(lambda _: 0, kv_chunk=0), "kv_chunk must be at least 1, not 0"),
        (lambda lane: lane.next(lambda _: 97), "token 97 was chosen, and the model has tokens 0 to 96"),
    ],
)
def test_what_no_lane_can_do_is_refused_in_a_sentence(tiny_llama, tokens, wrong, says):
    lane = begun(tiny_llama, tokens[:5], Dense())
    with pytest.raises(ValueError, match=says):
        wrong(lane)
    assert len(lane.context.tokens) == 5


@pytest.mark.parametrize("ids", [[2**32 + 3, 5, 7], [3.9, 5.0, 7.0], [3, 5, 97], [-1, 5, 7], [True, False, True]])
def test_what_is_no_token_of_the_model_is_refused(tiny_llama, ids):
    with pytest.raises(ValueError, match="token ids must be"):
        open_lanes(tiny_llama, ids, [Dense()])


def test_decoding_before_all_is_read_is_refused(tiny_llama, tokens):
    lane = open_lanes(tiny_llama, tokens, [Dense()])[0]
    with pytest.raises(ValueError, match="read the rest first"):
        lane.next(lambda logits: 0)


@pytest.mark.parametrize("policy", [Dense(), Window(6), Streaming(2, 6)])
def test_decoding_makes_no_tensor_on_another_device(tiny_llama, policy):
    from analysis.engine.attention.band import Band
    from analysis.engine.attention.banded import BandedPass
    from analysis.engine.attention.token import TokenPass
    from analysis.engine.layers.banded import BandedLayer
    from analysis.families.rotary import adapt

    model = adapt(type(tiny_llama)(tiny_llama.config).eval().to("meta"))
    like = torch.empty(model.kv_heads, 0, model.head_dim, device="meta")
    layers = [BandedLayer(like) for _ in range(model.layers)]
    ids = torch.zeros(1, 12, dtype=torch.int64, device="meta")
    band = Band(policy.sinks, policy.sinks, policy.window, "cache")
    model.forward(ids, BandedPass(model, 0, 4, band, layers))
    for layer in layers:
        layer.rotated.append(layer.keys.view())
    one = TokenPass(model, 12, 4, band, layers, policy.sinks, {}, kv_chunk=4)
    out = model.forward(ids[:, :1], one, last=1)
    assert out.is_meta and all(m.is_meta for m in one.mass) and len(one.mass) == model.layers
