"""Whether a network is what its files say: every tensor taken, none made up, all of the right size and scale.

transformers drops what it has no place for, makes up what is missing and reads packed numbers as if they were weights,
with no more than a line in a log.  Here each of these is an error with the tensor's name.  What cannot be seen: a head
count that leaves every shape as it was (2 heads of 16 instead of 4 of 8) is as good a model as any.
"""

import copy
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.quantizers.auto import AutoHfQuantizer

from ..settings import quoted

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of stored numbers that are what they say, in safetensors' names."""

_SCALES = re.compile(r"scale|zero|qweight|g_idx|absmax|quant_|SCB|qzeros|_packed|blocks|codebook|amax")
_ADAPTERS = re.compile(r"lora_|base_layer|base_model\.model|modules_to_save|ia3_|vera_|adapter")

_ROPE_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
}
_ROPE_EVERYWHERE = {"rope_type", "type", "rope_theta", "original_max_position_embeddings"}
_ROPE_NOTES = {"finetuned", "mrope_section", "mrope_interleaved", "max_position_embeddings"}
"""What a rotary scaling says of itself, or of places that text has none of, without changing a number."""


class Stored(NamedTuple):
    """How a tensor lies in a file."""

    dtype: str
    shape: tuple[int, ...]


def stored(files: Iterable[Path]) -> dict[str, Stored]:
    """The tensors of safetensors files, by name, without reading them."""
    tensors = {}
    for path in files:
        with safe_open(path, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118 - no dict
                part = f.get_slice(name)
                tensors[name] = Stored(part.get_dtype(), tuple(part.get_shape()))
    return tensors


def check_quantization(config: PretrainedConfig, called: str) -> bool:
    """Whether a configuration names a quantization.  Raises ValueError where nothing installed here can read it."""
    text = config.get_text_config(decoder=True)
    said = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    said = said or getattr(config, "compression_config", None)
    if said is None:
        return False
    method = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
    instead = "choose the weights that it was made from"
    try:
        known = AutoHfQuantizer.supports_quant_method(said)
    except Exception as e:
        raise ValueError(
            f"{called} says that it is quantized, but not how (quantization_config has no quant_method): {instead}"
        ) from e
    if not known:
        raise ValueError(f"{called} is quantized by {method!r}, which transformers cannot read: {instead}")
    try:
        AutoHfQuantizer.from_config(copy.deepcopy(said), pre_quantized=True).validate_environment(device_map=None)
    except Exception as e:
        lines = str(e).strip().splitlines() or [type(e).__name__]
        raise ValueError(
            f"{called} is quantized by {method!r} and its loader does not work here ({lines[0][:160]}): {instead}, or "
            "install it"
        ) from e
    return True


def check_loaded(
    network: PreTrainedModel, report: dict[str, Any], files: list[Path], called: str, *, quantized: bool
) -> None:
    """Raises ValueError, naming a tensor, where a network just loaded is not what its files say.

    `report`: what from_pretrained says of its loading, mismatched sizes let through; `files`: where the weights lie;
    `quantized`: by a quantization that transformers knows.
    """
    tensors = stored(path for path in files if path.suffix == ".safetensors")
    check_taken(network, report, called)
    check_kept(network, tensors, called, quantized=quantized)
    check_rope(network.config, network, called)
    check_finite(network, called)


def check_taken(network: PreTrainedModel, report: dict[str, Any], called: str) -> None:
    """Raises ValueError where a network lacks weights, has them in another size, or has no place for some.

    `report`: what from_pretrained says of its loading, mismatched sizes being let through.
    """
    missing = sorted(report["missing_keys"])
    wrong = sorted(report["mismatched_keys"])
    buffers = dict(network.named_buffers())
    # What a module works out for itself, such as its causal mask, old files hold too; and what that was filled with.
    prefix = f"{network.base_model_prefix}."
    own = (name for name in report["unexpected_keys"] if not {name, prefix + name} & buffers.keys())
    left = sorted(name for name in own if not name.endswith("attn.masked_bias"))
    adapters = [name for name in left if _ADAPTERS.search(name)]
    if adapters:
        raise ValueError(
            f"{called} holds an adapter that would be left out ({_some(adapters)}): merge it with PEFT's "
            "merge_and_unload() and save the whole model"
        )
    if wrong:
        name, has, wants = wrong[0]
        raise ValueError(
            f"{called} has {len(wrong)} weights of another size than its configuration says ({name} is "
            f"{_size(has)}, not {_size(wants)}): the two are of different models, or one was changed; fetch both again"
        )
    if missing:
        also = f", and holds {len(left)} that have no place in it ({left[0]} is one)" if left else ""
        raise ValueError(
            f"{called} lacks {len(missing)} of its weights ({missing[0]} is one){also}: fetch or convert the model "
            "again"
        )
    scales = [name for name in left if _SCALES.search(name.rpartition(".")[2])]
    if scales:
        raise ValueError(
            f"{called} is quantized in a way that transformers does not undo, its scales would be left out "
            f"({_some(scales)}): choose the weights that it was made from"
        )
    if left:
        raise ValueError(
            f"{called} holds tensors that its configuration has no place for ({_some(left)}): the two are of different "
            "models, or one was changed; fetch both again"
        )


def check_kept(network: PreTrainedModel, tensors: dict[str, Stored], called: str, *, quantized: bool) -> None:
    """Raises ValueError where weights lie as integers or in 8 bits and nothing gives them back their scale, or where
    rotary frequencies, which old files hold, are those of another head size."""
    own, stems = network.state_dict(), {name.rpartition(".")[0] for name in tensors if "scale" in name}
    ignored = [re.compile(p) for p in (*(network._keys_to_ignore_on_load_unexpected or ()), "position_ids$")]
    for name, (dtype, _) in sorted(tensors.items()):
        if dtype in FLOATS or any(p.search(name) for p in ignored):
            continue
        if name in own and not own[name].is_floating_point():
            continue
        if quantized and (not dtype.startswith("F8") or name.rpartition(".")[0] in stems):
            continue
        raise ValueError(
            f"{called} holds weights as {dtype} ({name} is one) without a scale that transformers would use: choose "
            "the weights that they were made from"
        )
    sizes = {b.numel() for name, b in network.named_buffers() if name.endswith("inv_freq")}
    for name, (_, shape) in sorted(tensors.items()):
        if name.endswith("rotary_emb.inv_freq") and sizes and shape[-1] not in sizes:
            raise ValueError(
                f"{called} was saved with rotary frequencies of {2 * shape[-1]} dimensions ({name}) and its "
                f"configuration has {2 * max(sizes)}: set the head count or head size of the model in config.json"
            )


def check_finite(network: PreTrainedModel, called: str) -> None:
    """Raises ValueError where a weight is infinite or no number."""
    for name, weight in network.named_parameters():
        # A sum is several times faster than a look at each, and finite only if all are.
        if not weight.is_floating_point() or weight.sum(dtype=torch.float32).isfinite():
            continue
        if weight.isfinite().all():
            continue
        if weight.dtype == torch.float16 and not weight.isnan().any():
            raise ValueError(f"{called} has weights that float16 cannot hold ({name} is one): use bfloat16 or float32")
        raise ValueError(
            f"{called} has weights that are infinite or no numbers ({name} is one): fetch or convert the model again"
        )


def check_rope(config: PretrainedConfig, network: PreTrainedModel | None, called: str) -> None:
    """Raises ValueError where a configuration asks for a rotary scaling that would be left out.

    `network`: None before it is there; then only what nothing could compute is refused.
    """
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        if getattr(config, "rope_scaling", None):
            raise ValueError(
                f"{called} asks for a rotary scaling (rope_scaling) and the family {config.model_type!r} has none: "
                "remove it from config.json, or choose another model"
            )
        return
    nested = config.nested_rope_parameter_keys(parameters)
    for scaling in [parameters[key] for key in nested] or [parameters]:
        if scaling is None:
            continue
        kind = scaling.get("rope_type", "default")
        if kind not in (*_ROPE_KEYS, *ROPE_INIT_FUNCTIONS, config.default_rope_type):
            raise ValueError(
                f"{called} asks for the rotary scaling {kind!r}, which transformers does not know (it knows "
                f"{', '.join(ROPE_INIT_FUNCTIONS)}): fetch its config.json again"
            )
        for key in ("rope_theta", "factor"):
            if (said := scaling.get(key)) is not None and not (isinstance(said, int | float) and said > 0):
                raise ValueError(f"{called} says {key} {quoted(said)} and not a number above 0: fetch it again")
        if network is None or kind not in _ROPE_KEYS:
            continue
        # Some families read more than the common rules do, and some of those nothing at all.
        modules = {type(module).__module__ for module in network.modules()}
        source = "".join(inspect.getsource(sys.modules[m]) for m in modules if m.startswith("transformers.models."))
        if kind != "default" and "ROPE_INIT_FUNCTIONS" not in source:
            raise ValueError(
                f"{called} asks for the rotary scaling {kind!r} and the family {config.model_type!r} has none: remove "
                "it from config.json, or choose another model"
            )
        known = _ROPE_KEYS[kind] | _ROPE_EVERYWHERE | _ROPE_NOTES
        for key, value in sorted(scaling.items()):
            neutral = value is None or (key == "partial_rotary_factor" and value == 1)
            if key not in known and not neutral and not re.search(rf"""["']{key}["']""", source):
                raise ValueError(
                    f"{called} asks for a rotary scaling of kind {kind!r} with {key}, which would be left out: mend "
                    "rope_scaling (rope_parameters) in its config.json"
                )


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _size(shape: Iterable[int]) -> str:
    return " × ".join(str(n) for n in shape) or "one number"
