"""Sink mass of every layer and head."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..runs.run import Run
from ..runs.summary import mean_sink_mass
from ..settings import setting
from .base import Figure, Numbers
from .drawing import axes, sheet_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EDGE = 0.3
"""Points of the lines between cells."""


@dataclass(frozen=True)
class SinkGrid(Figure):
    """Mean attention that each head gave to the first four tokens, over one lane of a run."""

    name: ClassVar[str] = "sink-grid"
    title: ClassVar[str] = "Sink mass of layers and heads"
    needs: ClassVar[str] = "run"
    height: ClassVar[float] = 0.45

    lane: int = setting(0, "Which lane of the run.", low=0)

    def numbers(self, source: Run) -> Numbers:
        """`mass` [layers, heads].  Raises ValueError where there is no such lane, or it has read nothing."""
        return {"mass": mean_sink_mass(source, self.lane)}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """A grid of coloured cells, layers across and heads up."""
        return sink_grid(data, ax=ax)


def sink_grid(data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
    """Draw `mass` [layers, heads]: layers across, heads up."""
    # It brings pandas, which a list of figures does without.
    import seaborn as sns

    ax = axes(ax)
    box, every = ax.get_window_extent(), max(1, len(data["mass"]) // 10)
    # Lines between cells as small as theirs would leave nothing of the cells.
    cell = min(box.width / len(data["mass"]), box.height / data["mass"].shape[1]) / sheet_of(ax).dpi * 72
    colours = {"label": "Sink mass", "fraction": 0.045, "pad": 0.02}
    sns.heatmap(
        data["mass"].T, vmin=0, vmax=1, cmap="viridis", cbar_kws=colours, ax=ax, xticklabels=every,
        linewidths=EDGE if cell > 20 * EDGE else 0, rasterized=True,
    )  # fmt: skip
    ax.invert_yaxis()
    ax.set(xlabel="Layer", ylabel="Head")
    ax.tick_params(axis="both", rotation=0)
    return ax
