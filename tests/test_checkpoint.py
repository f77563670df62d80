"""Laws of a checkpoint: what a folder holds is what is read, to the last tensor, or it is refused with a name."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from analysis.models import fetch
from analysis.models.loading import load

from .test_models import refusal
from .test_models import saved as saved

pytestmark = pytest.mark.whole

FIRST = "model.layers.0.self_attn.q_proj.weight"


def change(folder, *, weights=None, **config):
    """Change a saved model: its tensors by a function, its configuration by name."""
    if weights is not None:
        tensors = load_file(folder / "model.safetensors")
        weights(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if config:
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | config))
    return folder


def add(name, *shape):
    return lambda tensors: tensors.update({name: torch.ones(shape)})


def scaled(dtype, ending, largest):
    """Linear layers divided by a scale that stands beside them."""

    def pack(tensors):
        for name in [n for n in tensors if n.endswith("_proj.weight")]:
            scale = tensors[name].abs().max() / largest
            whole = tensors[name] / scale
            tensors[name] = (whole if dtype.is_floating_point else whole.round()).to(dtype)
            tensors[name.removesuffix("weight") + ending] = scale.reshape(1)

    return pack


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.bias", (32,)),
        ("model.layers.1.self_attn.q_norm.weight", (8,)),
        ("model.layers.3.input_layernorm.weight", (32,)),
        ("vision_tower.patch_embedding.weight", (4, 4)),
        ("lm_head.bias", (97,)),
    ],
)
def test_tensors_without_a_place_are_refused_by_name(saved, name, shape):
    assert name in refusal(change(saved, weights=add(name, *shape)))


def test_fewer_layers_than_the_weights_have_are_refused(saved):
    assert "model.layers.2." in refusal(change(saved, num_hidden_layers=2))


def test_a_tensor_in_a_shard_that_no_index_lists_is_refused(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[-1]
    save_file(load_file(shard) | {"stray": torch.ones(3)}, shard, metadata={"format": "pt"})
    assert "stray" in refusal(tmp_path / "shards")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"vocab_size": 60}, "97 × 32, not 60 × 32"),
        ({"num_attention_heads": 2}, "o_proj.weight is 32 × 32, not 32 × 16"),
        ({"num_key_value_heads": 1}, "k_proj.weight is 16 × 32, not 8 × 32"),
        ({"intermediate_size": 48}, "mlp.down_proj.weight is 32 × 64, not 32 × 48"),
    ],
)
def test_sizes_that_disagree_with_the_configuration_are_refused(saved, config, name):
    sentence = refusal(change(saved, **config))
    assert "of another size" in sentence
    assert name in sentence


def test_rotary_frequencies_of_another_head_size_are_refused(saved):
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert load(str(change(saved, weights=add(old, 4)))).heads == 4
    # The same shapes with half the heads: the frequencies of an old file alone know better.
    assert old in refusal(change(saved, num_attention_heads=2, num_key_value_heads=1, head_dim=16))


def test_adapter_tensors_among_the_weights_are_refused(saved):
    lora = FIRST.replace("weight", "lora_A.weight")
    assert "merge_and_unload" in refusal(change(saved, weights=add(lora, 4, 32)))
    change(saved, weights=lambda tensors: tensors.pop(lora))

    def wrap(tensors):
        tensors[FIRST.replace("weight", "base_layer.weight")] = tensors.pop(FIRST)

    assert "merge_and_unload" in refusal(change(saved, weights=wrap))


def test_folder_of_an_adapter_is_told_as_one(saved, tmp_path):
    alone = tmp_path / "adapter"
    alone.mkdir()
    for folder in (alone, saved):
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        save_file({"x.lora_A.weight": torch.ones(4, 32)}, folder / "adapter_model.safetensors")
    for folder, words in ((alone, "is an adapter (PEFT), not a model"), (saved, "beside a model")):
        sentence = refusal(folder)
        assert words in sentence
        assert "merge_and_unload()" in sentence


def test_adapter_of_the_hub_is_refused_before_it_is_downloaded(monkeypatch):
    class File:
        rfilename, size = "adapter_config.json", 1

    class Info:
        siblings = (File,)

    class Hub:
        def model_info(self, *_, **__):
            return Info

    monkeypatch.setattr(fetch.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "HfApi", Hub)
    assert "merge_and_unload" in refusal("nobody/nothing")


def test_adapter_in_the_cache_of_the_hub_is_told_as_one(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(fetch, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert "merge_and_unload" in refusal("nobody/nothing")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("ending", ["weight_scale", "scales", None])
def test_packed_weights_are_never_read_as_weights(saved, dtype, ending):
    def pack(tensors):
        scaled(dtype, ending or "weight_scale", 100)(tensors)
        if ending is None:
            for name in [n for n in tensors if n.endswith("_scale")]:
                del tensors[name]

    sentence = refusal(change(saved, weights=pack))
    assert (ending or "_proj.weight is one") in sentence
    assert "choose the weights that" in sentence


@pytest.mark.parametrize("method", ["modelopt", "nosuch", "gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_quantizations_that_cannot_be_undone_are_refused_by_name(saved, method):
    said = {"quant_method": method, "bits": 4, "load_in_4bit": method == "bitsandbytes"}
    assert f"{method!r}" in refusal(change(saved, quantization_config=said))


def test_a_quantization_without_a_method_is_refused(saved):
    assert "quant_method" in refusal(change(saved, quantization_config={"bits": 4}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the weights stay as they are")
def test_fp8_in_blocks_is_read_times_its_scales_or_not_at_all(saved):
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

    def pack(tensors):
        scaled(torch.float8_e4m3fn, "weight_scale_inv", 448)(tensors)
        for name in tensors:
            if name.endswith("_scale_inv"):
                tensors[name] = tensors[name].reshape(1, 1)

    change(saved, weights=pack, quantization_config=said)
    tensors = load_file(saved / "model.safetensors")
    network = load(str(saved)).network
    for name, weight in network.state_dict().items():
        stored, scale = tensors[name].float(), tensors.get(f"{name}_scale_inv", torch.ones(1, 1))
        assert torch.equal(weight, stored * scale.squeeze())

    change(saved, weights=lambda tensors: [tensors.pop(n) for n in list(tensors) if n.endswith("_scale_inv")])
    assert "scale" in refusal(saved)


def test_an_untied_head_is_read_whatever_the_configuration_says(tiny_llama, saved):
    network = load(str(change(saved, tie_word_embeddings=True))).network
    assert torch.equal(network.lm_head.weight, tiny_llama.lm_head.weight)
    assert torch.equal(network.model.embed_tokens.weight, tiny_llama.model.embed_tokens.weight)


def test_a_token_for_padding_that_the_model_has_not_is_left_out(tiny_llama, saved):
    model, ids = load(str(change(saved, pad_token_id=97))), torch.arange(9)[None]
    assert model.vocabulary == 97 and model.network.config.pad_token_id is None
    torch.testing.assert_close(model.network(ids).logits, tiny_llama(ids).logits)


def test_a_function_that_is_none_is_named(saved):
    said = refusal(change(saved, hidden_act="foo"))
    assert said.startswith("tiny says hidden_act 'foo', which transformers does not know: ")


def test_a_model_that_was_saved_for_callers_of_tuples_is_read(tiny_llama, saved):
    model = load(str(change(saved, return_dict=False)))
    assert model.layers == tiny_llama.config.num_hidden_layers


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(saved, value):
    def spoil(tensors):
        tensors[FIRST][3, 4] = value

    assert FIRST in refusal(change(saved, weights=spoil))


def test_weights_that_float16_cannot_hold_are_refused_by_name(saved):
    def stretch(tensors):
        tensors[FIRST][3, 4] = 1e5

    change(saved, weights=stretch)
    assert load(str(saved), dtype="bfloat16").dtype == "bfloat16"
    sentence = refusal(saved, dtype="float16")
    assert FIRST in sentence
    assert "use bfloat16 or float32" in sentence


def test_masks_that_old_files_hold_are_harmless(tmp_path):
    config = GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    mask = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    old = {"transformer.h.0.attn.bias": mask, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    assert load(str(change(tmp_path / "gpt2", weights=lambda t: t.update(old)))).layers == 1


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "banana", "factor": 2.0}, "'banana'"),
        ({"type": "su", "factor": 2.0}, "'su'"),
        ({"factor": 2.0}, "factor"),
        ({"rope_type": "linear", "factor": 2.0, "alpha": 1000.0}, "alpha"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "beta_fast": 16.0}
            | {"original_max_position_embeddings": 64},
            "beta_fast",
        ),
    ],
)
def test_rotary_scalings_that_would_be_left_out_are_refused(saved, scaling, words):
    sentence = refusal(change(saved, rope_parameters=None, rope_scaling=scaling, rope_theta=10000.0))
    assert words in sentence


@pytest.mark.parametrize(("key", "value"), [("rope_theta", -5.0), ("rope_theta", "x"), ("factor", -2)])
def test_a_rotary_base_that_is_none_is_named(saved, key, value):
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    assert f"{key} '{value}' and not a number above 0" in refusal(change(saved, rope_parameters=rope | {key: value}))


def test_rotary_scalings_with_harmless_notes_are_read(saved):
    scaling = {"type": "linear", "factor": 2.0, "finetuned": True, "original_max_position_embeddings": 2048}
    network = load(str(change(saved, rope_parameters=None, rope_scaling=scaling, rope_theta=10000.0))).network
    torch.testing.assert_close(network.model.rotary_emb.inv_freq[0], torch.tensor(0.5))


def test_weights_that_the_configuration_names_are_the_ones_that_count(saved):
    (saved / "model.safetensors").rename(saved / "other.safetensors")
    model = load(str(change(saved, transformers_weights="other.safetensors")))
    assert [path.name for path in model.weights] == ["other.safetensors"]


@pytest.mark.parametrize("kernel", ["flash_attention_2", "kernels-community/flash-attn", "sdpa", "eager"])
def test_kernels_that_a_configuration_asks_for_need_not_be_installed(tiny_llama, saved, kernel):
    network = load(str(change(saved, attn_implementation=kernel))).network
    ids = torch.arange(9)[None]
    torch.testing.assert_close(network(ids).logits, tiny_llama(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["decoder", "text_config"])
def test_a_part_for_text_that_is_no_configuration_is_named(saved, name):
    assert "mend its config.json" in refusal(change(saved, **{name: "eager"}))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_where_a_configuration_lies_is_not_said_of_what_is_wrong_with_it(saved, content):
    (saved / "config.json").write_text(content)
    sentence = refusal(saved)
    assert sentence.count(saved.name) == 2 and str(saved.parent) not in sentence


def test_an_honest_model_of_any_dtype_is_read(tmp_path):
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, head_dim=16
    )
    torch.manual_seed(0)
    network = LlamaForCausalLM(config).to(torch.bfloat16)
    network.save_pretrained(tmp_path / "honest")
    read = load(str(tmp_path / "honest")).network
    for name, weight in network.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight.float())


@pytest.mark.parametrize(
    "wrong", [{"head_dim": [8]}, {"head_dim": math.nan}, {"num_key_value_heads": "2"}, {"head_dim": -8}]
)
def test_a_size_that_is_none_is_refused_by_name_also_where_the_family_has_no_such_size(tmp_path, wrong):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "tiny")
    assert f"tiny says {next(iter(wrong))} " in refusal(change(tmp_path / "tiny", **wrong))
