"""Bytes for a browser: a JSON header, and behind it arrays whose type, place and shape the header tells.

A frame of a live page is such bytes, and so is a whole recording (recording.py).  A frame that follows another can be
sent as what has changed.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-6
"""The smallest weight that a map tells from zero."""
TOP = 65_535
"""The largest level of a cell; 0 stands for a pair of tokens that never met."""
LEVELS = {"floor": FLOOR, "top": TOP}
"""What a script needs to turn levels into weights again; the header of a frame with maps has it."""


KINDS = {np.dtype(np.uint16): "u2", np.dtype(np.uint32): "u4", np.dtype(np.uint64): "f8"}
"""What arrays of whole numbers are sent as, the largest as float64, exact below 2^53; all others become float32."""


@dataclass(frozen=True, eq=False)
class Frame:
    """What a live page is drawn from at one moment; nothing in it changes any more."""

    header: Mapping[str, Any]
    arrays: Mapping[str, NDArray]

    def packed(self, known: "Frame | None" = None) -> bytes:
        """As bytes; `known`: a frame that the browser has, of which nothing is sent again."""
        return assemble(self.header, self.arrays, known)


def assemble(header: Mapping[str, Any], arrays: Mapping[str, NDArray], known: Frame | None = None) -> bytes:
    """Little-endian length of the header, the header, and these arrays as KINDS say.

    `known`: what need not be sent again.  Of the header that is named in `same`, and arrays have no place then.
    """
    if known is not None:
        same = [name for name, value in header.items() if name in known.header and known.header[name] == value]
        header = {name: value for name, value in header.items() if name not in same} | {"same": same}
    table, parts, offset = {}, [], 0
    for name, array in arrays.items():
        if known is not None and _equal(array, known.arrays.get(name)):
            table[name] = None
            continue
        kind = KINDS.get(array.dtype, "f4")
        array = np.ascontiguousarray(array, kind)
        data = array.tobytes()
        data += b"\0" * (-len(data) % 4)
        table[name] = [kind, offset, list(array.shape)]
        parts.append(data)
        offset += len(data)
    text = json.dumps({**header, "arrays": table}, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    return b"".join([struct.pack("<I", len(text)), text, *parts])


def _equal(array: NDArray, other: NDArray | None) -> bool:
    """Whether two arrays are sent as the same bytes."""
    return array is other or (other is not None and array.dtype == other.dtype and np.array_equal(array, other))


def levels_of(weights: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Weights as levels 1 … TOP on a logarithmic scale from FLOOR to 1; NaN, a pair that never met, becomes 0.

    A weight that rounding has made larger than 1 counts as 1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        level = 1 + np.round((1 - np.log10(np.clip(weights, FLOOR, 1)) / np.log10(FLOOR)) * (TOP - 1))
    return np.where(np.isnan(weights), 0, level).astype(np.uint16)
