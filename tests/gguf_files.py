"""GGUF files of tiny models, written as llama.cpp's converter would, for tests of what is read from them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NAMES = {"gemma3_text": "gemma3", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "mistral": "llama"}
"""Architectures that GGUF calls otherwise than transformers."""


def tiny(family: str, **settings) -> PreTrainedModel:
    """A random model whose attention is uneven enough that a wrong position, scale or window shows."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**SIZES | settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(4) if weight.ndim > 1 else weight.add_(0.3 * torch.randn_like(weight))
    return model


def keys_of(model: PreTrainedModel) -> dict[str, Any]:
    """What a file says of a model, by key without the architecture's name."""
    c = model.config
    heads = c.num_attention_heads
    kv = heads if c.model_type in ("bloom", "gpt2") else getattr(c, "num_key_value_heads", None)
    size = getattr(c, "head_dim", None) or c.hidden_size // heads
    keys = {
        "context_length": getattr(c, "max_position_embeddings", 512),
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": getattr(c, "intermediate_size", None) or 4 * c.hidden_size,
        "attention.head_count": heads,
        "attention.head_count_kv": 1 if c.model_type == "falcon" else kv or heads,
    }
    if rope := getattr(c, "rope_parameters", None):
        rope = rope.get("full_attention", rope)
        keys["rope.freq_base"] = float(rope["rope_theta"])
        keys["rope.dimension_count"] = int(size * rope.get("partial_rotary_factor", 1.0))
    if size != c.hidden_size // heads:
        keys |= {"attention.key_length": size, "attention.value_length": size}
    for name, value in c.to_dict().items():
        if name in ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
            keys["attention.layer_norm_" + ("rms_" if name == "rms_norm_eps" else "") + "epsilon"] = float(value)
        if name in ("attn_logit_softcapping", "final_logit_softcapping") and value:
            keys[name] = float(value)
    if getattr(c, "sliding_window", None):
        keys["attention.sliding_window"] = c.sliding_window
    if experts := getattr(c, "num_experts", None):
        keys |= {"expert_count": experts, "expert_used_count": c.num_experts_per_tok}
        keys["expert_feed_forward_length"] = c.moe_intermediate_size
        if shared := getattr(c, "shared_expert_intermediate_size", None):
            keys["expert_shared_feed_forward_length"] = shared
    return keys


def write(
    model: PreTrainedModel,
    path: Path,
    keys: dict[str, Any] | None = None,
    *,
    general: dict[str, Any] | None = None,
    words: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """Write a model as a GGUF file.

    `keys`: said of the architecture besides, None takes one away; `general`: keys without its name; `words`: what it
    says of its tokenizer; `tensors`: more of them; `without`: those that are left out.
    """
    config = model.config
    arch = NAMES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(str(path), arch)
    said = {f"{arch}.{k}": v for k, v in (keys_of(model) | (keys or {})).items() if v is not None}
    words = {"model": "gpt2", "tokens": [f"t{i}" for i in range(config.vocab_size)]} | (words or {})
    said |= {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    for key, value in (said | {"general.name": "tiny"} | (general or {})).items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name, weight in model.state_dict().items():
        if name in tied:
            continue
        for called, numbers in _stored(arch, config, name, weight.float().numpy(), names):
            if called not in without:
                writer.add_tensor(called, np.ascontiguousarray(numbers, np.float32))
    for name, numbers in (tensors or {}).items():
        writer.add_tensor(name, np.asarray(numbers, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _stored(arch, config, name, w, names):
    """The tensors that a weight becomes in a file."""
    base, _, ending = name.rpartition(".")
    if ".experts." in name:
        block = f"blk.{name.split('.')[2]}"
        if name.endswith("down_proj"):
            return [(f"{block}.ffn_down_exps.weight", w)]
        gate, up = np.split(w, 2, axis=1)
        return [(f"{block}.ffn_gate_exps.weight", gate), (f"{block}.ffn_up_exps.weight", up)]
    called = f"{names.get_name(base) or names.get_name(base.removeprefix('transformer.'))}.{ending}"
    if called.endswith("ffn_gate_inp_shexp.weight"):
        w = w[0]
    if arch == "llama" and ".attn_q." in called:
        w = _permuted(w, config.num_attention_heads)
    if arch == "llama" and ".attn_k." in called:
        w = _permuted(w, config.num_key_value_heads)
    if arch in ("gemma2", "gemma3", "nemotron") and called.endswith("norm.weight"):
        w = w + 1
    if arch == "gpt2" and w.ndim == 2 and called.startswith("blk."):
        w = w.T
    if arch == "bloom" and ".attn_qkv." in called:
        # Each head's q, k and v lie together in transformers, and one behind the other in a file.
        parts = w.reshape(config.num_attention_heads, 3, -1, *w.shape[1:])
        w = parts.swapaxes(0, 1).reshape(w.shape)
    return [(called, w)]


def _permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order in which llama.cpp rotates pairs that lie side by side."""
    return w.reshape(heads, 2, len(w) // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
