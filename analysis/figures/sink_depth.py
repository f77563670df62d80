"""Sink mass over depth."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..runs.run import Run
from ..runs.summary import label_of, mean_sink_mass
from .base import Figure, Numbers
from .drawing import axes, legend, whole_numbers
from .line_styles import lanes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class SinkDepth(Figure):
    """Mean attention to the first four tokens by layer, one line for each lane; the band is ± one standard deviation
    between heads."""

    name: ClassVar[str] = "sink-depth"
    title: ClassVar[str] = "Sink mass over depth"
    needs: ClassVar[str] = "run"

    def numbers(self, source: Run) -> Numbers:
        """Columns `lane`, `policy`, `label`, `layer`, `head`, `mass`.  Raises ValueError where nothing was read."""
        # A lane of a run that ended early may have read nothing.
        lanes = [lane for lane, track in enumerate(source.tracks) if track.spans] or [0]
        masses = [mean_sink_mass(source, lane) for lane in lanes]
        layers, heads = masses[0].shape
        return {
            "lane": np.repeat(lanes, layers * heads),
            "policy": np.repeat([source.spec.policies[lane] for lane in lanes], layers * heads),
            "label": np.repeat([label_of(source, lane) for lane in lanes], layers * heads),
            "layer": np.tile(np.repeat(np.arange(layers), heads), len(masses)),
            "head": np.tile(np.arange(heads), layers * len(masses)),
            "mass": np.concatenate([m.ravel() for m in masses]),
        }

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """A line with a band for each lane, over the layers."""
        return sink_depth(data, ax=ax)


def sink_depth(data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
    """Draw columns `lane`, `policy`, `label`, `layer`, `head`, `mass`: one line for each lane."""
    ax = axes(ax)
    for lane, (name, style) in lanes_of(data).items():
        of = data["lane"] == lane
        layers = np.unique(data["layer"][of])
        masses = [data["mass"][of & (data["layer"] == layer)] for layer in layers]
        mean = np.array([m.mean() for m in masses])
        spread = np.array([m.std(ddof=1) if len(m) > 1 else 0.0 for m in masses])
        ax.plot(layers, mean, **style, label=name)
        ax.fill_between(layers, mean - spread, mean + spread, color=style["color"], alpha=0.2, lw=0)
    whole_numbers(ax.xaxis)
    ax.set(xlabel="Layer", ylabel="Sink mass", ylim=(0, 1))
    legend(ax)
    return ax
