"""A run at a glance: numbers of each lane, its curve in some dozens of points, and a sink grid.

Made from the run's tables once, and kept beside them in summary.json; what is kept counts only as long as these tables
have the size and time that they had.
"""

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from .. import files, metrics
from .run import Run
from .status import PREVIEW
from .summary import briefs_of, mean_sink_mass, summarize

OF = ("run.json", "tokens.parquet", "tokens.arrow", "sinks.npz", "sinks.arrow", "events.jsonl")
"""The files that it is made of."""
FORM = 1
"""Another one as soon as a preview says something else of the same tables: what other versions kept is made anew."""
POINTS = 48
"""Of each curve, about."""
MAX_HEADS = 2**16
"""Of all layers together."""


@dataclass(frozen=True)
class LanePreview:
    """What one lane has read, and how well it predicted it."""

    policy: str
    name: str
    """In few letters: the policies that it has read with."""
    tokens: int
    perplexity: float | None
    """None where nothing is predicted yet, or where it is too large for a number."""
    curve: tuple[float | None, ...]
    """Mean NLL in nats/token, rolling over the last tokens, at moments that lie evenly."""


@dataclass(frozen=True)
class Preview:
    """A run at a glance."""

    lanes: tuple[LanePreview, ...]
    layers: int
    """0 where there is no sink grid yet."""
    heads: int
    grid: bytes
    """Mean sink mass of the first lane, a byte for each head, layer after layer; 255 is all attention."""

    def __post_init__(self) -> None:
        if len(self.grid) != self.layers * self.heads or not 0 <= self.layers * self.heads <= MAX_HEADS:
            raise ValueError("a sink grid has a byte for each head")


@dataclass(frozen=True)
class _Kept:
    of: dict[str, tuple[int, int]]
    """Size and time of each file that it was made of."""
    preview: Preview
    form: int = 0
    """FORM of the version that made it."""


def preview(path: Path, held: Mapping[str, os.stat_result], *, live: bool) -> Preview:
    """Of the run in a folder; `held`: its files; `live`: whether somebody writes there.

    Raises ValueError where the run is damaged.
    """
    of = _stamps(held)
    if PREVIEW in held:
        with suppress(ValueError):
            kept = files.record(path / PREVIEW, _Kept, "a preview")
            if kept.of == of and kept.form == FORM:
                return kept.preview
    from .reader import load

    made = preview_of(load(path))
    if not live:
        _keep(path, _Kept(of, made, FORM))
    return made


def keep(path: Path, run: Run) -> None:
    """Put the preview of a run beside its tables, which were just written."""
    with suppress(OSError, ValueError):
        held = {name: (path / name).stat() for name in OF if (path / name).exists()}
        _keep(path, _Kept(_stamps(held), preview_of(run), FORM))


def _stamps(held: Mapping[str, os.stat_result]) -> dict[str, tuple[int, int]]:
    return {name: (held[name].st_size, held[name].st_mtime_ns) for name in OF if name in held}


def _keep(path: Path, kept: _Kept) -> None:
    # A folder that cannot be written is looked at all the same.
    with suppress(ValueError):
        files.write(path / PREVIEW, msgspec.json.encode(kept).decode() + "\n")


def preview_of(run: Run) -> Preview:
    """Of a run in memory."""
    lanes = []
    with np.errstate(over="ignore", invalid="ignore"):
        # Foreign numbers may be of any size.
        summaries = summarize(run)
    for lane, name, track in zip(summaries, briefs_of(run), run.tracks, strict=True):
        ends, means = metrics.curve(track.sums.view())
        at = np.unique(np.linspace(0, len(ends) - 1, POINTS).astype(int)) if len(ends) else []
        curve = tuple(_number(x) for x in means[at])
        lanes.append(LanePreview(str(lane.policy), name, lane.tokens, _number(lane.perplexity), curve))
    if not run.tracks[0].spans:
        return Preview(tuple(lanes), 0, 0, b"")
    mass = mean_sink_mass(run, 0)
    levels = np.round(np.nan_to_num(mass).clip(0, 1) * 255).astype(np.uint8)
    return Preview(tuple(lanes), *mass.shape, levels.tobytes())


def _number(x: float) -> float | None:
    """To four digits; None where it is none."""
    return float(f"{x:.4g}") if math.isfinite(x) else None
