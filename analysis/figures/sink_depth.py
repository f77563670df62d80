"""Sink mass over depth."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from ..palette import colours
from ..policies import parse
from ..record import Run
from .base import Figure, Numbers, axes
from .sink_grid import mass_of


@dataclass(frozen=True)
class SinkDepth(Figure):
    """Mean attention to the first four tokens by layer, one line for each lane; the band is ± one standard deviation
    between heads."""

    name: ClassVar[str] = "sink-depth"
    title: ClassVar[str] = "Sink mass over depth"
    needs: ClassVar[str] = "run"

    def numbers(self, source: Run) -> Numbers:
        masses = [mass_of(source, lane) for lane in range(len(source.tracks))]
        layers, heads = masses[0].shape
        return {
            "lane": np.repeat([parse(p).label for p in source.spec.policies], layers * heads),
            "policy": np.repeat(list(source.spec.policies), layers * heads),
            "layer": np.tile(np.repeat(np.arange(layers), heads), len(masses)),
            "head": np.tile(np.arange(heads), layers * len(masses)),
            "mass": np.concatenate([m.ravel() for m in masses]),
        }

    def draw(self, data: Numbers, *, ax: Axes | None = None) -> Axes:
        return sink_depth(data, ax=ax)


def sink_depth(data: Numbers, *, ax: Axes | None = None) -> Axes:
    """Draw columns `lane`, `policy`, `layer`, `head`, `mass`: one line for each lane."""
    ax = axes(ax)
    policies = list(dict.fromkeys(data["policy"].tolist()))
    for policy, (colour, dash) in zip(policies, colours([parse(p) for p in policies]), strict=True):
        of = data["policy"] == policy
        sns.lineplot(
            x=data["layer"][of], y=data["mass"][of], errorbar="sd", color=colour, linestyle=STYLES[dash],
            label=data["lane"][of][0], ax=ax,
        )  # fmt: skip
    ax.set(xlabel="Layer", ylabel="Sink mass", ylim=(0, 1))
    ax.legend(frameon=False)
    return ax


STYLES = {
    "solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 1.5, 1, 1.5)), "longdash": (0, (9, 2)),
    "longdashdot": (0, (9, 1.5, 1, 1.5)),
}  # fmt: skip
"""Of the dashes of the palette."""
