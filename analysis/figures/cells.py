"""A picture of a map that loses none of its cells: where a page has fewer dots than cells, those of a dot are pooled.

matplotlib would draw one of them and leave out the others, and the column of a sink is as narrow as a cell.
"""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray

Picture = NDArray[np.floating]
"""[cells, cells, RGBA]"""


class Cells(AxesImage):
    """A map [cells, cells] on axes, from its corner at the upper left on; NaN has no part in what is pooled."""

    def __init__(
        self, ax: Axes, values: NDArray[np.float32], colours: Callable[[NDArray[np.float32]], Picture],
        *, corner: tuple[float, float] = (0, 0), size: float, mean: bool = False,
    ) -> None:  # fmt: skip
        """`colours`: of such a map; `size`: of its sides, in units of the axes; `mean`: what shares a dot has its mean
        and not its largest number."""
        x, y = corner
        super().__init__(ax, interpolation="nearest", extent=(x, x + size, y + size, y))
        self._values, self._colours, self._mean, self._shown = values, colours, mean, len(values)
        self.set_data(colours(values))
        self.set_clip_path(ax.patch)
        # Maps that are equal would have the same id in an SVG file.
        self.set_gid(f"map-{x:g}-{y:g}")
        ax.add_image(self)

    def can_composite(self) -> bool:
        """Pictures that a PDF file has as one would show a line where one of them ends within a dot."""
        return False

    def make_image(self, renderer, magnification=1.0, unsampled=False):
        """What is drawn, by the renderer that draws it: only then it is known how many dots there are."""
        dots = int(self.get_window_extent(renderer).width * magnification)
        shown = max(1, min(len(self._values), dots))
        if shown != self._shown:
            self._shown = shown
            self.set_data(self._colours(pooled(self._values, shown, mean=self._mean)))
        return super().make_image(renderer, magnification, unsampled)


def pooled(values: NDArray[np.float32], cells: int, *, mean: bool = False) -> NDArray[np.float32]:
    """The same map in fewer cells on a side: of those that come together the largest number, or the mean; NaN where
    all of them are."""
    begins = np.arange(cells) * len(values) // cells
    if not mean:
        return np.fmax.reduceat(np.fmax.reduceat(values, begins, 0), begins, 1)

    def total(of: NDArray) -> NDArray:
        return np.add.reduceat(np.add.reduceat(of, begins, 0), begins, 1)

    known = ~np.isnan(values)
    counts = total(known.astype(np.int64))
    nothing = np.full(counts.shape, np.nan, np.float32)
    return np.divide(total(np.where(known, values, 0)), counts, out=nothing, where=counts > 0)
