"""What the atlas is sent: the piece of a map that somebody looks at, in one piece of bytes.  No Streamlit in here."""

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.atlas import Atlas, Region
from analysis.policies import parse

from .capturer import Capturing
from .frames import FLOOR, assemble, coded

MOST_BYTES = 64 * 2**20
"""Of maps that are kept, so that a place where one has looked comes back at once."""
SMALL = 104
"""Cells on a side of a small map, at most."""
BARS = 512
"""Bars of the rows and columns of one token, at most."""
PATIENCE = 0.25
"""Seconds of a frame that small maps may take."""
OVERVIEW = 512
"""Cells on a side of the map of a whole stretch, at most, from which the range of colours is taken."""
KINDS = ("weights", "logits", "difference")
MANY = ("none", "heads", "layers")


@dataclass
class Look:
    """Where and how one person looks."""

    layer: int = 0
    head: int = 0
    kind: str = "weights"
    pool: str = "max"
    colour: str = "logarithmic"
    many: str = "none"
    region: Region | None = None
    cross: tuple[int, int] | None = None


class Tiles:
    """Maps that were drawn, up to a bound; those that were looked at longest ago go."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple, NDArray[np.float32]] = OrderedDict()
        self._bytes = 0

    def get(self, atlas: Atlas, layer: int, head: int, region: Region, pool: str, kind: str) -> NDArray[np.float32]:
        # The atlas itself and not its id, which another may have when it is gone.
        key = (atlas, layer, head, region, pool, kind)
        if key not in self._kept:
            self._kept[key] = atlas.draw(layer, head, region, pool=pool, kind=kind)
            self._bytes += self._kept[key].nbytes
            while self._bytes > MOST_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        self._kept.move_to_end(key)
        return self._kept[key]

    def __contains__(self, key: tuple) -> bool:
        return key in self._kept


@dataclass
class AtlasSender:
    """Makes the frames of one tab."""

    tiles: Tiles = field(default_factory=Tiles)
    complete: bool = True
    """Whether the last frame had all small maps."""
    _seq: int = 0

    def frame(self, run: Capturing, other: Capturing | None, look: Look) -> bytes:
        """What a person looks at; `other`: a stretch to compare with."""
        self._seq += 1
        atlas, arrays = run.atlas, {}
        total = atlas.stretch.tokens if other is None else min(atlas.stretch.tokens, other.atlas.stretch.tokens)
        region = look.region
        if region is None or max(region.rows[1], region.columns[1]) > total:
            region = whole(total, OVERVIEW)
        kind = look.kind if look.kind != "difference" or other is not None else "weights"
        low, high = self._range(atlas, other, look, kind, total)
        arrays["map"] = levels(self._map(atlas, other, look, region, kind), kind, low, high)
        headings = [parse(run.spec.policies[0]).label]
        if kind == "difference":
            headings = [f"{headings[0]} minus {parse(other.spec.policies[0]).label}"]
        elif other is not None:
            headings.append(f"{parse(other.spec.policies[0]).label}, {other.spec.text}")
            arrays["other"] = levels(self._map(other.atlas, None, look, region, kind), kind, low, high)
        shown = run.atlas.stretch
        head: dict[str, Any] = {
            "run": f"{run.id}{other.id if other else ''}",
            "published": self._seq,
            "tile": self._seq,
            "total": total,
            "layer": look.layer,
            "head": [look.layer, look.head],
            "kind": kind,
            "pool": look.pool,
            "colour": look.colour,
            "low": low,
            "high": high,
            "look": {"rows": region.rows, "columns": region.columns, "scale": region.scale},
            "title": f"Layer {look.layer}, head {look.head}",
            "headings": headings,
            "texts": self._texts(run, region),
            "chosen": 0,
            "lanes": [{"label": parse(run.spec.policies[0]).label}],
            "cross": self._cross(run, look, total, arrays),
        }
        arrays["grid"] = shown.mass
        head |= self._many(atlas, look, kind, total, low, high, arrays)
        return assemble(head, arrays)

    def _map(self, atlas: Atlas, other: Atlas | Capturing | None, look: Look, region: Region, kind: str):
        base = "logits" if kind == "logits" else "weights"
        drawn = self.tiles.get(atlas, look.layer, look.head, region, look.pool, base)
        if kind != "difference":
            return drawn
        return drawn - self.tiles.get(other.atlas, look.layer, look.head, region, look.pool, base)

    def _range(self, atlas, other, look: Look, kind: str, total: int) -> tuple[float, float]:
        """Between which numbers colours run, over the whole stretch, so that they stay when one moves."""
        if kind == "weights":
            return 0.0, 1.0
        drawn = self._map(atlas, other, look, whole(total, OVERVIEW), kind)
        if kind == "difference":
            most = float(np.nanmax(np.abs(drawn), initial=1e-3))
            return -most, most
        return float(np.nanmin(drawn)), float(np.nanmax(drawn))

    def _texts(self, run: Capturing, region: Region) -> dict[int, str]:
        """How tokens look, where they are large enough to be read."""
        if region.scale > 1:
            return {}
        places = {*range(*region.rows), *range(*region.columns)}
        return {t: run.pieces[t] for t in sorted(places)} if len(places) <= 4096 else {}

    def _cross(self, run: Capturing, look: Look, total: int, arrays: dict) -> dict[str, Any] | None:
        """The row and the column of the token that was pressed."""
        if look.cross is None or max(look.cross) >= total:
            return None
        row, column = look.cross
        scale = -(-total // BARS)
        ways = {
            "from": Region((row, row + 1), (0, total), scale),
            "to": Region((0, total), (column, column + 1), scale),
        }
        for name, region in ways.items():
            arrays[name] = run.atlas.draw(look.layer, look.head, region).ravel()
        names = (f"{run.pieces[t]!r} ({t:,})" for t in (row, column))
        return {"row": row, "column": column, **dict(zip(("row_text", "column_text"), names, strict=True))}

    def _many(self, atlas: Atlas, look: Look, kind: str, total: int, low: float, high: float, arrays: dict):
        """Small maps of all heads of the layer, or of all layers of the head, as far as they are drawn by now."""
        if look.many == "none":
            self.complete = True
            return {"many": [], "many_title": "", "many_scale": 1}
        stretch, region = atlas.stretch, whole(total, SMALL)
        base = "logits" if kind == "logits" else "weights"
        which = (
            [(look.layer, head) for head in range(stretch.heads)]
            if look.many == "heads"
            else [(layer, look.head) for layer in range(stretch.layers)]
        )
        until, shown, self.complete = time.perf_counter() + PATIENCE, [], True
        for i, (layer, head) in enumerate(which):
            known = (atlas, layer, head, region, look.pool, base) in self.tiles
            ready = known or time.perf_counter() < until
            if ready:
                drawn = self.tiles.get(atlas, layer, head, region, look.pool, base)
                span = (low, high) if base == "weights" else (float(np.nanmin(drawn)), float(np.nanmax(drawn)))
                arrays[f"many{i}"] = levels(drawn, base, *span)
            self.complete &= ready
            shown.append({"layer": layer, "head": head, "ready": ready})
        title = f"All heads of layer {look.layer}" if look.many == "heads" else f"Head {look.head} of all layers"
        return {"many": shown, "many_title": title, "many_scale": region.scale}


def whole(total: int, cells: int) -> Region:
    """All of a stretch, in at most so many cells on a side."""
    scale = 1
    while -(-total // scale) > cells:
        scale *= 2
    return Region((0, total), (0, total), scale)


def levels(drawn: NDArray[np.float32], kind: str, low: float, high: float) -> NDArray[np.uint16]:
    """1 … 65535 for what was met, 0 for what was not: weights on a logarithmic scale, all else between two numbers."""
    if kind == "weights":
        return coded(drawn)
    with np.errstate(invalid="ignore"):
        share = np.clip((drawn - low) / max(high - low, FLOOR), 0, 1)
        level = 1 + np.round(share * 65534)
    return np.where(np.isnan(drawn), 0, level).astype(np.uint16)
