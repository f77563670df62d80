"""The machine that figures were measured on: without it they say nothing."""

import contextlib
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SETS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "avx512-vnni",
    "avx512_bf16": "avx512-bf16",
    "avx512_fp16": "avx512-fp16",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
    "asimd": "neon",
    "sve": "sve",
    "bf16": "bf16",
    "i8mm": "i8mm",
}
"""Instructions that matrix products are made of: as Linux calls them, and as they are told."""
PACKAGES = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class Machine:
    """A processor, and what computes on it."""

    processor: str
    architecture: str
    system: str
    cores: int
    """That this process may use."""
    instructions: tuple[str, ...]
    """Sets of them, of those that matrix products are made of; none where the system does not tell."""
    memory: int
    """Bytes."""
    threads: int
    """Of torch."""
    python: str
    versions: dict[str, str]
    load: float
    """Processes that wanted a core in the last fifteen minutes, this one among them."""
    accelerator: str = ""
    """A GPU that torch can use; empty where there is none."""

    @property
    def bfloat16(self) -> bool:
        """Whether the processor multiplies bfloat16 by itself."""
        return any("bf16" in name for name in self.instructions)


def machine() -> Machine:
    """This machine."""
    import torch

    told = cpuinfo()
    flags = {*told.get("flags", told.get("Features", "")).split()}
    return Machine(
        processor=told.get("model name") or platform.processor() or "unknown",
        architecture=platform.machine(),
        system=platform.system(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instructions=tuple(name for flag, name in SETS.items() if flag in flags),
        memory=psutil.virtual_memory().total,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        # torch says of itself what it was built for.
        versions={name: version(name) for name in PACKAGES} | {"torch": str(torch.__version__)},
        load=round(os.getloadavg()[2], 1),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    )


def cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor, by name; nothing on other systems."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), value.strip())
    return told


def commit() -> str:
    """The commit that is measured, with a + where files differ from it; empty outside a repository."""
    try:
        of = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(of, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
