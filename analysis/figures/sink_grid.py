"""Sink mass of every layer and head."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..runs.run import Run
from ..runs.summary import mean_sink_mass
from ..settings import setting
from .base import Figure, Numbers
from .drawing import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    every = max(1, len(data["mass"]) // 10)
    colours = {"label": "Sink mass", "fraction": 0.045, "pad": 0.02}
    sns.heatmap(
        data["mass"].T, vmin=0, vmax=1, cmap="viridis", cbar_kws=colours, ax=ax, xticklabels=every, linewidths=0.3,
        rasterized=True,
    )  # fmt: skip
    ax.invert_yaxis()
    ax.set(xlabel="Layer", ylabel="Head")
    ax.tick_params(axis="both", rotation=0)
    return ax
