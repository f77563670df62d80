"""Sink mass of every layer and head."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from ..runs.folder import Run
from ..settings import setting
from .base import Figure, Numbers, axes


@dataclass(frozen=True)
class SinkGrid(Figure):
    """Mean attention that each head gave to the first four tokens, over one lane of a run."""

    name: ClassVar[str] = "sink-grid"
    title: ClassVar[str] = "Sink mass of layers and heads"
    needs: ClassVar[str] = "run"
    height: ClassVar[float] = 0.45

    lane: int = setting(0, "Which lane of the run.", low=0)

    def numbers(self, source: Run) -> Numbers:
        return {"mass": mass_of(source, self.lane)}

    def draw(self, data: Numbers, *, ax: Axes | None = None) -> Axes:
        return sink_grid(data, ax=ax)


def mass_of(run: Run, lane: int) -> np.ndarray:
    """Mean sink mass [layers, heads] of a lane."""
    if lane >= len(run.tracks):
        raise ValueError(f"the run has lanes 0 to {len(run.tracks) - 1}, and not {lane}: choose one of these")
    track = run.tracks[lane]
    if not track.spans:
        raise ValueError("the run has read nothing yet, so there is nothing to draw")
    return np.average(track.sink_mass, axis=0, weights=[stop - start for start, stop in track.spans])


def sink_grid(data: Numbers, *, ax: Axes | None = None) -> Axes:
    """Draw `mass` [layers, heads]: layers across, heads up."""
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
