"""What the atlas is sent: the part of a map that is on screen, in one piece of bytes.  No Streamlit in here."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from analysis import texts
from analysis.maps.atlas import Atlas
from analysis.maps.region import Region
from analysis.maps.stretch import Stretch
from analysis.runs.codec import FLOOR, LEVELS, TOP, assemble, levels_of

from ..jobs.capture import CaptureJob
from .lanes import SINK_TOKENS

MAX_BYTES = 64 * 2**20
"""Of maps that are kept, so that a part that was on screen comes back at once."""
SMALL = 104
"""Cells on a side of a small map, at most."""
BARS = 512
"""Bars of the rows and columns of one token, at most."""
PATIENCE = 0.25
"""Seconds of a frame that small maps may take."""
OVERVIEW = 512
"""Cells on a side of the map of a whole stretch, at most, from which the range of colours is taken."""
SHOWN = 0.75
"""The head that is shown at first gives its first tokens about so much: enough to see, and not all."""
SHOWS = 0.2
"""A head that gives them so much more or less still shows its sink."""
MANY = ("none", "heads", "layers")


@dataclass
class AtlasView:
    """What one person sees of an atlas, and how it is drawn."""

    layer: int = 0
    head: int = 0
    picked: bool = False
    """Whether a person chose this head."""
    kind: str = "weights"
    pool: str = "max"
    colour: str = "logarithmic"
    many: str = "none"
    region: Region | None = None
    place: tuple[int, int, int] | None = None
    """The part that is looked at: its first row and column, and how many tokens; none where all is."""
    cross: tuple[int, int] | None = None

    def open(self, stretch: Stretch) -> list[str]:
        """Begin with a stretch: with the head on screen, where a person chose it or its sink shows here too;
        else with one whose sink does.  Returns what was looked at and is not there."""
        there, lost = self.layer < stretch.layers and self.head < stretch.heads, []
        if self.cross and max(self.cross) >= stretch.tokens:
            lost.append(f"the stretch has {stretch.tokens:,} tokens, and not {max(self.cross):,}")
            self.cross = None
        if self.place and max(self.place) > stretch.tokens:
            lost.append(f"the stretch has {stretch.tokens:,} tokens, and no place at {max(self.place):,}")
            self.place = None
        if self.picked and not there:
            last = f"{stretch.layers - 1}.{stretch.heads - 1}"
            lost.append(f"its heads are 0.0 to {last}, and not {self.layer}.{self.head}")
        far = np.abs(stretch.mass - SHOWN)
        if not there or not (self.picked or far[self.layer, self.head] < SHOWS):
            self.picked = False
            self.layer, self.head = divmod(int(far.argmin()), stretch.heads)
        return lost


class Tiles:
    """Maps that were drawn, up to a bound; those that were used longest ago go.

    The atlas of a map is no more than referred to, since it holds a model.  Its id would not do: another may have it
    once the atlas is freed.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple, NDArray[np.float32]] = OrderedDict()
        self._bytes = 0

    def get(self, atlas: Atlas, layer: int, head: int, region: Region, pool: str, kind: str) -> NDArray[np.float32]:
        """A map [queries, keys] of a region, drawn once."""
        key = (ref(atlas), layer, head, region, pool, kind)
        return self._get(key, lambda: atlas.draw(layer, head, region, pool=pool, kind=kind))

    def first(self, atlas: Atlas, layer: int, head: int, region: Region, pool: str, kind: str) -> NDArray[np.float32]:
        """What the queries of a region gave to each of the first tokens."""
        key = (ref(atlas), layer, head, region.rows, region.scale, pool, kind)
        return self._get(key, lambda: atlas.first(layer, head, region.rows, region.scale, pool=pool, kind=kind))

    def _get(self, key: tuple, draw: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        if key not in self._kept:
            self._kept[key] = draw()
            self._bytes += self._kept[key].nbytes
            while self._bytes > MAX_BYTES and len(self._kept) > 1:
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
    _spans: dict[tuple, tuple[float, float]] = field(default_factory=dict)
    """Between which numbers colours run, of what is no weight."""

    def frame(self, run: CaptureJob, other: CaptureJob | None, view: AtlasView) -> bytes:
        """What is on screen; `other`: a stretch to compare with."""
        self._seq += 1
        atlas, arrays = run.opened, {}
        total = atlas.stretch.tokens if other is None else min(atlas.stretch.tokens, other.opened.stretch.tokens)
        region = view.region
        if region is None or max(region.rows[1], region.columns[1]) > total:
            region = Region.square(0, total, OVERVIEW)
        kind = view.kind if view.kind != "difference" or other is not None else "weights"
        minus = other.opened if other is not None and kind == "difference" else None
        shown = {"map": self._drawn(self.tiles.get, atlas, minus, view, region, kind)}
        shown["first"] = self._drawn(self.tiles.first, atlas, minus, view, region, kind)
        headings = [atlas.stretch.label]
        if other is not None:
            headings = called([run, other])
        if minus is not None:
            headings = [" minus ".join(headings)]
        elif other is not None:
            shown["other"] = self._drawn(self.tiles.get, other.opened, None, view, region, kind)
            shown["other_first"] = self._drawn(self.tiles.first, other.opened, None, view, region, kind)
        low, high = self._range(atlas, other, view, kind, total, shown)
        arrays |= {name: levels(drawn, kind, low, high) for name, drawn in shown.items()}
        stretch = atlas.stretch
        head: dict[str, Any] = {
            "run": f"{run.id}{other.id if other else ''}",
            "published": self._seq,
            "tile": self._seq,
            "total": total,
            "constants": {"levels": LEVELS, "sink_tokens": SINK_TOKENS},
            "layer": view.layer,
            "head": [view.layer, view.head],
            "kind": kind,
            "pool": view.pool,
            "colour": view.colour,
            "low": low,
            "high": high,
            "region": {"rows": region.rows, "columns": region.columns, "scale": region.scale},
            "place": view.place,
            "title": f"Layer {view.layer}, head {view.head}",
            "headings": headings,
            "texts": self._texts(run, region),
            "firsts": run.pieces[: shown["first"].shape[1]],
            "chosen": 0,
            "lanes": [{"label": stretch.label}],
            "cross": self._cross(run, other, view, total, arrays),
        }
        arrays["grid"] = stretch.mass
        head |= self._many(atlas, minus, view, kind, total, (low, high), arrays)
        return assemble(head, arrays)

    @staticmethod
    def _drawn(
        draw: Callable[..., NDArray[np.float32]],
        atlas: Atlas,
        minus: Atlas | None,
        view: AtlasView,
        region: Region,
        kind: str,
    ) -> NDArray[np.float32]:
        """A map, or what it has more than the same one of another stretch."""
        what = view.layer, view.head, region, view.pool, "logits" if kind == "logits" else "weights"
        return draw(atlas, *what) if minus is None else draw(atlas, *what) - draw(minus, *what)

    def _range(
        self, atlas: Atlas, other: CaptureJob | None, view: AtlasView, kind: str, total: int, shown: dict[str, NDArray]
    ) -> tuple[float, float]:
        """Between which numbers colours run: over the whole stretch, so that they stay when one moves, and further
        where a part drawn larger has more."""
        if kind == "weights":
            return 0.0, 1.0
        key = (ref(atlas), other and other.id, kind, view.layer, view.head, view.pool)
        if key not in self._spans:
            minus = other.opened if other is not None and kind == "difference" else None
            overview = self._drawn(self.tiles.get, atlas, minus, view, Region.square(0, total, OVERVIEW), kind)
            self._spans = {key: span(overview, kind)}
        found = [self._spans[key], *(span(drawn, kind) for drawn in shown.values())]
        self._spans[key] = min(low for low, _ in found), max(high for _, high in found)
        return self._spans[key]

    def _texts(self, run: CaptureJob, region: Region) -> dict[int, str]:
        """The texts of tokens, where these are large enough on screen to be read."""
        if region.scale > 1:
            return {}
        places = {*range(*region.rows), *range(*region.columns)}
        return {t: run.pieces[t] for t in sorted(places)} if len(places) <= 4096 else {}

    def _cross(
        self, run: CaptureJob, other: CaptureJob | None, view: AtlasView, total: int, arrays: dict
    ) -> dict[str, Any] | None:
        """The row and the column of the token that was pressed, and of which stretch they are, where there are two."""
        if view.cross is None or max(view.cross) >= total:
            return None
        row, column = view.cross
        scale = -(-total // BARS)
        ways = {
            "from": Region((row, row + 1), (0, total), scale),
            "to": Region((0, total), (column, column + 1), scale),
        }
        for name, region in ways.items():
            arrays[name] = run.opened.draw(view.layer, view.head, region).ravel()
        names = (f"{run.pieces[t]!r} ({t:,})" for t in (row, column))
        texts = dict(zip(("row_text", "column_text"), names, strict=True))
        of = called([run, other])[0] if other is not None else ""
        return {"row": row, "column": column, "of": of, "tokens": scale, **texts}

    def _many(
        self,
        atlas: Atlas,
        minus: Atlas | None,
        view: AtlasView,
        kind: str,
        total: int,
        weights: tuple[float, float],
        arrays: dict,
    ) -> dict[str, Any]:
        """Small maps of all heads of the layer, or of all layers of the head, as far as they are drawn by now."""
        if view.many == "none":
            self.complete = True
            return {"many": [], "many_title": "", "many_scale": 1}
        stretch, region = atlas.stretch, Region.square(0, total, SMALL)
        base, compared = "logits" if kind == "logits" else "weights", [atlas] if minus is None else [atlas, minus]
        which = (
            [(view.layer, head) for head in range(stretch.heads)]
            if view.many == "heads"
            else [(layer, view.head) for layer in range(stretch.layers)]
        )
        until, shown, self.complete = time.perf_counter() + PATIENCE, [], True
        for i, (layer, head) in enumerate(which):
            known = all((ref(a), layer, head, region, view.pool, base) in self.tiles for a in compared)
            ready = known or time.perf_counter() < until
            if ready:
                drawn = self._drawn(self.tiles.get, atlas, minus, replace(view, layer=layer, head=head), region, kind)
                arrays[f"many{i}"] = levels(drawn, kind, *(weights if kind == "weights" else span(drawn, kind)))
            self.complete &= ready
            shown.append({"layer": layer, "head": head, "ready": ready})
        title = f"All heads of layer {view.layer}" if view.many == "heads" else f"Head {view.head} of all layers"
        return {"many": shown, "many_title": title, "many_scale": region.scale}


def called(runs: Sequence[CaptureJob]) -> list[str]:
    """A name for each stretch, no two alike: policy, text and tokens, and what else tells it from those that have the
    same."""
    stretches = [run.opened.stretch for run in runs]
    found = [
        f"{of.label}, {texts.titled(run.spec.text)}, {of.tokens:,} tokens"
        for run, of in zip(runs, stretches, strict=True)
    ]
    particulars = (
        lambda run: run.spec.policies[0],
        lambda run: run.spec.model,
        lambda run: run.begins,
        lambda run: run.spec.arithmetic,
    )
    for particular in particulars:
        for name in {name for name in found if found.count(name) > 1}:
            same = {i: particular(runs[i]) for i, other in enumerate(found) if other == name}
            if len(set(same.values())) > 1:
                for i, what in same.items():
                    found[i] += f", {what}"
    return [name if (again := found[:i].count(name)) == 0 else f"{name} ({again + 1})" for i, name in enumerate(found)]


def span(drawn: NDArray[np.float32], kind: str) -> tuple[float, float]:
    """The least and the largest number of a map; of a difference, as far below zero as above."""
    met = drawn[~np.isnan(drawn)]
    if kind == "difference":
        most = float(np.abs(met).max(initial=1e-3))
        return -most, most
    return (float(met.min()), float(met.max())) if len(met) else (0.0, 1.0)


def levels(drawn: NDArray[np.float32], kind: str, low: float, high: float) -> NDArray[np.uint16]:
    """1 … TOP for what was met, 0 for what was not: weights on a logarithmic scale, all else between two numbers."""
    if kind == "weights":
        return levels_of(drawn)
    with np.errstate(invalid="ignore"):
        share = np.clip((drawn - low) / max(high - low, FLOOR), 0, 1)
        level = 1 + np.round(share * (TOP - 1))
    return np.where(np.isnan(drawn), 0, level).astype(np.uint16)
