"""Laws of the engine, on tiny random models and on the embedded one."""

import time

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from analysis.engine.check import adapt
from analysis.engine.stream import next_lane, open_lanes, stream
from analysis.families.positions import Rotary
from analysis.metrics import perplexity, predicted_bytes
from analysis.policies import POLICIES as registry
from analysis.policies import Dense, Ranked, Recompute, Streaming, Window, parse

from . import naive
from .families import few_layers, own_nll, shared
from .reading import read

POLICIES = ["dense", "window:window=20", "streaming:sinks=4,window=16", "streaming:sinks=4,window=16,positions=text"]
POLICIES += ["streaming:sinks=1,window=16", "streaming:sinks=9,window=3", "window:window=2"]
POLICIES += ["recompute:window=16,stride=1", "recompute:window=16,stride=5", "shift:window=15,keep=2"]
POLICIES += ["streaming:sinks=3,window=16,positions=naive,block=6", "window:window=70,block=32"]


def small(policy):
    """A policy with settings that matter in a short text: so a new one is held to the laws without a line here."""
    numbers = {f.name: min(f.default, 12) for f in policy.settings() if isinstance(f.default, int)}
    return str(policy(**numbers))


# Those that rank slots have the same laws in test_ranked.py, over texts in which no two keys are equal.
POLICIES += [small(p) for p in registry.values() if not issubclass(p, Ranked) and small(p) not in POLICIES]


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 97, 230)


@pytest.fixture(scope="module")
def eager(tiny_llama, tokens):
    """NLL and attention weights of transformers' own eager pass over the whole text."""
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        out = tiny_llama(torch.as_tensor(tokens)[None], output_attentions=True)
    nll = -torch.log_softmax(out.logits[0, :-1], -1)[torch.arange(len(tokens) - 1), torch.as_tensor(tokens[1:])]
    return nll.numpy(), torch.stack([a[0] for a in out.attentions]).numpy()


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_dense_equals_eager(tiny_llama, tokens, eager, chunk):
    nll, mass, kept, *_ = read(tiny_llama, tokens, "dense", chunk)
    np.testing.assert_allclose(nll, eager[0], atol=1e-5)
    np.testing.assert_allclose(mass, eager[1][:, :, :-1, :4].sum(-1), atol=1e-5)
    np.testing.assert_array_equal(kept, np.arange(1, len(tokens)))


@pytest.mark.parametrize("chunk", [1, 16, 100])
@pytest.mark.parametrize("positions", ["cache", "text"])
@pytest.mark.parametrize(("sinks", "window"), [(0, 12), (1, 11), (4, 8), (7, 5), (2, 1)])
def test_streaming_equals_the_rule_token_by_token(tiny_llama, tokens, sinks, window, positions, chunk):
    nll, mass, *_ = read(tiny_llama, tokens[:60], Streaming(sinks, window, positions), chunk)
    expected, expected_mass = naive.read(tiny_llama, tokens[:60], sinks, window, positions)
    np.testing.assert_allclose(nll, expected, atol=1e-4)
    np.testing.assert_allclose(mass, expected_mass, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize(
    ("policy", "sinks", "window", "step"),
    [
        ("shift:window=12,keep=4", 4, 12, 6),
        ("shift:window=9,keep=1", 1, 9, 4),
        ("shift:window=12,keep=0", 0, 12, 6),
        ("shift:window=2,keep=1", 1, 2, 1),
        ("streaming:sinks=4,window=12,block=4", 4, 12, 4),
        ("streaming:sinks=2,window=11,positions=text,block=5", 2, 11, 5),
        ("window:window=16,block=16", 0, 16, 16),
    ],
)
def test_tokens_that_leave_together_leave_as_the_rule_says(tiny_llama, tokens, policy, sinks, window, step, chunk):
    positions = "text" if "text" in policy else "cache"
    nll, mass, kept, *_ = read(tiny_llama, tokens[:60], policy, chunk)
    expected, expected_mass = naive.read(tiny_llama, tokens[:60], sinks, window, positions, step)
    np.testing.assert_allclose(nll, expected, atol=1e-4)
    np.testing.assert_allclose(mass, expected_mass, atol=1e-5)
    assert kept.tolist() == [len(naive.kept(t, sinks, window, step)) - 1 for t in range(1, 60)]


@pytest.mark.parametrize("plain", ["window:window=20", "streaming:sinks=4,window=16,positions=naive"])
def test_blocks_of_one_token_are_no_blocks(tiny_llama, tokens, plain):
    assert parse(f"{plain},block=1") == parse(plain) and str(parse(f"{plain},block=1")) == plain
    assert not np.array_equal(*(read(tiny_llama, tokens, f"{plain}{more}")[0] for more in ("", ",block=2")))


@pytest.mark.parametrize("policy", POLICIES)
def test_chunk_size_changes_nothing(tiny_llama, tokens, policy):
    one, *others = (read(tiny_llama, tokens[:100], policy, chunk) for chunk in (1, 3, 33, 64, 90, 500))
    for other in others:
        np.testing.assert_allclose(other[0], one[0], atol=1e-4)
        np.testing.assert_allclose(other[1], one[1], atol=1e-5)
        np.testing.assert_array_equal(other[2], one[2])
        np.testing.assert_array_equal(other[3], one[3])


@pytest.mark.parametrize("policy", [Window(500), Streaming(4, 500), Streaming(4, 500, "text"), Streaming(0, 500)])
def test_window_longer_than_text_equals_dense(tiny_llama, tokens, eager, policy):
    np.testing.assert_allclose(read(tiny_llama, tokens, policy)[0], eager[0], atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 64])
@pytest.mark.parametrize(("sinks", "window"), [(4, 16), (1, 30)])
def test_streaming_first_differs_from_dense_at_query_s_plus_r_plus_1(tiny_llama, tokens, eager, sinks, window, chunk):
    nll, *_ = read(tiny_llama, tokens, Streaming(sinks, window), chunk)
    query = int(np.argmax(np.abs(nll - eager[0]) > 1e-4))
    assert query == sinks + window + 1


def test_window_is_the_same_in_both_position_modes(tiny_llama, tokens):
    cache, text = (read(tiny_llama, tokens, Streaming(0, 20, mode))[0] for mode in ("cache", "text"))
    np.testing.assert_allclose(cache, text, atol=1e-5)
    np.testing.assert_allclose(cache, read(tiny_llama, tokens, Window(20))[0], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "window", "stride"),
    [("llama", 16, 1), ("llama", 16, 5), ("llama", 300, 1), ("mistral", 9, 1), ("mistral", 30, 9)],
)
def test_recompute_equals_a_fresh_forward_pass(tiny_llama, tokens, family, window, stride):
    # Layers of the other see 20 tokens by themselves.
    model, tokens = (tiny_llama, tokens[:120]) if family == "llama" else (few_layers(family), tokens[:80])
    nll, _, kept, *_ = read(model, tokens, Recompute(window, stride))
    tiny_llama.set_attn_implementation("eager")
    for i in range(1, len(tokens)):
        start = 0 if i <= window else i - window - (i - window - 1) % stride
        assert (start == 0) == (i <= Recompute(window, stride).full_from)
        with torch.no_grad():
            logits = model(torch.as_tensor(tokens[start:i])[None]).logits[0, -1]
        assert abs(-torch.log_softmax(logits, -1)[tokens[i]].item() - nll[i - 1]) < 1e-4
        assert kept[i - 1] == i - start


def test_recompute_goes_on_inside_a_stride(tiny_llama, tokens):
    lane, nll = open_lanes(tiny_llama, tokens[:60], [Recompute(16, 5)])[0], []
    for upto in (3, 16, 17, 19, 20, 22, 26, 27, 35, 60):
        while lane.position < upto:
            nll.append(lane.read(64, upto=upto).nll)
    expected = read(tiny_llama, tokens[:60], Recompute(16, 5))
    np.testing.assert_allclose(np.concatenate(nll), expected.nll, atol=1e-5)


def test_a_text_grows_and_shrinks_as_a_list_does(tiny_llama, tokens):
    context, text = open_lanes(tiny_llama, tokens[:3], [Dense()])[0].context, list(tokens[:3])
    for count in (1, 5, 2000, 1, 3000, 1):
        more = np.arange(len(text), len(text) + count) % 97
        before = context.tokens, context.ids
        context.extend(more.astype(np.int32))
        assert [len(b) for b in before] == [len(text)] * 2 and before[0].tolist() == before[1].tolist() == text
        text += more.tolist()
        assert context.tokens.tolist() == context.ids.tolist() == text
        context.truncate(len(text) - count // 3)
        text = text[: len(text) - count // 3]
        assert context.tokens.tolist() == context.ids.tolist() == text


def test_first_tokens_are_encoded_once_for_as_many_as_were_asked_for(tiny_llama, tokens):
    context = open_lanes(tiny_llama, tokens, [Dense()])[0].context
    fresh = [open_lanes(tiny_llama, tokens, [Dense()])[0].context.prefix(n) for n in (2, 20, 6)]
    for count, expected in zip((2, 20, 6), fresh, strict=True):
        for (keys, values), (k, v) in zip(context.prefix(count), expected, strict=True):
            assert keys.shape[1] == count
            torch.testing.assert_close((keys, values), (k, v), atol=1e-5, rtol=1e-5)
    assert context.prefix(6)[0][0].data_ptr() == context.prefix(20)[0][0].data_ptr()
    assert context.prefix(10_000)[0][0].shape[1] == len(tokens)


def test_learned_positions_are_read_to_the_last():
    model, tokens = shared("gpt2"), np.arange(514) % 97
    open_lanes(model, tokens[:513], [Dense(), Recompute(512), Recompute(500, 13)])
    for policy, said in ((Recompute(513), "choose a smaller window"), (Recompute(500, 14), "needs 513")):
        with pytest.raises(ValueError, match=said):
            open_lanes(model, tokens, [policy])
    with pytest.raises(ValueError, match="read at most 513, or choose recompute"):
        open_lanes(model, tokens, [Dense()])


@pytest.mark.parametrize("policy", ["dense", "streaming:sinks=4,window=16,positions=text", "window:window=20"])
def test_shifting_all_positions_changes_nothing(tiny_llama, tokens, policy):
    # A twin of its own: the one that other tests share must stay as it is.
    twin = adapt(tiny_llama)
    assert isinstance(twin.positions, Rotary)
    twin.positions.module = _Shifted(twin.positions.module)
    (plain,), (shifted,) = (open_lanes(model, tokens, [parse(policy)]) for model in (tiny_llama, twin))
    while not plain.done:
        np.testing.assert_allclose(plain.read(50).nll, shifted.read(50).nll, atol=1e-4)


class _Shifted(torch.nn.Module):
    def __init__(self, rotary):
        super().__init__()
        self.inner = rotary

    def forward(self, x, position_ids):
        return self.inner(x, position_ids + 1000)


@pytest.mark.parametrize("policy", POLICIES)
def test_cache_bytes_equal_predicted_bytes(tiny_llama, tokens, policy):
    policy = parse(policy)
    lane = open_lanes(tiny_llama, tokens, [policy])[0]
    while not lane.done:
        step = lane.read(40)
        # Where heads hold differently many, cache tokens are their mean, rounded up.
        held = lane.cache_bytes / predicted_bytes(3, 2, 8, 1, 4)
        # Blocks that are not full take their room, too.
        allocated = policy.allocated(int(step.cache_tokens[-1]))
        assert lane.cache_bytes == step.cache_bytes[-1] and allocated == np.ceil(held)
        assert held.is_integer() or policy.name == "duo"
        assert policy.capacity is None or step.cache_tokens.max() <= policy.capacity


def test_sliding_layers_see_no_more_than_their_own_window(tokens):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, sliding_window=24, attn_implementation="eager",
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    with torch.no_grad():
        out = model(torch.as_tensor(tokens)[None])
    expected = -torch.log_softmax(out.logits[0, :-1], -1)[torch.arange(len(tokens) - 1), torch.as_tensor(tokens[1:])]
    for policy in (Dense(), Window(400), Window(24), Window(23), Recompute(400, 1)):
        np.testing.assert_allclose(read(model, tokens, policy, 50)[0], expected.numpy(), atol=1e-4)


def test_the_network_itself_is_left_as_it_was(tiny_llama, tokens, eager):
    read(tiny_llama, tokens, "dense")
    with torch.no_grad():
        logits = tiny_llama(torch.as_tensor(tokens)[None]).logits[0]
    nll = -torch.log_softmax(logits[:-1], -1)[torch.arange(len(tokens) - 1), torch.as_tensor(tokens[1:])]
    np.testing.assert_allclose(nll.numpy(), eager[0], atol=1e-6)


def test_lanes_take_turns_by_equal_shares_of_time(tiny_llama, tokens):
    began, policies = time.perf_counter(), [Dense(), Recompute(16, 1), Streaming(4, 16)]
    lanes, spent = open_lanes(tiny_llama, np.tile(tokens, 8), policies), [0.0] * len(policies)
    while not any(lane.done for lane in lanes):
        lane = next_lane(lanes)
        assert lane.seconds == min(spent)
        spent[lane.index] += lane.read(32).seconds
        assert [lane.seconds for lane in lanes] == spent
    assert lanes[1].position < lanes[2].position
    assert min(spent) > 0 and sum(spent) <= time.perf_counter() - began


def test_what_a_step_tells_since_a_token_is_the_rest_of_it(tiny_llama, tokens):
    lane = open_lanes(tiny_llama, tokens, [Streaming(4, 16)], top=True)[0]
    lane.read(20)
    step = lane.read(30)
    rest = step.since(step.start + 12)
    assert (rest.lane, rest.policy, rest.start, rest.stop) == (step.lane, step.policy, step.start + 12, step.stop)
    for name in ("token_ids", "nll", "cache_tokens", "cache_bytes", "sink_mass", "top"):
        np.testing.assert_array_equal(getattr(rest, name), getattr(step, name)[..., 12:])
    assert rest.seconds == pytest.approx(step.seconds * 18 / 30)


def test_no_lane_reads_past_a_limit(tiny_llama, tokens):
    for policy in POLICIES:
        lane = open_lanes(tiny_llama, tokens, [parse(policy)])[0]
        while next_lane([lane], upto=51) is not None:
            lane.read(40, upto=51)
        assert lane.position == 51


def test_engine_runs_on_the_meta_device(tokens, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    # What a head looks at is not known there.
    np.savetxt(tmp_path / "heads.txt", np.arange(8).reshape(2, 4))
    for policy in POLICIES:
        policy = policy.replace("measured", str(tmp_path / "heads.txt"))
        lane = open_lanes(model, tokens, [parse(policy)], history=64)[0]
        for _ in range(4):
            # The reading itself, short of the one transfer to the host that ends it.
            nll, mass, held, *_ = lane.store.read(lane.position, 30, len(tokens))
            assert nll.is_meta and mass.is_meta and nll.shape == held.shape == mass.shape[-1:]
            lane.position += len(nll)


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ([], "at least 2 tokens"),
        ([3], "at least 2 tokens"),
        ([1, 97], "between 0 and 96"),
        ([-1, 5], "between 0 and 96"),
    ],
)
def test_bad_texts_get_a_sentence(tiny_llama, tokens, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_lanes(tiny_llama, tokens, [Dense()])


def test_a_stream_tells_what_its_lane_tells_down_to_the_smallest_text_and_chunk(tiny_llama, tokens):
    for text, chunk in ((tokens[:40], 16), ([0, 96], 1)):
        steps = list(stream(tiny_llama, text, [Streaming(4, 8)], chunk=chunk, sink_tokens=2))
        expected = read(tiny_llama, text, Streaming(4, 8), chunk, sink_tokens=2)
        for name in ("nll", "sink_mass", "cache_tokens", "cache_bytes"):
            told = np.concatenate([getattr(step, name) for step in steps], -1)
            np.testing.assert_array_equal(told, getattr(expected, name))
        assert all(step.token_ids.dtype == np.int32 for step in steps)
    with pytest.raises(ValueError, match="at least 1 token, not 0"):
        next(stream(tiny_llama, tokens, [Dense()], chunk=0))


def test_nothing_to_read_or_to_read_with_gets_a_sentence(tiny_llama, tokens):
    with pytest.raises(ValueError, match="choose at least one policy"):
        open_lanes(tiny_llama, tokens, [])
    for wrong in ("dense", ["dense"], Dense()):
        with pytest.raises(ValueError, match="policies are a list of what parse returns"):
            open_lanes(tiny_llama, tokens, wrong)
    with pytest.raises(ValueError, match=r"these are several, \[2, 30\]: stream each by itself"):
        open_lanes(tiny_llama, tokens[:60].reshape(2, 30), [Dense()])
    assert open_lanes(tiny_llama, tokens[None, :60], [Dense()])[0].context.tokens.tolist() == tokens[:60].tolist()
    with pytest.raises(ValueError, match="0 first tokens or more, not -1"):
        open_lanes(tiny_llama, tokens, [Dense()], sink_tokens=-1)
    lane = open_lanes(tiny_llama, tokens[:20], [Dense()])[0]
    assert lane.read(9, upto=6).stop == 6
    for upto in (1, 6):
        with pytest.raises(ValueError, match=f"lane 0 has read up to 6: there is nothing to read before {upto}"):
            lane.read(9, upto=upto)
    lane.read(99)
    with pytest.raises(ValueError, match="nothing to read before 20"):
        lane.read(1)
    assert lane.position == 20


def test_a_family_without_rotary_positions_gets_a_sentence():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="gpt2"):
        open_lanes(model, [1, 2, 3], [Dense()])


# The embedded model against the official implementation's numbers, which another machine computed in float32.  Rounding
# moves a logit by a share of its size, so what is improbable moves more: part of the bound is relative.
OFFICIAL = {"atol": 1e-3, "rtol": 2e-4}


@pytest.mark.parametrize(("sinks", "window"), [(4, 124), (0, 128), (1, 127)])
def test_official_numbers_chunk_256(embedded, oracle, sinks, window):
    ids, expected = oracle(sinks, window)
    nll = read(embedded, ids, Streaming(sinks, window), 256)[0]
    np.testing.assert_allclose(nll, expected, **OFFICIAL)
    assert perplexity(nll) == pytest.approx(perplexity(expected), rel=1e-4)


def test_official_numbers_chunk_1(embedded, oracle):
    # The first 200 tokens: 70 of them come after the first eviction.
    ids, expected = oracle(4, 124)
    nll = read(embedded, ids[:201], Streaming(4, 124), 1)[0]
    np.testing.assert_allclose(nll, expected[:200], **OFFICIAL)
    assert perplexity(nll) == pytest.approx(perplexity(expected[:200]), rel=1e-4)


def test_embedded_window_longer_than_text_equals_dense(embedded, oracle):
    ids, _ = oracle(4, 124)
    dense, window = (read(embedded, ids[:300], policy, 128)[0] for policy in (Dense(), Window(300)))
    np.testing.assert_allclose(window, dense, atol=1e-4)
    # Eager attention, in one pass, by a model that has nothing of ours in it.
    plain = AutoModelForCausalLM.from_config(embedded.network.config, attn_implementation="eager").eval()
    plain.load_state_dict(embedded.network.state_dict())
    with torch.no_grad():
        out = plain(torch.as_tensor(ids[:299].astype(np.int64))[None], output_attentions=True)
    expected = -torch.log_softmax(out.logits[0], -1)[torch.arange(299), torch.as_tensor(ids[1:300].astype(np.int64))]
    np.testing.assert_allclose(dense, expected.numpy(), **OFFICIAL)
    mass = read(embedded, ids[:300], Dense(), 128)[1]
    np.testing.assert_allclose(mass, torch.stack([a[0, :, :, :4].sum(-1) for a in out.attentions]).numpy(), atol=1e-4)


def test_bfloat16_is_off_by_chance_and_by_no_more_than_the_models_own_pass(embedded, oracle):
    ids, expected = oracle(4, 124)
    half = AutoModelForCausalLM.from_config(embedded.network.config, dtype=torch.bfloat16).eval().requires_grad_(False)
    half.load_state_dict(embedded.network.state_dict())
    # Which way a token is rounded depends on the processor: only a mean beyond its chance tells of a fault.
    apart = read(half, ids, Streaming(4, 124))[0] - expected
    assert abs(apart.mean()) <= 3 * apart.std() / len(apart) ** 0.5
    own = own_nll(half, ids) - own_nll(embedded.network, ids)
    assert apart.std() <= 1.5 * own.std()
