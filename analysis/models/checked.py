"""Which conversions say through the engine what they say by themselves, so that it is not tried at every start.

A conversion is the same bytes as long as its checksums hold (conversions.py).  What else its numbers come from is asked
for each time: this package's own code, the libraries, the processor, the dtype.  Of another of these it is tried again.
"""

import contextlib
import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedModel

from .. import files
from ..engine.check import adapt
from ..families import ADAPTERS, rotary
from ..families.positions import Fixed
from ..families.rotary import Adapted
from .dtypes import depends_on

FILE = ".checked.json"
"""Lies in a conversion's folder, and goes with it."""
MOST = 8
"""Settings that are remembered: those that were tried last."""


def adapted_once(network: PreTrainedModel, folder: Path, settings: str) -> Adapted:
    """An adapted twin of a conversion's network, tried (check.py) unless this was done before with the same of all.

    `settings`: how the conversion was loaded, beside its dtype and device.  Raises ValueError as `adapt` does.
    """
    about = [_code(), version("transformers"), *depends_on(network.device.type), str(network.dtype), settings]
    key, held = hashlib.sha256(json.dumps(about).encode()).hexdigest(), _held(folder)
    if key in held:
        return rotary.adapt(network, ADAPTERS)
    adapted = adapt(network)
    # Positions that are left to the network may be the second choice, after the first was tried.
    if not isinstance(adapted.positions, Fixed):
        # A folder that cannot be written costs a try each time, and nothing else.
        with contextlib.suppress(OSError):
            files.write(folder / FILE, json.dumps([*held, key][-MOST:]) + "\n")
    return adapted


def _held(folder: Path) -> list[str]:
    # What is damaged in any way is tried again.
    with contextlib.suppress(OSError, ValueError):
        return files.record(folder / FILE, list[str], "")
    return []


@cache
def _code() -> str:
    """Digest of this package's code."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
