"""What a GGUF file says of its model beside the weights, put into transformers' configuration or refused by name.

transformers maps some of the keys of each architecture and drops the rest, with them rotary scalings, windows and head
sizes.  Here a key is known to change no number, or has a place in the configuration, or stands at the value that means
"as usual"; anything else is an error with its name.  What a key means, and what holds where one is absent, is what
llama.cpp makes of it.
"""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

from transformers import LlamaConfig, PretrainedConfig, PreTrainedModel
from transformers.integrations.gguf import GgufHeader, load_gguf_state_dict, read_gguf_metadata
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from .fetch import first_line, in_line

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


class Architecture(NamedTuple):
    """What holds for an architecture and is said by no key."""

    window_every: int | None = None
    """Every so manieth layer has no window; 1: none has one; None: windows, where there is one, are of all layers."""
    free_heads: bool = True
    """Whether the size of a head may be another than the hidden size over the heads."""
    wide: int = 0
    """Layers of the one size whose queries are scaled by the hidden size over the heads (gemma's 27B)."""


ARCHITECTURES = {
    "llama": Architecture(),
    "qwen2": Architecture(),
    "qwen2moe": Architecture(),
    "qwen3": Architecture(),
    "qwen3moe": Architecture(),
    "phi3": Architecture(),
    "gemma2": Architecture(window_every=2, wide=46),
    "gemma3": Architecture(window_every=6, wide=62),
    "starcoder2": Architecture(),
    "nemotron": Architecture(),
    "stablelm": Architecture(free_heads=False),
    "falcon": Architecture(free_heads=False),
    "bloom": Architecture(free_heads=False),
    "gpt2": Architecture(free_heads=False),
}
"""Those whose files are read; each is tested against the model that was written into one."""

_EPSILONS = ("rms_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_eps", "layer_norm_epsilon")
_FIELDS = {
    "vocab_size": ("vocab_size",),
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_weights_norm": ("norm_topk_prob",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": _EPSILONS,
    "attention.layer_norm_epsilon": _EPSILONS,
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
}
"""Keys that are a field of the configuration, under the first of these names that it has."""
_BIASES = {
    "attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "mlp_bias": ("ffn_up", "ffn_down"),
    "use_qkv_bias": ("attn_q", "attn_k", "attn_v"),
}
"""Fields that no key tells, but tensors do."""
_SEEN_IN_SHAPES = {"context_length", "feed_forward_length"}
"""Of those, the ones that may have no field: where they mattered, a weight would have another size."""
_ROPE = {"rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.scale_linear"} | {
    f"rope.scaling.{name}"
    for name in "type factor attn_factor original_context_length yarn_log_multiplier yarn_ext_factor yarn_attn_factor "
    "yarn_beta_fast yarn_beta_slow".split()
}
_HEADS = {"attention.key_length", "attention.value_length", "attention.scale"}
_WINDOWS = {"attention.sliding_window", "attention.sliding_window_pattern"}
_NOTES = {"tensor_data_layout", "pooling_type", "rope.scaling.finetuned"}
"""Keys that change no number of a model that predicts the next token."""
_AS_USUAL: dict[str, tuple] = {"attention.causal": (True,), "attention.max_alibi_bias": (0, 8)} | dict.fromkeys(
    "attention.output_scale logit_scale residual_scale embedding_scale expert_weights_scale expert_gating_func "
    "expert_group_count expert_group_used_count moe_every_n_layers interleave_moe_layer_step "
    "full_attention_interval".split(),
    (0, 1),
)
"""The values at which a key changes nothing; of all others it is 0, false and nothing."""
_ELSEWHERE = ("clip.", "diffusion.", "xielu.", "adapter.")
"""Keys without the architecture's name that change numbers."""


class Header(NamedTuple):
    """What a GGUF file holds beside its numbers."""

    path: Path
    called: str
    architecture: str
    keys: dict[str, Any]
    """What it says of its architecture, by key without the architecture's name."""
    tensors: tuple[str, ...]

    def refuse(self, key: str, why: str = "") -> NoReturn:
        """Raises ValueError with what the file says under a key, and why the model cannot be read with it."""
        value = self.keys.get(key)
        said = f"{self.architecture}.{key}" + ("" if value is None else f" = {in_line(value)}")
        raise ValueError(
            f"{self.called} says {said}, {why or 'which transformers has no place for here'}: give the folder of the "
            "model that the file was made from"
        )

    def put(self, config: PretrainedConfig, field: str, key: str, value: Any) -> None:
        """Set a field of a configuration, which knows what kind of value it takes, from a key."""
        try:
            setattr(config, field, value)
        except Exception:
            self.refuse(key, f"which is no {field}")


def read(path: Path, called: str) -> Header:
    """The header of a GGUF file.  Raises ValueError where it is no whole model, or of an architecture not read here."""
    try:
        metadata, tensors = read_gguf_metadata(str(path))
    except Exception as e:
        raise ValueError(f"{called} is damaged, or too old: fetch or convert it again ({first_line(e)})") from e
    if (kind := in_line(metadata.get("general.type", "model"))) != "model":
        raise ValueError(
            f"{called} is no whole model (general.type = {kind}): give a GGUF file into which everything is merged"
        )
    if (parts := in_line(metadata.get("split.count", 1))) not in ("0", "1"):
        raise ValueError(f"{called} is one of {parts} parts (split.count): join them with llama-gguf-split --merge")
    architecture = in_line(metadata.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"GGUF files of the architecture {architecture!r} are not read: give the folder of the model, or a file of "
            f"{', '.join(ARCHITECTURES)}"
        )
    keys = {}
    for key, value in metadata.items():
        if key.startswith(f"{architecture}."):
            keys[key.removeprefix(f"{architecture}.")] = value
        elif key.startswith(_ELSEWHERE):
            raise ValueError(f"{called} says {key}, which transformers has no place for: give the folder of the model")
    return Header(path, called, architecture, keys, tensors)


def complete(config: PretrainedConfig, header: Header) -> PretrainedConfig:
    """The configuration that transformers makes of a file, with all that the file says.

    Raises ValueError, naming the key, where something cannot be said in it.
    """
    keys = header.keys
    if config.model_type == "mistral":
        # A llama by the name of mistral gets windows that nobody asked for.
        config = LlamaConfig(**{k: v for k, v in config.to_dict().items() if k not in ("model_type", "sliding_window")})
    _check_keys(header)
    for key, value in keys.items():
        if key not in _FIELDS:
            continue
        if isinstance(value, list):
            if len(set(value)) != 1:
                header.refuse(key, "which differs from layer to layer")
            value = value[0]
        field = next((name for name in _FIELDS[key] if hasattr(config, name)), None)
        if field is not None:
            header.put(config, field, key, None if key.endswith("softcapping") and not value else value)
        elif (
            value
            and key not in _SEEN_IN_SHAPES
            and (key, value) != ("attention.head_count_kv", keys["attention.head_count"])
        ):
            header.refuse(key)
    if hasattr(config, "num_key_value_heads") and "attention.head_count_kv" not in keys:
        config.num_key_value_heads = config.num_attention_heads
    if header.architecture == "falcon" and keys.get("attention.head_count_kv") != 1:
        header.refuse("attention.head_count_kv", "and transformers reads the weights of one KV head only")
    if (getattr(config, "pad_token_id", None) or 0) >= config.vocab_size:
        # A class's own default, which the file says nothing of.
        config.pad_token_id = None
    for field, biases in _BIASES.items():
        if hasattr(config, field) and {f"blk.0.{name}.bias" for name in biases} <= {*header.tensors}:
            setattr(config, field, True)
    _heads(config, header)
    _windows(config, header)
    _rotary(config, header)
    return config


def left_over(network: PreTrainedModel, header: Header) -> set[str]:
    """The tensors of a file that no weight of the network has taken, nor its configuration."""

    def named(module: Any, *children: tuple[str, SimpleNamespace]) -> SimpleNamespace:
        """A module's names, without children's children: transformers would make their table anew for each of them."""
        return SimpleNamespace(config=network.config, state_dict=module.state_dict, named_children=lambda: children)

    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config={})
    whole = named(network, (network.base_model_prefix, named(network.base_model)))
    taken = {*get_gguf_hf_weights_map(whole, processor), FREQS, LONG, SHORT}
    if header.architecture == "gpt2":
        taken.add("output.weight")
    # Experts lie in one tensor whose name in transformers has no ending.
    return {name for name in header.tensors if not {name, name.removesuffix(".weight")} & taken}


def _check_keys(header: Header) -> None:
    used = ("expert_used_count",) if header.architecture.endswith("moe") else ()
    for key in ("block_count", "embedding_length", "attention.head_count", *used):
        if key not in header.keys:
            raise ValueError(f"{header.called} does not say {header.architecture}.{key}: fetch or convert it again")
    if not any(key.endswith("_epsilon") for key in header.keys):
        raise ValueError(
            f"{header.called} does not say {header.architecture}.attention.layer_norm_rms_epsilon (or that of another "
            "norm): fetch or convert it again"
        )
    placed = {*_FIELDS, *_ROPE, *_HEADS, *_WINDOWS, *_NOTES}
    for key, value in header.keys.items():
        if key not in placed and value not in _AS_USUAL.get(key, (0, "", None, [])):
            header.refuse(key)


def _heads(config: PretrainedConfig, header: Header) -> None:
    """The size of a head, and what scores are scaled by."""
    keys, shape = header.keys, ARCHITECTURES[header.architecture]
    usual = config.hidden_size // config.num_attention_heads
    size = keys.get("attention.key_length") or usual
    if header.architecture == "llama":
        size = keys.get("attention.key_length") or keys.get("rope.dimension_count") or usual
    if keys.get("attention.value_length", size) != size:
        header.refuse("attention.value_length", "and its keys are of another length")
    if size != usual and not shape.free_heads:
        header.refuse("attention.key_length")
    if shape.free_heads and (size != usual or hasattr(config, "head_dim")):
        header.put(config, "head_dim", "attention.key_length", size)
    scale = keys.get("attention.scale")
    if hasattr(config, "query_pre_attn_scalar"):
        squared = scale**-2 if scale else usual if config.num_hidden_layers == shape.wide else size
        whole = round(squared)
        header.put(config, "query_pre_attn_scalar", "attention.scale", whole if _same(whole, squared) else squared)
    elif scale and not _same(scale, size**-0.5):
        header.refuse("attention.scale")


def _windows(config: PretrainedConfig, header: Header) -> None:
    """Which layers see a sliding window, and how wide it is."""
    window = header.keys.get("attention.sliding_window")
    pattern = header.keys.get("attention.sliding_window_pattern", ARCHITECTURES[header.architecture].window_every)
    if window is None and header.architecture == "gemma2":
        window = 4096
    if not window:
        if getattr(config, "layer_types", None):
            config.layer_types = ["full_attention"] * config.num_hidden_layers
        elif hasattr(config, "sliding_window"):
            config.sliding_window = None
        return
    if not hasattr(config, "sliding_window"):
        header.refuse("attention.sliding_window")
    header.put(config, "sliding_window", "attention.sliding_window", window)
    if not getattr(config, "layer_types", None):
        if "attention.sliding_window_pattern" in header.keys:
            header.refuse("attention.sliding_window_pattern")
        return
    if pattern is None:
        header.refuse("attention.sliding_window", "but not in which layers (attention.sliding_window_pattern)")
    layers = range(config.num_hidden_layers)
    slides = pattern if isinstance(pattern, list) else [pattern == 0 or i % pattern < pattern - 1 for i in layers]
    if len(slides) != len(layers):
        header.refuse("attention.sliding_window_pattern", "which is not as long as it has layers")
    config.layer_types = ["sliding_attention" if s else "full_attention" for s in slides]
    if hasattr(config, "use_sliding_window"):
        config.use_sliding_window = True


def _rotary(config: PretrainedConfig, header: Header) -> None:
    """The rotary frequencies: their base, how many dimensions turn, and how they are scaled."""
    keys = header.keys
    present = getattr(config, "rope_parameters", None)
    if not present:
        for key in _ROPE & keys.keys():
            if keys[key]:
                header.refuse(key)
        return
    nested = config.nested_rope_parameter_keys(present)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dims = keys.get("rope.dimension_count") or size
    rope = _scaling(header, dims) | {"rope_theta": keys.get("rope.freq_base") or 10000.0}
    if "partial_rotary_factor" in present:
        rope["partial_rotary_factor"] = dims / size
    if int(size * rope.get("partial_rotary_factor", 1.0)) != dims:
        header.refuse("rope.dimension_count", f"and its heads have {size} dimensions")
    if "original_max_position_embeddings" in rope and hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = rope["original_max_position_embeddings"]
    local = keys.get("rope.freq_base_swa")
    if nested:
        # The scaling is of the layers without a window.
        sliding = {"rope_type": "default", "rope_theta": local or 10000.0}
        config.rope_parameters = {"sliding_attention": sliding, "full_attention": rope}
    elif local and local != rope["rope_theta"]:
        header.refuse("rope.freq_base_swa")
    else:
        config.rope_parameters = rope


def _scaling(header: Header, dims: int) -> dict[str, Any]:
    """The rotary scaling of a file as transformers writes one: rope_type and what belongs to it."""
    keys = header.keys

    def said(name: str, otherwise: Any = None) -> Any:
        return keys.get(f"rope.scaling.{name}", otherwise)

    factor = said("factor") or keys.get("rope.scale_linear") or 1.0
    kind = said("type") or "linear"
    original: Any = said("original_context_length") or keys.get("context_length")
    attention = said("attn_factor") or 1.0
    factors = _factors(header, dims)
    if factors is not None:
        if kind not in ("none", "linear", "longrope"):
            header.refuse("rope.scaling.type", "and has rotary factors as tensors besides")
        if factor != 1 and kind != "none":
            header.refuse("rope.scaling.factor", "and has rotary factors as tensors besides")
        scaling = {"rope_type": "longrope", "attention_factor": float(attention)}
        return scaling | factors | {"original_max_position_embeddings": original}
    if kind == "yarn":
        return _yarn(header, factor, original, attention)
    if kind not in ("none", "linear"):
        header.refuse("rope.scaling.type", "without the tensors that belong to it")
    if attention != 1:
        header.refuse("rope.scaling.attn_factor")
    if kind == "none" or factor == 1:
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": factor}


def _yarn(header: Header, factor: float, original: int, attention: float) -> dict[str, Any]:
    """YaRN (Peng et al. 2023), whose softmax is scaled by 0.1 ln(factor) + 1 unless said otherwise."""
    keys = header.keys
    ext, log = keys.get("rope.scaling.yarn_ext_factor", 1.0), keys.get("rope.scaling.yarn_log_multiplier") or 0.0
    # Less than 0 is llama.cpp's way to say nothing.
    if ext >= 0 and ext != 1:
        header.refuse("rope.scaling.yarn_ext_factor")
    rise = 0.1 * math.log(max(factor, 1.0))
    attention *= (rise + 1) / (rise * log + 1)
    own = keys.get("rope.scaling.yarn_attn_factor")
    if own is not None and own >= 0 and not _same(own, attention):
        # The converter means the whole factor, and llama.cpp one more beside its own.
        header.refuse("rope.scaling.yarn_attn_factor", f"and its other keys make it {attention:.6g}")
    if factor == 1:
        return {"rope_type": "default"}
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": float(attention),
        "beta_fast": keys.get("rope.scaling.yarn_beta_fast") or 32.0,
        "beta_slow": keys.get("rope.scaling.yarn_beta_slow") or 1.0,
    }


def _same(one: float, other: float) -> bool:
    """Whether two numbers are equal but for the rounding of a file's float32."""
    return math.isclose(one, other, rel_tol=1e-6)


def _factors(header: Header, dims: int) -> dict[str, list[float]] | None:
    """What each rotary frequency is divided by, in short texts and in long ones; None where the file does not say.

    Llama 3's scaling comes as one such list for all lengths.
    """
    has = [name for name in (FREQS, LONG, SHORT) if name in header.tensors]
    if not has:
        return None
    if has not in ([FREQS], [LONG, SHORT]):
        raise ValueError(
            f"{header.called} holds {' and '.join(has)}, which do not make a rotary scaling: give the folder of the "
            "model that the file was made from"
        )
    try:
        tensors = load_gguf_state_dict(GgufHeader.from_file(str(header.path)))
        lists = [tensors[name][...].float().tolist() for name in has]
    except ValueError:
        import gguf

        # Some types of blocks are unknown to it; this one reads every file, but a large vocabulary takes it long.
        stored = {t.name: t for t in gguf.GGUFReader(header.path).tensors}
        lists = [gguf.dequantize(stored[name].data, stored[name].tensor_type).ravel().tolist() for name in has]
    for name, factors in zip(has, lists, strict=True):
        if len(factors) != dims // 2:
            raise ValueError(
                f"{header.called} holds {len(factors)} rotary factors in {name} where its heads turn {dims // 2} pairs "
                "of dimensions: fetch or convert the file again"
            )
    scales = any(factor != 1 for factors in lists for factor in factors)
    return {"long_factor": lists[0], "short_factor": lists[-1]} if scales else None
