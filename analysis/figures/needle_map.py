"""What each policy recalls, by the length of the text and the depth of the fact in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..palette import labels
from ..policies import parse
from ..settings import setting
from .base import Figure, Numbers
from .drawing import axes, colour_bar, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..experiments.recall.cells import Row

GREY, NOTHING = "#C4C6CA", "white"
"""Cells in which dense fails, whatever a policy does, and those that were not asked for."""
LINES = "////"
"""Over the grey ones: on grey paper they would look like a number."""
COLOURS = {"recalled": ("cividis", "Recalled"), "nll": ("cividis_r", "NLL of answer (nats/token)")}
"""Even to all eyes; the brighter the better."""


@dataclass(frozen=True)
class NeedleMap(Figure):
    """A map for each policy, dense first: how often the answer was given, or its NLL, by length and depth; grey where
    dense itself gives fewer than half of the answers."""

    name: ClassVar[str] = "needle-map"
    title: ClassVar[str] = "What each policy recalls"
    needs: ClassVar[str] = "recall"
    height: ClassVar[float] = 0.42
    least: ClassVar[float] = 1.7

    cells: str = setting("recalled", "How often the answer was given, or its NLL.", choices=tuple(COLOURS))

    def seen(self) -> str:
        """A sentence on what the cells show."""
        what = {"recalled": "how often the answer was given", "nll": "the mean NLL of the answer's tokens"}[self.cells]
        of = "by length and depth; grey where dense itself gives fewer than half of the answers"
        return f"{self.title}. A map for each policy, dense first: {what}, {of}."

    def numbers(self, source: "Sequence[Row]") -> Numbers:
        """Columns `policy`, `length`, `depth`, `texts`, `recalled` (their share) and `nll`: a row for each cell.

        Raises ValueError where the task has no depths.
        """
        from ..experiments.recall.maps import spots

        found = spots(source)
        if not found:
            raise ValueError("nothing in these texts says the answers, so they have no depth: choose another task")
        return {
            "policy": np.array([spot.policy for spot in found]),
            "length": np.array([spot.length for spot in found]),
            "depth": np.array([spot.depth for spot in found]),
            "texts": np.array([len(spot.rows) for spot in found]),
            "recalled": np.array([spot.recalled for spot in found]),
            "nll": np.array([spot.nll for spot in found]),
        }

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """All maps side by side, depth down and lengths across."""
        return needle_map(data, ax=ax, cells=self.cells)


def needle_map(data: Numbers, *, ax: "Axes | None" = None, cells: str = "recalled") -> "Axes":
    """Draw columns `policy`, `length`, `depth`, `recalled`, `nll`: a block of cells for each policy, side by side."""
    from matplotlib import colormaps, rcParams
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgba
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Rectangle

    from ..experiments.recall.maps import FAILS

    ax = axes(ax)
    policies, lengths, depths = list(dict.fromkeys(data["policy"])), np.unique(data["length"]), np.unique(data["depth"])
    scheme, what = COLOURS[cells]
    top = 1.0 if cells == "recalled" else max(1e-9, float(data["nll"].max()))
    meaning = ScalarMappable(Normalize(0, top), colormaps[scheme])
    step, whole = len(lengths) + 1, np.empty((len(depths), len(policies) * (len(lengths) + 1) - 1, 4))
    whole[:] = to_rgba(NOTHING)
    at = [policies.index(p) for p in data["policy"]]
    across = np.array(at) * step + np.searchsorted(lengths, data["length"])
    down = np.searchsorted(depths, data["depth"])
    whole[down, across] = meaning.to_rgba(data[cells])
    failing = {(d, n) for p, d, n, share in _rows(data) if p == "dense" and share < FAILS}
    for row, (policy, depth, length, _) in enumerate(_rows(data)):
        if policy != "dense" and (depth, length) in failing:
            whole[down[row], across[row]] = to_rgba(GREY)
            corner = across[row] - 0.5, down[row] - 0.5
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, hatch=LINES, edgecolor="0.35", lw=0))
    ax.imshow(whole, interpolation="nearest", aspect="auto")
    for block in range(1, len(policies)):
        ax.axvspan(block * step - 1.5, block * step - 0.5, color=NOTHING, lw=0)
    size = FontProperties(size=rcParams["xtick.labelsize"]).get_size_in_points()
    room = 0.9 * ax.get_window_extent().width / ax.figure.dpi * 72 / len(policies)
    for block, name in enumerate(labels([parse(p) for p in policies])):
        middle = block * step + (len(lengths) - 1) / 2
        ax.text(middle, -0.6, wrapped(name, room, size), size=size, ha="center", va="bottom")
    ticks = [block * step + i for block in range(len(policies)) for i in range(len(lengths))]
    ax.set_xticks(ticks, [f"{n}" for n in lengths] * len(policies), rotation=90)
    ax.set_yticks(range(len(depths)), [f"{d:g}" for d in depths])
    # As words of the label it stands below the numbers, however long those are.
    told = "; grey: dense fails" if failing else ""
    ax.set(xlabel=f"Length of the text (tokens){told}", ylabel="Depth (%)")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    colour_bar(ax, meaning, what)
    return ax


def _rows(data: Numbers) -> list[tuple[str, float, int, float]]:
    """Policy, depth, length and what was recalled, of each cell."""
    return list(zip(*(data[name].tolist() for name in ("policy", "depth", "length", "recalled")), strict=True))
