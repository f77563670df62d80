"""What a figure is: settings, the numbers that are drawn, and the function that draws them.

`numbers` takes them from a run, a captured stretch or a grid; the drawing function takes them first, draws on the axes
that it is given, returns those, and saves nothing (export.py does).  So what is exported as CSV is exactly what was
drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ..settings import Settings

Numbers = Mapping[str, NDArray]
"""Named arrays; those of one dimension are the columns of a table, and lines with gaps have NaN in them."""


@dataclass(frozen=True)
class Figure(Settings):
    """A figure for a paper."""

    needs: ClassVar[str]
    """What its numbers come from: run, stretch, grid or trainings."""
    height: ClassVar[float] = 0.62
    """As a share of the width."""

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
    return ax.figure.colorbar(mappable, ax=ax, label=label, fraction=0.045, pad=0.02)


def thinned(y: NDArray[np.floating], points: int = 1200) -> NDArray[np.int64]:
    """Places of a curve that are drawn: its extremes survive."""
    from ..metrics import decimate

    return decimate(y, points)
