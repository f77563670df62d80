"""A figure as it stands on a page: drawn, set out, and made into a PDF, SVG, PNG, CSV or NPZ file.

matplotlib's settings belong to the whole process, so one figure is drawn at a time, under settings of its own from
beginning to end.  Where files lie and where numbers come from is not known here.
"""

import io
import json
import re
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Sheet
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator
from numpy.typing import NDArray

from ..tables import as_csv, as_text
from .base import Figure, Numbers
from .drawing import hanging, lay_out, sheet_of
from .fonts import absent, families, visible

WIDTHS = {"neurips": 5.5, "iclr": 5.5, "icml": 3.25, "acl": 3.03, "ieee": 3.5, "slides": 13.333}
"""Inches of a column or, at NeurIPS and ICLR, of the text; slides are 16:9."""
POINTS = {"slides": 14.0}
"""Size of text where none is chosen; 8 on pages."""
HIGHEST = {"slides": 7.5}
PAGE = 9.0
"""Inches that a figure may be high: on a slide, and on any other page."""
KINDS = ("pdf", "svg", "png", "csv", "npz")
STYLE = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "sinkscope",
    "text.parse_math": False,
    "text.hinting": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.1,
    "legend.handlelength": 2.6,
}
"""Text stays text, is never mathematics, and is as wide in every kind of file; ids in SVG files do not change."""
EDGES = {"axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6}
"""Points of lines that are no curves."""
_DRAWING = threading.RLock()


def usual_points(venue: str) -> float:
    """Size of the text of figures there, in points: a slide is read from farther away than a page."""
    return POINTS.get(venue, 8.0)


@dataclass(frozen=True)
class Layout:
    """Where a figure is to stand."""

    venue: str = "neurips"
    points: float | None = None
    """Size of its text; None: what is usual there."""
    dpi: int = 300
    """Of PNG files, and of pictures inside the others."""

    def __post_init__(self) -> None:
        if self.venue not in WIDTHS:
            raise ValueError(f"there is no venue {self.venue!r}; choose one of: {', '.join(WIDTHS)}")
        if not 4 <= self.text_size <= 40:
            raise ValueError(f"points must be 4 to 40, not {self.text_size:g}")
        if not 50 <= self.dpi <= 1200:
            raise ValueError(f"dpi must be 50 to 1,200, not {self.dpi}")

    @property
    def text_size(self) -> float:
        """Size of its text in points."""
        return usual_points(self.venue) if self.points is None else self.points

    @property
    def thickness(self) -> float:
        """Of lines and markers, times that on pages: as text that is usual there is."""
        return usual_points(self.venue) / usual_points("neurips")

    def size(self, figure: Figure) -> tuple[float, float]:
        """Width and height in inches; but for slides, names of lines and lines of text may make it higher."""
        width = WIDTHS[self.venue]
        return width, HIGHEST.get(self.venue, max(width * figure.share, figure.least))


@contextmanager
def drawn(figure: Figure, data: Numbers, layout: Layout) -> Generator[Sheet]:
    """The figure, drawn, with everything in its place; saved while this is open, it looks as it was measured.

    Whoever else draws waits.  Raises ValueError where the page is too small for it.
    """
    with _settings(layout, words(data)):
        sheet = Sheet(figsize=layout.size(figure), layout="compressed", dpi=layout.dpi)
        try:
            ax = figure.draw(data, ax=sheet.subplots())
            _thicken(ax, layout.thickness)
            for text in _words(sheet):
                text.set_text("\n".join(map(visible, text.get_text().split("\n"))))
            _make_room(ax, layout)
            lay_out(sheet)
            while (below := -min((t.get_window_extent().y0 for t in hanging(ax)), default=0)) > 0.3:
                # What was laid out above the lines pushed them down.
                _grow(sheet, below / sheet.dpi, layout)
                lay_out(sheet)
        except UserWarning as e:
            raise ValueError(
                f"text of {layout.text_size:g} points leaves no room for the drawing on a page of {layout.venue}: "
                "choose fewer points"
            ) from e
        # What was measured stays so.
        sheet.set_layout_engine("none")
        for axis in (a for ax in sheet.axes for a in (ax.xaxis, ax.yaxis)):
            _thin(axis)
        yield sheet


@contextmanager
def _settings(layout: Layout, texts: Iterable[str]) -> Generator[None]:
    """matplotlib's own settings, but for what a page asks for."""
    small = {f"{part}.labelsize": layout.text_size * 0.9 for part in ("xtick", "ytick")}
    sizes = {"font.size": layout.text_size, "legend.fontsize": layout.text_size * 0.9, **small}
    with _DRAWING, matplotlib.rc_context(), warnings.catch_warnings():
        # Which characters no font has is said in one sentence (`missing`).
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        warnings.filterwarnings("error", "constrained_layout not applied")
        matplotlib.rcdefaults()
        edges = {name: width * layout.thickness for name, width in EDGES.items()}
        matplotlib.rcParams.update({**STYLE, **sizes, **edges})  # ty: ignore[no-matching-overload]
        matplotlib.rcParams["font.family"] = families(visible("".join(texts)))
        yield


def _thicken(ax: Axes, times: float) -> None:
    """Make curves, markers and edges of areas so many times as thick, on the axes and in their legend."""
    legend = ax.get_legend()
    for line in [*ax.lines, *(legend.get_lines() if legend else ())]:
        thick = line.get_linewidth(), line.get_markersize(), line.get_markeredgewidth()
        line.set(**dict(zip(("linewidth", "markersize", "markeredgewidth"), (times * n for n in thick), strict=True)))
    for drawn in ax.collections:
        drawn.set_linewidth((times * np.ravel(drawn.get_linewidth())).tolist())


def _words(sheet: Sheet) -> Iterator[Text]:
    """Everything written but for numbers at ticks."""
    for ax in sheet.axes:
        yield from (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts)
        if legend := ax.get_legend():
            yield from legend.get_texts()


def _make_room(ax: Axes, layout: Layout) -> None:
    """Make the page higher by names above the axes, and by lines of text that reach below them."""
    legend, (bottom, top) = ax.get_legend(), ax.get_window_extent().intervaly
    above = [t.get_window_extent().y1 - top for t in ax.texts if t.get_in_layout()]
    lines = legend.get_window_extent().height if legend else 0.0
    names = max(lines, *above, 0.0) if layout.venue not in HIGHEST else 0.0
    below = max((bottom - t.get_window_extent().y0 for t in hanging(ax)), default=0.0)
    sheet = sheet_of(ax)
    _grow(sheet, (names + max(0.0, below)) / sheet.dpi, layout)


def _grow(sheet: Sheet, inches: float, layout: Layout) -> None:
    """Make the page higher.  Raises ValueError where it would be higher than pages are."""
    width, height = sheet.get_size_inches()
    needed = height + inches
    if needed > (most := HIGHEST.get(layout.venue, PAGE)):
        raise ValueError(
            f"this figure would be {needed:.1f} inches high, and a page of {layout.venue} has {most:g}: choose fewer "
            "points, or fewer tokens of a text"
        )
    sheet.set_size_inches(width, needed)


def _thin(axis: Axis) -> None:
    """Leave out numbers at the ticks that would touch others; of two, that of a smaller step goes."""
    upright = axis.axis_name == "y"  # ty: ignore[missing-attribute]
    kept: list[tuple[float, float]] = []
    for minor in (False, True):
        ticks = axis.get_minor_ticks() if minor else axis.get_major_ticks()
        low, high = sorted(axis.get_view_interval())
        labels, changed = [], False
        for tick in ticks:
            label = tick.label1
            text = label.get_text()
            if text and low <= tick.get_loc() <= high and label.get_visible():
                box = label.get_window_extent()
                span = (box.y0, box.y1) if upright else (box.x0 - 2, box.x1 + 2)
                if any(span[0] < b and a < span[1] for a, b in kept):
                    text, changed = "", True
                else:
                    kept.append(span)
            labels.append((tick.get_loc(), text))
        if changed:
            offset = axis.get_major_formatter().get_offset()
            formatter = FixedFormatter([text for _, text in labels])
            if not minor:
                formatter.set_offset_string(offset)
            (axis.set_minor_locator if minor else axis.set_major_locator)(FixedLocator([at for at, _ in labels]))
            (axis.set_minor_formatter if minor else axis.set_major_formatter)(formatter)


def words(data: Numbers) -> list[str]:
    """Texts among the numbers of a figure."""
    return [
        text for array in data.values() if np.asarray(array).dtype.kind in "UO" for text in np.unique(array).tolist()
    ]


def missing(data: Numbers) -> str:
    """A sentence on characters of a figure that no font of this machine has; empty where it has them all."""
    return absent(words(data))


def rendered(figure: Figure, data: Numbers, kind: str, layout: Layout, about: Mapping[str, Any]) -> bytes:
    """The file's bytes; `kind`: one of KINDS.  Raises ValueError where the page is too small for it."""
    if kind == "csv":
        return table(data).encode(errors="backslashreplace")
    if kind == "npz":
        out = io.BytesIO()
        np.savez_compressed(out, allow_pickle=False, **data)
        return out.getvalue()
    with drawn(figure, data, layout) as sheet:
        return saved(sheet, figure.title, kind, about)


def saved(sheet: Sheet, title: str, kind: str, about: Mapping[str, Any]) -> bytes:
    """A drawn figure as PDF, SVG or PNG, which says what it is about."""
    out, subject = io.BytesIO(), json.dumps(about, sort_keys=True)
    metadata = {
        "pdf": {"Title": title, "Subject": subject, "Creator": "Sinkscope", "CreationDate": None},
        "svg": {"Title": title, "Description": subject, "Creator": "Sinkscope", "Date": None},
        "png": {"Title": title, "Description": subject, "Software": "Sinkscope"},
    }[kind]
    sheet.savefig(out, format=kind, dpi=sheet.dpi, metadata=metadata)
    return _spaced(out.getvalue()) if kind == "svg" else out.getvalue()


def _spaced(svg: bytes) -> bytes:
    """Keep every space of every text; runs of text keep their direction and, whatever the fonts, their width."""
    text = svg.decode().replace('<text style="', '<text xml:space="preserve" style="white-space: pre; ')
    return re.sub(
        r'<g id="(left|right)wards-([\d.]+)">(\s*)<text ([^>]*?)text-anchor: start',
        lambda found: (
            f'<g>{found[3]}<text textLength="{found[2]}" lengthAdjust="spacingAndGlyphs" {found[4]}'
            + ("direction: rtl; text-anchor: end" if found[1] == "left" else "text-anchor: start")
        ),
        text,
    ).encode()


def table(data: Numbers) -> str:
    """Numbers as CSV: columns of one length as they are, or a row for each number of the array of more dimensions."""
    arrays = {name: np.asarray(a) for name, a in data.items()}
    matrix = next((name for name, a in arrays.items() if a.ndim > 1), None)
    if matrix is None:
        columns = [np.atleast_1d(a).tolist() for a in arrays.values()]
        return as_csv(list(arrays), ([_cell(x) for x in row] for row in zip(*columns, strict=True)))
    sides = _sides(arrays, matrix)
    rows = (
        [*(str(side[i]) for side, i in zip(sides.values(), at, strict=True)), _cell(x)]
        for at, x in np.ndenumerate(arrays[matrix])
    )
    return as_csv([*sides, matrix], rows)


def _sides(arrays: Mapping[str, NDArray], name: str) -> dict[str, NDArray]:
    """What an array of more dimensions has along each of them: of a cell of a map, the first of its tokens."""
    *places, down, across = (np.arange(n) for n in arrays[name].shape)
    if name == "mass":
        return {"layer": down, "head": across}
    first, scale = (np.asarray(arrays.get(of, usual)) for of, usual in (("begin", 0), ("scale", 1)))
    # Of a grid of maps, by layer and head, or of a row of them, by layer.
    sides = {of.removesuffix("s"): arrays[of] for of, _ in zip(("layers", "heads"), places, strict=False)}
    return sides | {"query": first + scale * down, "key": first + scale * across}


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return as_text(value)
    # Numbers of a map are numpy's own.
    return "" if value != value else str(value)
