"""Every family says through the engine what it says itself, and streams by the book."""

import copy

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from analysis.engine.attention.banded import BandedPass
from analysis.engine.check import adapt
from analysis.engine.stream import open_lanes
from analysis.families import ADAPTERS, FAMILIES, rotary
from analysis.families.positions import BOUND, Rotary
from analysis.maps.recent import head_map
from analysis.models.language_model import LanguageModel
from analysis.policies import Dense, Recompute, Streaming, Window, parse

from . import causal
from .families import MODELS, Book, few_layers, our_nll, own_nll, shared, table, tiny, words
from .reading import read

pytestmark = pytest.mark.whole

MOVABLE = [name for name, family in FAMILIES.items() if family.positions in ("rotary", "ALiBi")]
LEARNED = [name for name, family in FAMILIES.items() if family.positions == "learned"]
FIXED = [name for name in FAMILIES if name not in MOVABLE]
FEW = 40
"""Tokens of a text that is longer than every window here, and no longer."""
VARIANTS = {
    "llama, YaRN": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "llama, dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}),
    "llama, llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "rope_theta": 5e5,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "llama, one KV head": ("llama", {"num_key_value_heads": 1}),
    "llama, all KV heads": ("llama", {"num_key_value_heads": 4}),
    "falcon, one KV head": ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    "falcon, all KV heads": ("falcon", {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 4}),
    "falcon, ALiBi": (
        "falcon",
        {
            "new_decoder_architecture": False,
            "multi_query": False,
            "num_kv_heads": 4,
            "alibi": True,
            "implementation": "sdpa",
        },
    ),
}


def small(asked: str):
    """A family's name, and its model."""
    name, more = VARIANTS.get(asked, (asked, {}))
    return name, few_layers(name, **more)


@pytest.fixture(params=[*FAMILIES, *VARIANTS])
def family(request):
    return small(request.param)


@pytest.fixture(params=[*MOVABLE, *VARIANTS])
def movable(request):
    """All whose cached keys can be moved; the others say that theirs cannot."""
    return small(request.param)[1]


@pytest.fixture(params=[name for name in (*FAMILIES, *VARIANTS) if name != "falcon, ALiBi"])
def eager(request):
    """All that can say its own attention; Falcon's eager attention counts ALiBi twice (transformers 5.23)."""
    return small(request.param)[1]


def test_dense_equals_the_familys_own_numbers(family):
    _, model = family
    tokens = words(FEW)
    own = own_nll(model, tokens)
    for chunk in (1, 16):
        np.testing.assert_allclose(our_nll(model, tokens, chunk), own, atol=1e-5)


def test_streaming_equals_the_rule_as_it_is_written(movable):
    tokens = words(FEW)
    adapted, ids = open_lanes(movable, tokens, [Dense()])[0].context.model, torch.as_tensor(tokens)[None]
    for policy in (Streaming(4, 12), Window(12)):
        logits = adapted.forward(ids[:, :-1], Book(adapted, policy.sinks, policy.window, len(tokens) - 1))[0]
        expected = -torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0]
        np.testing.assert_allclose(our_nll(movable, tokens, 16, policy), expected, atol=1e-4)


def test_decoding_equals_reading(family):
    name, model = family
    tokens = words(FEW)
    policy = Dense() if name in FIXED else Streaming(4, 12)
    expected = our_nll(model, tokens, 16, policy)
    lane = open_lanes(model, tokens[:20], [policy])[0]
    lane.context.trace()
    while not lane.done:
        lane.read(16)
    got = [lane.next(lambda logits, token=token: int(token)).nll[0] for token in tokens[20:]]
    np.testing.assert_allclose(got, expected[19:], atol=1e-4)


def test_sink_mass_is_the_sum_of_the_familys_own_columns(eager):
    tokens = words()
    own = eager(torch.as_tensor(tokens)[None], use_cache=False, output_attentions=True).attentions
    step = open_lanes(eager, tokens, [Dense()])[0].read(len(tokens))
    expected = np.stack([a[0, :, :-1, :4].sum(-1).numpy() for a in own])
    np.testing.assert_allclose(step.sink_mass, expected, atol=1e-5)


def test_live_maps_are_the_familys_own_attention(eager):
    compare_live_maps(eager)


def test_live_maps_cap_scores_as_the_family_does():
    # Scores of small random models are far below the cap of the real one.
    compare_live_maps(tiny("gemma2", attn_logit_softcapping=0.5))


def compare_live_maps(model):
    tokens = words(FEW)
    own = model(torch.as_tensor(tokens)[None], use_cache=False, output_attentions=True).attentions
    lane = open_lanes(model, tokens, [Dense()], history=FEW)[0]
    lane.read(FEW)
    for layer, weights in enumerate(own):
        for head in (0, weights.shape[1] - 1):
            drawn = np.nan_to_num(head_map(lane, layer, head).weights)
            np.testing.assert_allclose(drawn, weights[0, head, :-1, : len(tokens) - 1], atol=1e-5)


def test_a_learned_sink_has_its_own_column():
    model, tokens = shared("gpt_oss"), words()
    lane = open_lanes(model, tokens, [Dense()], history=64)[0]
    lane.read(64)
    for layer in range(4):
        drawn = head_map(lane, layer, 1)
        np.testing.assert_allclose(np.nansum(drawn.weights, -1) + drawn.learned, 1, atol=1e-5)
        assert drawn.learned.min() > 0
    assert head_map_of("llama").learned is None


def head_map_of(name):
    lane = open_lanes(shared(name), words(), [Dense()], history=64)[0]
    lane.read(64)
    return head_map(lane, 0, 0)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("policy", [Window(8), Streaming(4, 8)])
def test_keys_that_carry_their_position_are_not_moved_and_it_is_said_why(name, policy):
    why = "adds learned positions" if name in LEARNED else "does more to its keys"
    with pytest.raises(ValueError, match=f"{name} {why}.*choose dense or recompute"):
        open_lanes(shared(name), words(), [policy])
    lane = open_lanes(shared(name), words(), [Dense()])[0]
    lane.read(16)
    with pytest.raises(ValueError, match=why):
        lane.switch(policy)
    assert lane.policy == Dense() and len(lane.read(16).nll) == 16


@pytest.mark.parametrize("name", FIXED)
def test_recompute_works_where_keys_cannot_be_moved(name):
    model, tokens = shared(name), words()
    got = our_nll(model, tokens, 16, Recompute(10, 1))
    for i in (20, 40, 59):
        logits = model(torch.as_tensor(tokens[i - 10 : i])[None], use_cache=False).logits[0, -1]
        np.testing.assert_allclose(got[i - 1], -torch.log_softmax(logits, -1)[tokens[i]], atol=1e-5)


@pytest.mark.parametrize("name", ["granite_swa", "moshi"])
def test_keys_that_several_modules_rotate_stay_where_they_were_read(name):
    model, tokens = causal.build(causal.config_of(name)), words()
    for chunk in (1, 16):
        np.testing.assert_allclose(our_nll(model, tokens, chunk), own_nll(model, tokens), atol=1e-5)
    with pytest.raises(ValueError, match=f"{name} rotates by several modules.*choose dense or recompute"):
        open_lanes(model, tokens, [Window(8)])


def test_several_modules_of_which_one_has_a_rule_that_is_not_known_are_refused(monkeypatch):
    model = causal.build(causal.config_of("granite_swa"))
    kind = type(model.model.rotary_emb)

    def growing(self, x, position_ids):
        cos, sin = right(self, x, position_ids)
        return cos * position_ids.max(), sin

    right = kind.forward
    monkeypatch.setattr(kind, "forward", growing)
    with pytest.raises(ValueError, match=r"'granite_swa' is not supported yet.*by a rule that is not known"):
        adapt(model)


@pytest.mark.parametrize("name", ["llama", "mpt", "gpt2"])
def test_the_length_that_a_model_was_trained_on_is_known_by_whatever_name_it_has(name):
    assert LanguageModel("tiny", shared(name), None, []).trained_length == 512


@pytest.mark.parametrize("name", LEARNED)
def test_learned_positions_end_where_they_end(name):
    tokens = np.resize(words(), 600)
    with pytest.raises(ValueError, match="has learned 512 positions"):
        open_lanes(shared(name), tokens, [Dense()])
    with pytest.raises(ValueError, match="has learned 512 positions"):
        open_lanes(shared(name), tokens, [Recompute(500, 14)])
    assert open_lanes(shared(name), tokens, [Recompute(500, 13)])[0].policy.capacity == 512
    assert np.isfinite(our_nll(shared(name), tokens[:513], 256)).all()


@pytest.mark.parametrize("name", ["gptj", "mamba", "recurrent_gemma", "codegen"])
def test_a_family_that_cannot_be_read_is_named(name):
    sizes = {
        "gptj": {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4},
        "codegen": {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4},
    }
    config = CONFIG_MAPPING[name](
        **sizes.get(
            name,
            {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "intermediate_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            },
        ),
        vocab_size=97,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match=f"the family '{name}' is not supported yet"):
        adapt(model)


def test_slopes_that_transformers_reads_otherwise_are_refused_in_a_sentence():
    usual, steeper = tiny("mpt"), tiny("mpt", attn_config={"alibi_bias_max": 16})
    # Where this no longer holds, there is nothing to refuse.
    np.testing.assert_array_equal(own_nll(steeper, words()), own_nll(usual, words()))
    with pytest.raises(ValueError, match=r"^this MPT model .* alibi_bias_max 16, and transformers .* choose another"):
        adapt(steeper)


@pytest.mark.parametrize("policy", ["dense", "late:budget=64", "late:budget=64,positions=cache", "adakv:budget=64"])
def test_layers_with_frequencies_of_their_own_are_not_mixed(policy):
    network = shared("gemma3_text", num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    tokens = words()[:50]
    expected = own_nll(network, tokens)
    np.testing.assert_allclose(our_nll(network, tokens, 13, parse(policy)), expected, atol=1e-4)
    lane = open_lanes(network, tokens[:20], [parse(policy)])[0]
    lane.read(19)
    got = [lane.next(lambda logits, token=token: int(token)).nll[0] for token in tokens[20:]]
    np.testing.assert_allclose(got, expected[19:], atol=1e-4)


def test_a_wrong_position_is_noticed(tiny_llama, monkeypatch):
    right = Rotary.angles
    monkeypatch.setattr(Rotary, "angles", lambda self, a, positions, dtype: right(self, a, positions // 2, dtype))
    # Copies, since a network that has passed is not tried again.
    assert adapt(copy.deepcopy(tiny_llama)).positions is BOUND

    wrong = BandedPass.attend
    monkeypatch.setattr(BandedPass, "attend", lambda self, *a, **settings: 1.1 * wrong(self, *a, **settings))
    with pytest.raises(ValueError, match="gives other numbers"):
        adapt(copy.deepcopy(tiny_llama))


@pytest.mark.parametrize("name", ["bloom", "llama"])
@pytest.mark.parametrize("policy", ["streaming:sinks=2,window=6", "h2o:budget=8,recent=4", "duo:sinks=2,window=6"])
def test_bytes_are_those_of_the_models_own_dimensions(name, policy):
    network = tiny(name)
    lane, model = read(network, words()[:8], policy).lane, LanguageModel("tiny", network, None, [])
    assert lane.cache_bytes == 7 * model.bytes_per_token
    assert model.bytes_per_token == 2 * model.layers * model.kv_heads * 8 * 4


@pytest.mark.parametrize("name", ["bloom", "mpt", "falcon, ALiBi"])
def test_alibi_counts_positions_that_half_precision_cannot(name):
    """A position of a thousand has more digits than bfloat16; its weights say what the same ones say in float32."""
    family, more = VARIANTS.get(name, (name, {}))
    more = more | {"n_layers" if name == "mpt" else "num_hidden_layers": 2}
    half, tokens = tiny(family, **more).bfloat16(), np.resize(words(), 1200)
    whole = copy.deepcopy(half).float()
    for policy in (Dense(), Streaming(4, 900)):
        expected = our_nll(whole, tokens, 256, policy)[-400:]
        for got in (our_nll(half, tokens, 256, policy)[-400:], decoded(half, tokens, policy, 100)):
            same = expected[-len(got) :]
            assert np.abs(got - same).mean() < 0.01 * same.std()


def decoded(model, tokens, policy, count):
    lane = open_lanes(model, tokens[:-count], [policy])[0]
    while not lane.done:
        lane.read(256)
    return [lane.next(lambda _, token=token: int(token)).nll[0] for token in tokens[-count:]]


def test_a_family_that_bends_its_queries_by_their_position_in_the_text_is_read_far_into_it():
    scaled = {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 2.0}
    model = tiny("ministral3", rope_parameters=scaled | {"original_max_position_embeddings": 16})
    tokens = words()
    own = own_nll(model, tokens)
    for chunk in (1, 16):
        np.testing.assert_allclose(our_nll(model, tokens, chunk), own, atol=1e-5)
    np.testing.assert_allclose(decoded(model, tokens, Dense(), 20), own[-20:], atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text", "falcon", "mpt", "gpt2"])
def test_layers_may_lie_on_several_devices(name):
    """The later half of a network on a second device: meta takes tensors and gives none back, so whatever is left on
    the wrong one of the two fails."""
    model, tokens = shared(name), words()
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    spread = copy.deepcopy(model)
    moved = next(m for m in spread.modules() if isinstance(m, torch.nn.ModuleList))[len(layers) // 2 :]
    norms = [m for n, m in spread.named_modules() if n.endswith(("model.norm", "norm_f", "ln_f", "lm_head"))]
    for module in (*moved, *norms):
        if module is spread.get_output_embeddings():
            module.weight = torch.nn.Parameter(module.weight.clone(), requires_grad=False)
        add_hook_to_module(module.to("meta"), AlignDevicesHook("meta", io_same_device=False), append=True)
    policies = [Dense()] if name == "gpt2" else [Dense(), Streaming(4, 12)]
    adapted = rotary.adapt(spread, ADAPTERS)
    assert {d.type for d in adapted.homes.values()} == {"cpu", "meta"}
    for lane in open_lanes(adapted, tokens, policies, history=32):
        for _ in range(3):
            logits, mass, *_ = lane.store.forward(lane.position - 1, lane.position + 15, 1)
            lane.position += 16
            assert logits.is_meta and mass.shape == (4, 4, 16)
            assert [c.keys.view().device for c in lane.store.layers] == list(adapted.homes.values())
        lane.context.truncate(lane.position)
        logits, mass, *_ = lane.store.decode(lane.position, None)
        assert logits.is_meta and mass.shape == (4, 4, 1)


def test_readme_lists_the_families():
    assert table() in MODELS.read_text(encoding="utf-8"), "make families writes it"
