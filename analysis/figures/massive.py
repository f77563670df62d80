"""The largest activations of each layer (Sun et al. 2024, "Massive activations in large language models")."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .base import Figure, Numbers
from .drawing import axes, decades, legend, logarithmic, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..maps.atlas import Atlas

SHOWN = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"))


@dataclass(frozen=True)
class Massive(Figure):
    """The three largest activations that come out of each layer, and the median of all."""

    name: ClassVar[str] = "massive"
    title: ClassVar[str] = "Massive activations"
    needs: ClassVar[str] = "stretch"

    def numbers(self, source: "Atlas") -> Numbers:
        """Columns `layer`, `rank`, `size`, `token`, `channel` and `median`: a row for each activation."""
        size, token, channel = np.moveaxis(source.stretch.massive, -1, 0)
        layers, top = size.shape
        return {
            "layer": np.repeat(np.arange(layers), top),
            "rank": np.tile(np.arange(1, top + 1), layers),
            "size": size.ravel(),
            "token": token.ravel().astype(int),
            "channel": channel.ravel().astype(int),
            "median": np.repeat(source.stretch.median, top),
        }

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """A line for each rank and one for the median, over the layers."""
        return massive(data, ax=ax)


def massive(data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
    """Draw columns `layer`, `rank`, `size`, `median`."""
    ax = axes(ax)
    for rank, (colour, marker) in zip(sorted(set(data["rank"].tolist())), SHOWN, strict=False):
        of = data["rank"] == rank
        ax.plot(data["layer"][of], data["size"][of], color=colour, marker=marker, ms=3, label=f"Top {rank}")
    of = data["rank"] == 1
    ax.plot(data["layer"][of], data["median"][of], color="#767676", ls=(0, (5, 2)), label="Median")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    # Of less than two decades one power of ten may be seen, or none.
    (decades if high > 100 * low else logarithmic)(ax.yaxis)
    whole_numbers(ax.xaxis)
    ax.set(xlabel="Layer", ylabel="Magnitude")
    legend(ax)
    return ax
