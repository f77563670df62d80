"""What a figure is: settings, the numbers that are drawn, and the function that draws them.

`numbers` takes them from a run, a captured stretch, a grid or a map of recall; the drawing function takes them first,
draws on the axes that it is given, returns those, and saves nothing (export.py does).  So what is exported as CSV is
exactly what was drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..settings import Settings, setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = Mapping[str, NDArray]
"""Named arrays; those of one dimension are the columns of a table, and lines with gaps have NaN in them."""
POINTS = 1200
"""Points of a curve that are drawn, at most."""


@dataclass(frozen=True)
class Figure(Settings):
    """A figure for a paper."""

    needs: ClassVar[str]
    """What its numbers come from: run, stretch, grid, trainings, recall or verdict."""
    height: ClassVar[float] = 0.62
    """As a share of the width; names of lines, and lines of text, that need more room are given it."""
    least: ClassVar[float] = 0.0
    """Inches that it is high, at least: labels take as much of a narrow page as of a wide one."""

    def resolved(self, source: Any) -> Self:
        """The same figure, with what its settings leave open chosen by what the source holds."""
        return self

    @property
    def share(self) -> float:
        """Its height over its width with these settings."""
        return self.height

    @property
    def idle(self) -> tuple[str, ...]:
        """Settings that change nothing beside the others, which no caption tells."""
        return ()

    @property
    def task(self) -> str:
        """The task of recall that is drawn; empty where that is what texts were read for."""
        return ""

    def seen(self) -> str:
        """What is drawn with these settings, as a caption begins."""
        return self.told(" ".join((self.__doc__ or "").split("\n\n")[0].split()).replace("`", "").rstrip("."))

    def told(self, shown: str) -> str:
        """The title, a sentence on what is drawn (without its full stop), and the settings but for idle ones."""
        settings = ", ".join(f"{f.name} {getattr(self, f.name)}" for f in self.settings() if f.name not in self.idle)
        return f"{self.title}. {shown}" + (f" ({settings})." if settings else ".")

    def marked(self, source: Any) -> str:
        """A sentence on marks that not every source has, for the caption; empty where this one has none."""
        return ""

    def numbers(self, source: Any) -> Numbers:
        """What is drawn of a FigureInput's data.  Raises ValueError where it does not have that."""
        raise NotImplementedError

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """Draw the numbers on these axes, or on the current ones, and return the axes."""
        raise NotImplementedError


def strongest(mass: NDArray, layer: int, head: int) -> tuple[int, int]:
    """Layer and head, of which −1 leaves either open: then those of the head that gives most to the first tokens.

    `mass` [layers, heads]: the sink mass of every head.
    """
    open_to = np.full(mass.shape, -np.inf)
    chosen = tuple(slice(None) if n < 0 else slice(n, n + 1) for n in (layer, head))
    open_to[chosen] = mass[chosen]
    if not np.isfinite(open_to).any():
        # There is no such head, which whoever draws it says.
        return max(layer, 0), max(head, 0)
    best, which = np.unravel_index(open_to.argmax(), mass.shape)
    return int(best), int(which)


def several(count: str) -> Any:
    """A setting for numbers of layers or heads; `count`: how many `evenly` chooses, in a word."""
    return setting(
        "auto",
        f"auto: {count}, evenly from the first to the last; or numbers with spaces.",
        pattern=r"auto|\d{1,4}( \d{1,4})*",
    )


def evenly(written: str, count: int, most: int) -> str:
    """Numbers as they are written; `auto`: at most `most` of 0 … count − 1, evenly from the first to the last."""
    if written != "auto":
        return written
    return " ".join(map(str, np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))))
