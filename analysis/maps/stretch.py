"""A captured stretch of text, read from its folder: what every head asked with and answered to, on disk.

Queries and keys before rotation are all that a map needs (atlas.py), so a stretch grows with its length and never with
its square.  Beside them stand a few numbers of every token that would be lost otherwise: norms of keys, values and
hidden states, and the largest activations.
"""

import os
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import files
from ..engine.attention.band import Band
from ..engine.layers.quantized import Quantization
from ..policies import parse
from ..runs.spec import Spec

POSITIONS = ("text", "cache", "none", "naive")
"""How distances to sinks may be counted."""


@dataclass(frozen=True)
class Segment:
    """Queries start … stop − 1 of a stretch, which all reach keys by one rule.

    Raises ValueError where a number or word in it is none.
    """

    start: int
    stop: int
    policy: str
    reach: Band
    length: int = 1
    """Of the context for which rotations were chosen (families/frequencies.py)."""

    def __post_init__(self) -> None:
        parse(self.policy)
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a segment from token {self.start} to {self.stop} has no tokens")
        band = self.reach
        numbers = (band.sinks, band.first, band.window or 0, band.step - 1, band.steps_from, band.sliding or 0)
        if min(numbers) < 0 or max(numbers) >= 2**31:
            raise ValueError(f"a reach has no numbers below 0 or above {2**31}, and steps, and this is {band}")
        if max(band.sinks, band.first) > self.stop:
            raise ValueError(f"a reach up to token {self.stop} has no sinks or window behind it, and this is {band}")
        if band.positions not in POSITIONS:
            raise ValueError(f"positions are one of {', '.join(POSITIONS)}, not {band.positions!r}")
        if self.length < 1:
            raise ValueError(f"a context has at least 1 token, not {self.length}")


@dataclass
class _About:
    """What stretch.json must say."""

    spec: Spec
    segments: list[Segment]
    weights_sha256: str
    text_sha256: str = ""
    begins: str | None = None
    as_text: tuple[str, ...] = ()


class Stretch:
    """A captured stretch: text positions 0 … tokens − 1, read by one lane.

    `queries` [layers, heads, tokens, dim] and `keys` [layers, kv_heads, tokens, dim] before rotation; `quantized`,
    where the cache has few bits: the same keys as they are met once they are quantized, which `quantization` says;
    `mass` [layers, heads]: mean attention to the first four tokens; `norms` [kinds, layers, tokens] of NORMS, means
    over heads; `massive` [layers, TOP, 3]: size, token and channel of the largest activations, `median` [layers]: of
    |h| over all tokens and channels of what comes out of a layer.  All float32, the large ones mapped from disk.
    """

    NORMS = ("key", "value", "hidden")

    def __init__(self, path: Path) -> None:
        """Raises ValueError where there is no stretch, or a file of it is damaged or of another."""
        self.path = Path(path)
        file = self.path / "stretch.json"
        if not os.path.exists(file):
            raise ValueError(f"{path} holds no captured stretch: it has no readable stretch.json")
        about = files.record(file, _About, "that of a captured stretch")
        self.about = files.record(file, dict[str, Any], "that of a captured stretch")
        self.spec, self.segments = about.spec, about.segments
        if sum(s.stop - s.start for s in self.segments) < 1:
            raise ValueError(f"{file} is not that of a captured stretch: it has no tokens")
        count = self.segments[-1].stop
        if [s.start for s in self.segments] != [0, *(s.stop for s in self.segments[:-1])]:
            raise ValueError(f"{file} is not that of a captured stretch: its segments do not follow each other")
        self.token_ids = self._array("token_ids", "iu", count + 1)
        self.queries = self._array("queries", "f", None, None, count, None)
        layers, heads, _, dim = self.queries.shape
        self.keys = self._array("keys", "f", layers, None, count, dim)
        self.quantization = Quantization.of(parse(self.segments[0].policy))
        self.quantized = None if self.quantization is None else self._array("quantized", "f", *self.keys.shape)
        if not self.keys.shape[1] or heads % self.keys.shape[1]:
            raise ValueError(f"{path} has {heads} query heads and {self.keys.shape[1]} KV heads: a file is damaged")
        self.norms = self._array("norms", "f", len(self.NORMS), layers, count)
        self.massive = self._array("massive", "f", layers, None, 3)
        self.median, self.mass = self._array("median", "f", layers), self._array("mass", "f", layers, heads)

    def _array(self, name: str, numbers: str, *shape: int | None) -> NDArray:
        mapped = name in ("queries", "keys", "quantized", "norms")
        return files.array(self.path / f"{name}.npy", files.Kind(numbers, shape), mapped=mapped)

    @property
    def policies(self) -> list[str]:
        """Those that it was read under, in their order."""
        return [policy for policy, _ in groupby(segment.policy for segment in self.segments)]

    @property
    def command(self) -> str | None:
        """The command line that captures it, quoted for a shell; None where there is none, since its weights were
        packed, or its KV heads averaged."""
        if self.spec.weights != "model" or self.spec.kv_heads is not None:
            return None
        first, *later = [next(read) for _, read in groupby(self.segments, lambda segment: segment.policy)]
        # The position of a lane is behind the query that it has read last.
        switches = [f"--switch={segment.start + 1}={segment.policy}" for segment in later]
        asked = {"text": self.spec.text, "tokens": self.spec.tokens, "policy": first.policy}
        return self.spec.command_line("capture", *switches, without=("chunk", "weights", "kv_heads"), **asked)

    @property
    def label(self) -> str:
        """What it is called: the policies that it was read under."""
        return " → ".join(parse(policy).label for policy in self.policies)

    @property
    def tokens(self) -> int:
        """Tokens that were read, without the one that was only predicted."""
        return self.queries.shape[2]

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return self.queries.shape[0]

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return self.queries.shape[1]
