"""The model families that can be read, and the adapters of those whose attention is their own.

Everything else goes through one mechanism (rotary.py), so a family that is not listed may well work: whatever a model
is, it is read only if a short text gets the numbers that its own forward pass gives.
"""

from typing import NamedTuple

from transformers import AutoModelForCausalLM, PreTrainedConfig

from . import bloom, falcon, mpt, rotary

ADAPTERS: dict[str, rotary.Adapter] = {"falcon": falcon.adapt, "bloom": bloom.adapt, "mpt": mpt.adapt}


class Family(NamedTuple):
    """What is particular about a family."""

    positions: str
    note: str = ""


FAMILIES: dict[str, Family] = {
    "llama": Family("rotary", "llama3 scaling"),
    "mistral": Family("rotary", "sliding window"),
    "ministral": Family("rotary", "sliding window in some layers"),
    "qwen2": Family("rotary"),
    "qwen3": Family("rotary", "normalised queries and keys"),
    "gemma": Family("rotary"),
    "gemma2": Family("rotary", "sliding window in some layers, soft cap"),
    "gemma3_text": Family("rotary", "two rotaries, sliding window in some layers"),
    "phi": Family("rotary", "part of each head"),
    "phi3": Family("rotary"),
    "gpt_neox": Family("rotary", "part of each head"),
    "stablelm": Family("rotary", "part of each head"),
    "persimmon": Family("rotary", "part of each head"),
    "nemotron": Family("rotary", "part of each head"),
    "olmo": Family("rotary"),
    "olmo2": Family("rotary"),
    "olmo3": Family("rotary", "sliding window in some layers"),
    "smollm3": Family("rotary", "some layers without"),
    "gpt_oss": Family("rotary", "YaRN, learned sinks, sliding window in some layers, experts"),
    "cohere": Family("rotary", "interleaved"),
    "cohere2": Family("rotary", "interleaved, some layers without"),
    "granite": Family("rotary"),
    "glm": Family("rotary", "part of each head"),
    "glm4": Family("rotary", "part of each head"),
    "starcoder2": Family("rotary"),
    "mixtral": Family("rotary", "experts"),
    "qwen2_moe": Family("rotary", "experts"),
    "qwen3_moe": Family("rotary", "experts"),
    "exaone4": Family("rotary", "sliding window, some layers without"),
    "ernie4_5": Family("rotary"),
    "helium": Family("rotary"),
    "seed_oss": Family("rotary"),
    "apertus": Family("rotary"),
    "bitnet": Family("rotary"),
    "arcee": Family("rotary"),
    "ministral3": Family("rotary", "queries grow with the position in the text"),
    "hunyuan_v1_dense": Family("rotary, not movable", "norms behind the rotation; dense and recompute only"),
    "falcon": Family("rotary", "or ALiBi; attention adapted"),
    "bloom": Family("ALiBi", "attention adapted"),
    "mpt": Family("ALiBi", "attention adapted"),
    "gpt2": Family("learned", "dense and recompute only"),
    "opt": Family("learned", "dense and recompute only"),
}


SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size")


def unreadable(config: PreTrainedConfig) -> str:
    """A sentence where a configuration says by itself that its family cannot be read; empty where it does not."""
    family = config.model_type
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return f"the family {family!r} is not a causal language model: choose one that predicts the next token"
    try:
        missing = [size for size in SIZES if not hasattr(config, size)]
    except Exception:
        # Sizes that differ from layer to layer are no plain attributes.
        return f"the family {family!r} is not supported yet: its layers differ in their heads or in the sizes of these"
    if not missing and not config.is_encoder_decoder:
        return ""
    if not missing:
        return f"the family {family!r} is not supported yet: it predicts the next token from what an encoder has read"
    if config.sub_configs:
        return f"the family {family!r} is not supported yet: choose a model that reads text only"
    return f"the family {family!r} is not supported yet: it has no {missing[0]}, so no cache of keys and values"
