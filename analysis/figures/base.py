"""What a figure is: settings, the numbers that are drawn, and the function that draws them.

`numbers` takes them from a run, a captured stretch or a grid; the drawing function takes them first, draws on the axes
that it is given, returns those, and saves nothing (export.py does).  So what is exported as CSV is exactly what was
drawn.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Sheet
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from ..settings import Settings
from .lettering import families, shaped, visible

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Numbers = Mapping[str, NDArray]
"""Named arrays; those of one dimension are the columns of a table, and lines with gaps have NaN in them."""


@dataclass(frozen=True)
class Figure(Settings):
    """A figure for a paper."""

    needs: ClassVar[str]
    """What its numbers come from: run, stretch, grid or trainings."""
    height: ClassVar[float] = 0.62
    """As a share of the width; names of lines, and lines of text, that need more room are given it."""

    def on(self, source: Any) -> Self:
        """The same figure, with what its settings leave open filled in from the source."""
        return self

    def numbers(self, source: Any) -> Numbers:
        """What is drawn.  Raises ValueError where the source does not have it."""
        raise NotImplementedError

    def draw(self, data: Numbers, *, ax: Axes | None = None) -> Axes:
        raise NotImplementedError


def strongest(mass: NDArray, layer: int, head: int) -> tuple[int, int]:
    """A head, of which −1 leaves layer or number open: then the one that gives most to the first tokens.

    `mass` [layers, heads]: the sink mass of every head.
    """
    open_to = np.full(mass.shape, -np.inf)
    chosen = tuple(slice(None) if n < 0 else slice(n, n + 1) for n in (layer, head))
    open_to[chosen] = mass[chosen]
    if not np.isfinite(open_to).any():
        # There is no such head, which whoever draws it says.
        return max(layer, 0), max(head, 0)
    return tuple(int(n) for n in np.unravel_index(open_to.argmax(), mass.shape))


def spread(written: str, count: int, most: int) -> str:
    """Numbers as they are written; `auto`: at most so many of `count`, evenly from the first to the last."""
    if written != "auto":
        return written
    return " ".join(map(str, np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))))


def axes(ax: Axes | None) -> Axes:
    """These axes, or those of the current figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.gca()


def bar(ax: Axes, mappable, label: str):
    """A colour bar beside the axes, as thin as the others."""
    return ax.figure.colorbar(mappable, ax=ax, label=label, fraction=0.045, pad=0.02, aspect=30)


def decades(axis: Axis) -> None:
    """Powers of ten at the ticks of a logarithmic axis, as text: 10⁻³."""
    axis.set_major_formatter(lambda x, _: f"10{f'{round(math.log10(x))}'.translate(RAISED)}" if x > 0 else "")
    axis.set_minor_formatter(NullFormatter())


def legend(ax: Axes) -> Legend:
    """What each line is, above the axes, where it covers none; in as many columns as there is room for."""
    handles, labels = ax.get_legend_handles_labels()
    size = FontProperties(size=rcParams["legend.fontsize"]).get_size_in_points()
    # The line itself, the gap behind it and the one before the next column, in sizes of the text.
    beside = (rcParams["legend.handlelength"] + 2.2) * size
    # Less than the axes are wide now: their own labels take some of that.
    room = 0.78 * ax.get_window_extent().width / ax.figure.dpi * 72
    named = [wrapped(label, room - beside, size) for label in labels]
    widest = max((measured(line, size) for label in named for line in label.split("\n")), default=0.0)
    return ax.legend(
        handles, named, loc="lower left", bbox_to_anchor=(0, 1), ncols=max(1, int(room // (widest + beside))),
        frameon=False, borderaxespad=0.3, borderpad=0.2, handletextpad=0.6, columnspacing=1.4,
    )  # fmt: skip


def measured(text: str, size: float) -> float:
    """Width in points of a line of text."""
    return shaped(text, tuple(families(text)), size)[1]


def wrapped(text: str, room: float, size: float, most: int = 3) -> str:
    """A text in lines of at most so many points, and at most so many lines; an ellipsis stands for the rest."""
    lines: list[str] = [""]
    for word in visible(text).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and measured(longer, size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    whole = len(lines) <= most
    lines = [_cut(line, room, size) for line in lines[:most]]
    if not whole:
        lines[-1] = _cut(f"{lines[-1].removesuffix('…')} …", room, size)
    return "\n".join(lines)


def _cut(line: str, room: float, size: float) -> str:
    if measured(line, size) <= room:
        return line
    fits = max(1, bisect_right(range(1, len(line)), room, key=lambda n: measured(f"{line[:n]}…", size)))
    return f"{line[:fits].rstrip()}…"


def settle(figure: Sheet) -> None:
    """Give everything its place, with labels in as many lines as their axes are too short for."""
    _placed(figure)
    changed = False
    for ax in figure.axes:
        for label, side in ((ax.xaxis.label, "width"), (ax.yaxis.label, "height")):
            room = getattr(ax.get_window_extent(), side) / figure.dpi * 72
            size = label.get_fontsize()
            if any(measured(line, size) > room for line in label.get_text().split("\n")):
                label.set_text(wrapped(label.get_text().replace("\n", " "), room, size))
                changed = True
    if changed:
        _placed(figure)


def hanging(ax: Axes) -> list[Text]:
    """Lines of text that hang from the top of the axes and may reach below them: they have no part in the layout."""
    return [text for text in ax.texts if not text.get_in_layout()]


def _placed(figure: Sheet) -> None:
    """Lay out until nothing leaves the page: numbers at ticks, and so their room, change with the length of an axis."""
    if (engine := figure.get_layout_engine()) is None:
        return
    page, inside = figure.bbox, np.array([0.0, 0.0, 1.0, 1.0])
    for again in range(6):
        engine.execute(figure)
        boxes = [ax.get_tightbbox().extents for ax in figure.axes]
        low, high = np.min(boxes, 0)[:2], np.max(boxes, 0)[2:]
        # Lines of text hang from the top of their axes: marks on the first may stand above it.
        high[1] = max(high[1], *(t.get_window_extent().y1 for ax in figure.axes for t in hanging(ax)), 0)
        over = np.concatenate([np.maximum(0, -low), np.maximum(0, high - page.extents[2:])])
        if over.max() < 0.3:
            return
        if again:
            # What the engine did not foresee is taken off the sides.
            inside += over / np.tile(page.size, 2) * [1, 1, -1, -1]
            engine.set(rect=(*inside[:2], *(inside[2:] - inside[:2])))


def thinned(y: NDArray[np.floating], points: int = 1200) -> NDArray[np.int64]:
    """Places of a curve that are drawn: its extremes survive."""
    from ..metrics import decimate

    return decimate(y, points)
