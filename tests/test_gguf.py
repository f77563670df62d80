"""Laws of GGUF files: the numbers of the model that was written into one, or a refusal that names the key."""

import math

import numpy as np
import pytest
import torch

from analysis.engine.stream import open_lanes
from analysis.models.loading import load
from analysis.policies import Dense

from .gguf_files import tiny, write

pytestmark = pytest.mark.whole

IDS = np.random.default_rng(0).integers(3, 90, 120)
PHI = {"long_factor": [1.5, 2.0, 3.0, 4.0], "short_factor": [1.0, 1.1, 1.3, 1.6]}
NESTED = {"rope_type": "default", "rope_theta": 1e4}
WINDOW = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 20}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def nll(network) -> np.ndarray:
    """NLL of every token but the first, by the network's own forward pass."""
    ids = torch.as_tensor(IDS)[None]
    with torch.inference_mode():
        logs = torch.log_softmax(network(ids, use_cache=False).logits[0, :-1].float(), -1)
    return -logs.gather(-1, ids[0, 1:, None])[:, 0].numpy()


def apart(network, path) -> float:
    """Largest difference of any token's NLL between a model and the file that it was written into."""
    return float(np.abs(nll(network) - nll(load(str(path)).network)).max())


def refusal(path) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        load(str(path))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 400
    return sentence


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "tie_word_embeddings": True}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
        ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 40}),
        ("qwen3_moe", EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
        ("phi3", {"sliding_window": 20}),
        ("phi3", {"rope_parameters": NESTED | {"partial_rotary_factor": 0.5}}),
        ("gemma2", WINDOW | {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0, "rms_norm_eps": 1e-3}),
        ("gemma3_text", WINDOW | {"num_hidden_layers": 7}),
        ("starcoder2", {"sliding_window": 20, "rope_parameters": NESTED | {"rope_theta": 5e5}}),
        ("nemotron", {"head_dim": 8, "norm_eps": 1e-3}),
        ("stablelm", {"use_qkv_bias": True, "rope_parameters": NESTED | {"partial_rotary_factor": 0.5}}),
        ("falcon", {"layer_norm_epsilon": 1e-3}),
        ("bloom", {}),
        ("gpt2", {}),
    ],
)
def test_a_file_gives_the_numbers_of_its_model(family, settings, tmp_path):
    network = tiny(family, **settings)
    assert apart(network, write(network, tmp_path / "tiny.gguf")) < 1e-4


def llama3(dims: int) -> list[float]:
    """Llama 3's rule: factor 8, low 1, high 4, 64 tokens before; what each frequency of base 10,000 is divided by."""
    factors = []
    for i in range(0, dims, 2):
        length = 2 * math.pi * 1e4 ** (i / dims)
        smooth = min(max((64 / length - 1) / (4 - 1), 0), 1)
        factors.append(1 / ((1 - smooth) / 8 + smooth))
    return factors


SCALED = {
    "llama 3": (
        "llama",
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {},
        {"rope_freqs.weight": llama3(8)},
    ),
    "linear": ("llama", {"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}, {}),
    "linear without a type": ("qwen2", {"rope_type": "linear", "factor": 4.0}, {"factor": 4.0}, {}),
    "yarn": (
        "llama",
        {"rope_type": "yarn", "factor": 4.0},
        {"type": "yarn", "factor": 4.0, "original_context_length": 64, "finetuned": True},
        {},
    ),
    "yarn with all its keys": (
        "qwen2",
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0}
        | {"attention_factor": 1.3 * (0.1 * math.log(4) + 1)},
        {"type": "yarn", "factor": 4.0, "original_context_length": 64, "attn_factor": 1.3}
        | {"yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0, "yarn_ext_factor": 1.0},
        {},
    ),
    "yarn with mscale_all_dim": (
        "llama",
        {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5},
        {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_log_multiplier": 0.5},
        {},
    ),
    "longrope past its original length": (
        "phi3",
        {"rope_type": "longrope"} | PHI,
        {"original_context_length": 64, "attn_factor": math.sqrt(1 + math.log(512 / 64) / math.log(64))},
        {f"rope_factors_{name.partition('_')[0]}.weight": factors for name, factors in PHI.items()},
    ),
}


@pytest.mark.parametrize("scaling", SCALED)
def test_rotary_scalings_are_applied(scaling, tmp_path):
    family, rope, keys, tensors = SCALED[scaling]
    more = {"original_max_position_embeddings": 64}
    beside = more if family == "phi3" else {}
    inside = {} if rope["rope_type"] == "linear" else more
    network = tiny(family, rope_parameters=rope | inside | {"rope_theta": 1e4}, **beside)
    keys = {f"rope.scaling.{name}": value for name, value in keys.items()}
    assert apart(network, write(network, tmp_path / "scaled.gguf", keys, tensors=tensors)) < 1e-4
    # Without it, it is another model.
    assert np.abs(nll(network) - nll(tiny(family))).max() > 1e-2


def test_a_scaled_file_is_read_as_its_model_is(tmp_path):
    family, rope, _, tensors = SCALED["llama 3"]
    network = tiny(family, rope_parameters=rope | {"rope_theta": 1e4, "original_max_position_embeddings": 64})
    model = load(str(write(network, tmp_path / "scaled.gguf", tensors=tensors)))
    lane, read = open_lanes(model, IDS, [Dense()])[0], []
    while not lane.done:
        read.append(lane.read(50).nll)
    assert np.abs(np.concatenate(read) - nll(network)).max() < 1e-4


def test_scaling_of_gemma3_is_of_its_layers_without_a_window(tmp_path):
    rope = {"sliding_attention": NESTED | {"rope_theta": 5e4}}
    rope["full_attention"] = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    network = tiny("gemma3_text", **WINDOW, num_hidden_layers=7, rope_parameters=rope)
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base_swa": 5e4}
    assert apart(network, write(network, tmp_path / "scaled.gguf", keys)) < 1e-4


def test_windows_are_of_the_layers_that_the_file_names(tmp_path):
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    network = tiny("qwen3", use_sliding_window=True, sliding_window=20, layer_types=types)
    said = {"attention.sliding_window_pattern": [False, True, True]}
    assert apart(network, write(network, tmp_path / "named.gguf", said)) < 1e-4
    assert "qwen3.attention.sliding_window = 20, but not in which layers" in refusal(
        write(network, tmp_path / "unnamed.gguf")
    )

    network = tiny("gemma3_text", **WINDOW, layer_types=["full_attention"] * 3)
    assert apart(network, write(network, tmp_path / "none.gguf", {"attention.sliding_window": None})) < 1e-4


def test_what_scores_are_scaled_by_is_the_files(tmp_path):
    network = tiny("gemma2", **WINDOW | {"query_pre_attn_scalar": 64})
    assert apart(network, write(network, tmp_path / "said.gguf", {"attention.scale": 64**-0.5})) < 1e-4


def test_a_llama_by_the_name_of_mistral_has_no_window(tmp_path):
    network = tiny("llama")
    assert apart(network, write(network, tmp_path / "named.gguf", general={"general.name": "mistral"})) < 1e-4


def test_the_head_of_a_file_is_tied_where_it_has_none(tmp_path):
    network = tiny("qwen2", tie_word_embeddings=True)
    path = write(network, tmp_path / "tied.gguf")
    assert apart(network, path) < 1e-4
    read = load(str(path)).network
    assert read.lm_head.weight is read.model.embed_tokens.weight


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.scale", 0.2),
        ("attention.sliding_window", 16),
        ("attention.key_length", 16),
        ("attention.value_length", 4),
        ("attention.causal", False),
        ("attention.clamp_kqv", 8.0),
        ("attention.temperature_scale", 0.1),
        ("attn_logit_softcapping", 30.0),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.5),
        ("residual_scale", 0.5),
        ("embedding_scale", 12.0),
        ("expert_count", 8),
        ("rope.freq_base_swa", 5e4),
        ("rope.dimension_sections", [2, 1, 1, 0]),
        ("rope.scaling.type", "llama3"),
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.attn_factor", 1.2),
        ("something.new", 3),
    ],
)
def test_keys_without_a_place_are_refused_by_name(llama, key, value, tmp_path):
    sentence = refusal(write(llama, tmp_path / "said.gguf", {key: value}))
    assert f"llama.{key}" in sentence or (key == "attention.key_length" and "llama.rope.dimension_count" in sentence)


@pytest.mark.parametrize("key", ["yarn_ext_factor", "yarn_attn_factor"])
def test_keys_of_yarn_that_mean_two_things_are_refused(llama, key, tmp_path):
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, f"rope.scaling.{key}": 0.5}
    assert f"llama.rope.scaling.{key}" in refusal(write(llama, tmp_path / "said.gguf", keys))


def test_keys_at_the_value_that_means_as_usual_are_read(llama, tmp_path):
    keys = {
        "attention.scale": 8**-0.5,
        "attention.sliding_window": 0,
        "attention.causal": True,
        "attn_logit_softcapping": 0.0,
        "logit_scale": 1.0,
        "expert_count": 0,
        "rope.scaling.type": "none",
        "rope.scaling.attn_factor": 1.0,
        "rope.scaling.original_context_length": 64,
        "tensor_data_layout": "Meta AI original pth",
    }
    notes = {"general.file_type": 0, "quantize.imatrix.file": "x", "someone.quantized_by": "y", "split.count": 1}
    assert apart(llama, write(llama, tmp_path / "said.gguf", keys, general=notes)) < 1e-4


@pytest.mark.parametrize(("family", "layers"), [("gemma2", 46), ("gemma3_text", 62)])
def test_the_widest_gemmas_scale_scores_by_their_width_over_their_heads(family, layers, tmp_path):
    more = {"hidden_size": 24, "num_hidden_layers": layers}
    wide = tiny(family, **WINDOW | more | {"query_pre_attn_scalar": 6})
    assert load(str(write(wide, tmp_path / "wide.gguf"))).network.config.query_pre_attn_scalar == 6


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_how_many_experts_are_used_is_never_made_up(family, tmp_path):
    network = tiny(family, **EXPERTS)
    sentence = refusal(write(network, tmp_path / "silent.gguf", {"expert_used_count": None}))
    assert f"{family.replace('_', '')}.expert_used_count" in sentence


@pytest.mark.parametrize("key", ["block_count", "attention.head_count", "attention.layer_norm_rms_epsilon"])
def test_keys_that_are_not_there_are_never_made_up(llama, key, tmp_path):
    assert f"llama.{key}" in refusal(write(llama, tmp_path / "silent.gguf", {key: None}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.factor", "four"),
        ("rope.freq_base", "high"),
        ("attention.scale", "wide"),
        ("attention.key_length", [8, 8]),
        ("attention.head_count_kv", [2, 2, 1]),
        ("context_length", "long"),
        ("x", "a\nb"),
    ],
)
def test_values_of_another_kind_are_refused_in_a_sentence(llama, key, value, tmp_path):
    refusal(write(llama, tmp_path / "odd.gguf", {key: value}))


@pytest.mark.parametrize(
    ("general", "words"),
    [
        ({"general.type": "adapter"}, "general.type = adapter"),
        ({"split.count": 2}, "--merge"),
        ({"split.count": "two\nparts"}, "one of two parts parts"),
        ({"split.count": [1, 2]}, "one of [1, 2] parts"),
        ({"clip.has_vision_encoder": True}, "clip.has_vision_encoder"),
    ],
)
def test_files_that_are_no_whole_model_are_told_as_such(llama, general, words, tmp_path):
    assert words in refusal(write(llama, tmp_path / "part.gguf", general=general))


def test_a_file_that_was_not_fetched_whole_is_to_be_fetched_again(llama, tmp_path):
    whole = write(llama, tmp_path / "whole.gguf").read_bytes()
    for size in (12, 100, len(whole) // 2, len(whole) - 4):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        assert "fetch or convert it again" in refusal(tmp_path / "cut.gguf")


def test_architectures_that_are_not_read_are_named(tmp_path):
    network = tiny("olmo2")
    assert "'olmo2'" in refusal(write(network, tmp_path / "olmo.gguf"))


@pytest.mark.parametrize(
    ("tensors", "keys", "name"),
    [
        ({"blk.0.attn_q.bias": np.ones(32)}, {}, "blk.0.attn_q.bias"),
        ({"blk.1.attn_q_norm.weight": np.ones(8)}, {}, "blk.1.attn_q_norm.weight"),
        ({}, {"block_count": 2}, "blk.2."),
        ({"rope_freqs.weight": [1.0, 2.0, 3.0]}, {}, "rope_freqs.weight"),
        ({"rope_factors_long.weight": np.ones(4)}, {}, "rope_factors_long.weight"),
        ({"rope_freqs.weight": np.full(4, 2.0)}, {"rope.scaling.factor": 4.0}, "llama.rope.scaling.factor"),
    ],
)
def test_tensors_without_a_place_are_refused_by_name(llama, tensors, keys, name, tmp_path):
    assert name in refusal(write(llama, tmp_path / "more.gguf", keys, tensors=tensors))


def test_missing_and_misshapen_tensors_are_refused_by_name(llama, tmp_path):
    lacking = write(llama, tmp_path / "lacking.gguf", without=("blk.1.ffn_up.weight",))
    assert "model.layers.1.mlp.up_proj.weight" in refusal(lacking)
    assert "o_proj.weight is 32 × 32" in refusal(write(llama, tmp_path / "heads.gguf", {"attention.head_count": 8}))


def test_heads_of_falcon_that_transformers_reads_in_another_order_are_refused(tmp_path):
    network = tiny("falcon")
    sentence = refusal(write(network, tmp_path / "falcon.gguf", {"attention.head_count_kv": 2}))
    assert "falcon.attention.head_count_kv" in sentence
