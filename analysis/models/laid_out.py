"""Float32 weights in a file as they lie in memory: a start maps them, and copies none.

Matrices lie with their outputs side by side (quantization.py), and those that read one input behind one another
(families/fused.py).  The file is of the format of safetensors, with one row of numbers for each block of memory; where
each weight lies in them stands beside, under `lie`.
"""

import json
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import files

ALIGNED = 64
"""Bytes on a multiple of which the numbers begin, as torch lets its own memory begin."""


def save(network: nn.Module, path: Path) -> bool:
    """Write the weights and buffers of a network; False, and nothing is written, where they are not all float32 on the
    CPU.  Raises OSError where the disk does not take it."""
    weights = {name: t.detach() for name, t in network.state_dict().items()}
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in weights.values()):
        return False
    blocks = {t.untyped_storage().data_ptr(): torch.empty(0).set_(t.untyped_storage()) for t in weights.values()}
    # Those of odd sizes last: so all others begin where torch would let them begin.
    ordered = dict(sorted(blocks.items(), key=lambda block: block[1].numel() * 4 % ALIGNED != 0))
    sizes = [block.numel() for block in ordered.values()]
    begins = dict(zip(ordered, accumulate(sizes, initial=0), strict=False))
    places: dict[tuple, str] = {}
    for name, t in weights.items():
        where = begins[t.untyped_storage().data_ptr()] + t.storage_offset(), tuple(t.shape), t.stride()
        # Tied weights are one: the first name stands for all.
        places.setdefault(where, name)
    lie = {name: where for where, name in places.items()}
    tensors = {f"block.{number}": ("F32", [size], 4 * size) for number, size in enumerate(sizes)}
    with path.open("wb") as f:
        f.write(files.safetensors_head(tensors, {"format": "pt", "lie": json.dumps(lie)}, ALIGNED))
        for block in ordered.values():
            f.write(memoryview(block.numpy()))
    return True


def read(paths: Iterable[Path], dtype: torch.dtype | None = None) -> dict[str, Tensor] | None:
    """The weights by name, mapped into memory as they lie; None where this is no such file.

    `dtype`: they are copied into it, each into a piece of its own with its inputs side by side.  Raises whatever a
    damaged file gives.
    """
    path, *more = paths
    if more or path.suffix != ".safetensors":
        return None
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 0 < length < path.stat().st_size:
            return None
        lie = json.loads(f.read(length)).get("__metadata__", {}).get("lie")
    if lie is None:
        return None
    mapped: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    weights = {}
    for name, (at, shape, strides) in json.loads(lie).items():
        weight = torch.empty(0).set_(mapped, (8 + length) // 4 + at, shape, strides)
        weights[name] = weight if dtype is None else weight.to(dtype).contiguous()
    return weights
