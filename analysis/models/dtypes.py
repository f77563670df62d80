"""What `auto` stands for: half precision where this machine multiplies it faster than float32, and float32 elsewhere.

A processor without instructions for bfloat16 takes several times as long with it, and none says so.  So both are timed
once, on one product of the size that a model makes, and the rates are remembered in the cache folder.  A GPU of CUDA is
asked what it has units for.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

from .. import files
from .devices import pick_device

DTYPES = ("float32", "bfloat16", "float16")
WEIGHTS = ("model", "int8", "int4")
"""As the model came; 8 bits, a scale for each row; 4 bits, a scale and a minimum for 32 weights, like Q4_1 blocks."""
AUTO = "auto"
FASTER = 1.2
"""How many times as fast bfloat16 must be to be worth its digits."""
SHAPE = 256, 1024, 1024
"""Tokens, width, and width behind it of the product that is timed."""
SECONDS, ROUNDS = 0.4, 3
"""How long both are timed in turn, and how often at least; the fastest counts, since only noise makes one slower."""
SWITCHES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Variables that hide instructions from the libraries that multiply."""


class Decision(NamedTuple):
    """A dtype, and in a few words why; empty where somebody named it."""

    dtype: str
    why: str


class Rates(NamedTuple):
    """GFLOP/s of matrix products on this machine; 0 where there are none."""

    float32: float
    bfloat16: float


def decide(dtype: str, device: str = "auto") -> Decision:
    """The dtype itself, or what `auto` stands for on a device (auto, cpu, cuda or mps)."""
    if dtype != AUTO:
        return Decision(dtype, "")
    kind = pick_device(device).type
    return _of_gpus() if kind == "cuda" else faster(remembered(kind))


def faster(rates: Rates) -> Decision:
    """bfloat16 where it is worth its digits, float32 elsewhere."""
    times = rates.bfloat16 / rates.float32
    if times >= FASTER:
        return Decision("bfloat16", f"bfloat16: {times:.1f} times as fast here as float32")
    if times >= 1:
        return Decision("float32", f"float32: bfloat16 is hardly faster here, {times:.1f} times")
    if times > 0:
        return Decision("float32", f"float32: bfloat16 takes {1 / times:.1f} times as long here")
    return Decision("float32", "float32: bfloat16 cannot be multiplied here")


def _of_gpus() -> Decision:
    import torch

    # Of several the oldest, since a network may be spread over all.
    oldest = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    if torch.version.hip or oldest >= (8, 0):
        return Decision("bfloat16", "bfloat16: this GPU has units for it")
    if oldest >= (7, 0):
        return Decision("float16", "float16: this GPU has units for it, and none for bfloat16")
    return Decision("float32", "float32: this GPU has no units for half precision")


def remembered(kind: str) -> Rates:
    """The rates of a kind of device, measured the first time on a machine with this torch and these threads."""
    about = depends_on(kind)
    place = files.cache_folder() / f"rates-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}.json"
    # What is damaged in any way is measured again.
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        held = files.record(place, dict[str, Any], "")
        rates = Rates(float(held["float32"]), float(held["bfloat16"]))
        if held["about"] == about and rates.float32 > 0 and rates.bfloat16 >= 0 and all(map(math.isfinite, rates)):
            return rates
    rates = measured(kind)
    # A folder that cannot be written costs a measurement each time, and nothing else.
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write(place, json.dumps({"about": about, **rates._asdict()}, indent=2) + "\n")
    return rates


def depends_on(kind: str) -> list[str]:
    """What numbers and rates of a kind of device depend on: torch, its threads, the processor or GPU."""
    import torch

    names = ["", ""]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        # A virtual machine may hide instructions of a processor whose name it shows.
        names = [next((line for line in lines if line.startswith(start)), "") for start in ("model name", "flags")]
    processor = [platform.machine(), platform.processor(), *names, torch.backends.cpu.get_cpu_capability()]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if kind == "cuda" else []
    return [
        kind,
        *gpus,
        torch.__version__,
        f"{torch.get_num_threads()}",
        *processor,
        *(os.environ.get(s, "") for s in SWITCHES),
    ]


def measured(kind: str) -> Rates:
    """GFLOP/s of one product in float32 and in bfloat16, timed in turn."""
    import torch

    tokens, width, behind = SHAPE
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    with torch.inference_mode():
        pairs: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        for dtype in seconds:
            x, weight = torch.randn(tokens, width), torch.randn(behind, width)
            with contextlib.suppress(RuntimeError, TypeError):
                pairs[dtype] = x.to(kind, dtype), weight.to(kind, dtype)
        rounds, until = 0, time.perf_counter() + SECONDS
        while rounds < ROUNDS or time.perf_counter() < until:
            rounds += 1
            for dtype, (x, weight) in list(pairs.items()):
                try:
                    began = time.perf_counter()
                    torch.nn.functional.linear(x, weight)
                    if kind == "mps":
                        torch.mps.synchronize()
                    seconds[dtype] = min(seconds[dtype], time.perf_counter() - began)
                except RuntimeError:
                    del pairs[dtype]
    work = 2 * tokens * width * behind / 1e9
    return Rates(*(work / seconds[dtype] for dtype in (torch.float32, torch.bfloat16)))


def arithmetic(weights: str, dtype: str) -> str:
    """What numbers are computed in: `dtype` alone does not say it of packed weights, which multiply in bfloat16."""
    if weights == "model":
        return dtype
    elsewhere = "" if dtype == "bfloat16" else f", {dtype} elsewhere"
    return f"{weights} weights, bfloat16 products{elsewhere}"
