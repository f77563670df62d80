"""What figures have in common on the axes: colour bar, legend, ticks in decades and octaves, and labels that fit."""

import math
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from .fonts import families, shaped, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure as Sheet
    from matplotlib.legend import Legend
    from matplotlib.text import Text

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DIMMEST = 1e-4
"""The attention weight that has the first colour, as all smaller ones do."""


def axes(ax: "Axes | None") -> "Axes":
    """These axes, or those of the current figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.gca()


def sheet_of(ax: "Axes") -> "Sheet":
    """The figure that axes stand in."""
    figure = ax.get_figure(root=True)
    assert figure is not None, "axes stand in a figure"
    return figure


def colour_bar(ax: "Axes", mappable: "ScalarMappable", label: str) -> "Colorbar":
    """A colour bar beside the axes, as thin as the others."""
    return sheet_of(ax).colorbar(mappable, ax=ax, label=label, fraction=0.045, pad=0.02, aspect=30)


def decades(axis: "Axis", least: float = 0) -> None:
    """Powers of ten at the ticks of a logarithmic axis, as text: 10⁻³; `least` stands for all that is smaller, too."""
    from matplotlib.ticker import NullFormatter

    def text(x: float, _: float) -> str:
        power = f"10{f'{round(math.log10(x))}'.translate(SUPERSCRIPT)}" if x > 0 else ""
        return f"≤ {power}" if math.isclose(x, least) else power

    axis.set_major_formatter(text)
    axis.set_minor_formatter(NullFormatter())


def logarithmic(axis: "Axis") -> None:
    """Numbers at the ticks of a logarithmic axis that may show few decades, or less than one."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    axis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.1e}"[0] in "235" else "")
    low, high = axis.get_view_interval()
    if high < 4 * low:
        # Too little of a decade for its own ticks.
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())


def whole_numbers(axis: "Axis") -> None:
    """No tick between two layers, tokens or steps, however few there are."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def octaves(axis: "Axis", least: int = 2) -> None:
    """Powers of two at the ticks of a logarithmic axis, or evenly spaced numbers where it has fewer than `least`."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    low, high = np.log2(axis.get_view_interval())
    even = np.floor(high) - np.ceil(low) + 1 < least
    if even:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda x, _: f"{x:,g}" if even or x >= 1 else f"{x:.3g}")


def legend(ax: "Axes") -> "Legend":
    """A legend above the axes, where it covers no line, in as many columns as there is room for."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    _mark_lonely_points(ax)
    handles, labels = ax.get_legend_handles_labels()
    size = FontProperties(size=rcParams["legend.fontsize"]).get_size_in_points()
    # The line itself, the gap behind it and the one before the next column, in sizes of the text.
    beside = (rcParams["legend.handlelength"] + 2.2) * size
    # Less than the axes are wide now: their own labels take some of that.
    room = 0.78 * ax.get_window_extent().width / ax.figure.dpi * 72
    named = [wrapped(label, room - beside, size) for label in labels]
    widest = max((text_width(line, size) for label in named for line in label.split("\n")), default=0.0)
    return ax.legend(
        handles, named, loc="lower left", bbox_to_anchor=(0, 1), ncols=max(1, int(room // (widest + beside))),
        frameon=False, borderaxespad=0.3, borderpad=0.2, handletextpad=0.6, columnspacing=1.4,
    )  # fmt: skip


def _mark_lonely_points(ax: "Axes") -> None:
    """Give a marker to points between which and the next there is no line: they would be seen nowhere."""
    for line in ax.lines:
        known = np.isfinite(np.asarray(line.get_ydata(), float))
        beside = np.pad(known, 1)
        if (lonely := np.flatnonzero(known & ~beside[:-2] & ~beside[2:])).size and line.get_marker() in ("", "None"):
            line.set(marker=".", markevery=lonely.tolist())


def text_width(text: str, size: float) -> float:
    """Width of a line of text in points, in letters of so many points."""
    return shaped(text, tuple(families(text)), size)[1]


def wrapped(text: str, room: float, size: float, most: int = 3) -> str:
    """A text in at most so many lines of at most `room` points; an ellipsis stands for what has no room."""
    lines: list[str] = [""]
    for word in visible(text).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    whole = len(lines) <= most
    lines = [_cut(line, room, size) for line in lines[:most]]
    if not whole:
        lines[-1] = _cut(f"{lines[-1].removesuffix('…')} …", room, size)
    return "\n".join(lines)


def _cut(line: str, room: float, size: float) -> str:
    if text_width(line, size) <= room:
        return line
    fits = max(1, bisect_right(range(1, len(line)), room, key=lambda n: text_width(f"{line[:n]}…", size)))
    return f"{line[:fits].rstrip()}…"


def lay_out(figure: "Sheet") -> None:
    """Lay a figure out, with labels in as many lines as their axes are too short for."""
    # One that is longer than the page would leave the layout no room for anything.
    _wrap_labels(figure)
    _run_layout(figure)
    if _wrap_labels(figure):
        _run_layout(figure)


def _wrap_labels(figure: "Sheet") -> bool:
    """Break labels that are longer than their axes are now; whether there were any."""
    changed = False
    for ax in figure.axes:
        for label, side in ((ax.xaxis.label, "width"), (ax.yaxis.label, "height")):
            room = getattr(ax.get_window_extent(), side) / figure.dpi * 72
            size = float(label.get_fontsize())
            if any(text_width(line, size) > room for line in label.get_text().split("\n")):
                label.set_text(wrapped(label.get_text().replace("\n", " "), room, size))
                changed = True
    return changed


def hanging(ax: "Axes") -> "list[Text]":
    """Lines of text that hang from the top of the axes and may reach below them: they have no part in the layout."""
    return [text for text in ax.texts if not text.get_in_layout()]


def _run_layout(figure: "Sheet") -> None:
    """Lay out until nothing leaves the page: with the length of an axis its ticks change, and so the room they need."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = figure.get_layout_engine()
    if not isinstance(engine, ConstrainedLayoutEngine):
        return
    page, inside = figure.bbox, np.array([0.0, 0.0, 1.0, 1.0])
    # What was taken off the sides for a label that has been broken since is free again.
    engine.set(rect=(0, 0, 1, 1))
    for again in range(6):
        engine.execute(figure)
        boxes = [box.extents for ax in figure.axes if (box := ax.get_tightbbox()) is not None]
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
