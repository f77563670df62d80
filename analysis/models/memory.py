"""What memory a model needs, and what there is of it: on a GPU by torch, elsewhere by the machine."""

import math
from pathlib import Path

import psutil
import torch
from safetensors import safe_open
from transformers import PretrainedConfig

from ..settings import quoted

ROOM_CACHED, ROOM_HELD = 4096, 1024
"""Tokens for which there must be room beside the weights: in caches, and kept for maps."""


def needed(weights: list[Path], config: PretrainedConfig, dtype: torch.dtype, called: str) -> dict[str, int]:
    """Bytes that a model takes on a device: its weights, what is cached, and what is kept for maps.

    Raises ValueError where a size that its configuration says is none: some families do not look at all of them.
    """
    for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "num_key_value_heads", "head_dim"):
        said = getattr(config, name, None)
        if said is not None and not (isinstance(said, int) and said > 0):
            raise ValueError(f"{called} says {name} {quoted(said)} and not a whole number from 1 on: fetch it again")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = config.num_hidden_layers * heads * dim * dtype.itemsize
    held = config.num_hidden_layers * (config.num_attention_heads + heads) * dim * dtype.itemsize
    return {
        "weights": sum(numbers_in(path) for path in weights) * dtype.itemsize,
        f"{ROOM_CACHED:,} cached tokens": 2 * token * ROOM_CACHED,
        f"{ROOM_HELD:,} tokens kept for maps": held * ROOM_HELD,
    }


def fits_on_one(parts: dict[str, int], dtype: torch.dtype, device: torch.device, called: str) -> bool:
    """Whether one device holds all of it; False where it takes all GPUs of this machine together.

    Raises ValueError, with the numbers, where it does not fit at all.
    """
    total, alone = sum(parts.values()), free(device)
    if total <= alone:
        return True
    everywhere = sum(gpus().values())
    room = max(alone, everywhere) if device.type == "cuda" else alone
    if total > room:
        listed = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in parts.items())
        smaller = "bfloat16 or " if dtype == torch.float32 else ""
        raise ValueError(
            f"{called} needs about {total / 1e9:.1f} GB ({listed}) and {room / 1e9:.1f} GB are free on {device.type}: "
            f"choose {smaller}a smaller model, or close what else uses this memory"
        )
    return False


def numbers_in(path: Path) -> int:
    """How many numbers a file of weights holds.  A file that cannot be read is refused later, with its own sentence."""
    try:
        if path.suffix.lower() == ".gguf":
            import gguf

            return sum(int(t.n_elements) for t in gguf.GGUFReader(path).tensors)
        with safe_open(path, framework="pt") as f:
            names = f.keys()
            return sum(math.prod(f.get_slice(name).get_shape()) for name in names)
    except Exception:
        return 0


def free(device: torch.device) -> int:
    """Bytes of memory that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def memory_of(device: str) -> str:
    """What memory is used just now, in a few words: of the GPU by torch, elsewhere by this process."""
    if device == "cuda":
        numbers = range(torch.cuda.device_count())
        used, reserved = (sum(f(i) for i in numbers) for f in (torch.cuda.memory_allocated, torch.cuda.memory_reserved))
        return f"{used / 1e9:.2f} GB allocated, {reserved / 1e9:.2f} GB reserved"
    return f"{psutil.Process().memory_info().rss / 1e9:.2f} GB resident"


def gpus() -> dict[int, int]:
    """Free bytes of every GPU, by its number."""
    return {i: free(torch.device("cuda", i)) for i in range(torch.cuda.device_count())}
