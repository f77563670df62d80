"""Why a cache of few bits spares the first tokens: the range of each channel of the keys, there and elsewhere.

Liu et al. 2024, "IntactKV"; Hooper et al. 2024, "KVQuant".
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from .. import metrics
from ..settings import setting
from .base import Figure, Numbers, evenly, several
from .drawing import axes, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..maps.atlas import Atlas

FIRST, OTHERS = "#D55E00", "#9BC4E2"
"""Dark on light where there is no colour."""
WIDTH = 0.8
"""Of the line of a channel's first tokens, in points."""
ENDS = ("first_least", "first_greatest", "least", "greatest")


@dataclass(frozen=True)
class KeyRanges(Figure):
    """The range of each channel of a KV head's keys in some layers of a captured stretch, at the first tokens and at
    all others.

    Keys are those before rotation, which a cache of few bits stores with a scale for each channel.
    """

    name: ClassVar[str] = "key-ranges"
    title: ClassVar[str] = "Ranges of keys by channel"
    needs: ClassVar[str] = "stretch"
    height: ClassVar[float] = 0.45
    least: ClassVar[float] = 1.9

    layers: str = several("four")
    kv_head: int = setting(0, "The KV head.", low=0)
    first: int = setting(4, "How many first tokens stand apart.", low=1, high=64)

    def resolved(self, source: "Atlas") -> Self:
        """With the layers that were left open."""
        return replace(self, layers=evenly(self.layers, source.stretch.layers, 4))

    def numbers(self, source: "Atlas") -> Numbers:
        """Columns `layer`, `channel` and ENDS: a row for each channel of each layer.

        Raises ValueError where there is no such layer or KV head, or the stretch has no more than the first tokens.
        """
        layers = [int(n) for n in self.resolved(source).layers.split()]
        keys, model = source.stretch.keys, source.model
        if max(layers) >= len(keys) or self.kv_head >= keys.shape[1]:
            raise ValueError(
                f"layers are 0 to {len(keys) - 1} and KV heads 0 to {keys.shape[1] - 1}: choose some of these"
            )
        if (count := keys.shape[2]) <= self.first:
            raise ValueError(f"the stretch has {count} tokens, all of which are first ones: choose a smaller first")
        dim = model.head_dim - model.positions.added
        early = np.arange(count) < self.first
        ranges = np.stack([metrics.channel_ranges(keys[layer, self.kv_head, :, :dim], early) for layer in layers], 2)
        ends = {name: end.ravel() for name, end in zip(ENDS, ranges.reshape(4, -1), strict=True)}
        return {"layer": np.repeat(layers, dim), "channel": np.tile(np.arange(dim), len(layers)), **ends}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """A band over the channels and a line for the first tokens in each, layer beside layer."""
        return key_ranges(data, ax=ax, first=self.first)


def key_ranges(data: Numbers, *, ax: "Axes | None" = None, first: int = 4) -> "Axes":
    """Draw columns `layer`, `channel` and ENDS; `first`: how many first tokens stand apart."""
    ax = axes(ax)
    layers, which = np.unique(data["layer"], return_inverse=True)
    gap = (width := int(data["channel"].max()) + 1) // 8 + 1
    x = which * (width + gap) + data["channel"]
    for n in range(len(layers)):
        of = which == n
        name = "" if n else "All others"
        # Every channel is as wide as another, those at the edges, too.
        sides = np.repeat(x[of], 2) + np.tile([-0.5, 0.5], of.sum())
        low, high = (np.repeat(data[end][of], 2) for end in ENDS[2:])
        ax.fill_between(sides, low, high, color=OTHERS, lw=0, label=name)
    beginning = "First token" if first == 1 else f"First {first} tokens"
    # The ends stand out by half a line.
    ends = data["first_least"], data["first_greatest"]
    ax.vlines(x, *ends, color=FIRST, lw=WIDTH, capstyle="projecting", label=beginning)
    # A picture has no line for a range of one number.
    ax.plot(x, ends[0], ls="", marker="s", ms=WIDTH, mew=0, color=FIRST)
    ax.set_xticks(np.arange(len(layers)) * (width + gap) + (width - 1) / 2, [f"{layer}" for layer in layers])
    ax.tick_params(axis="x", length=0)
    ax.set(xlabel="Layer; in each its channels", ylabel="Key before rotation")
    legend(ax)
    return ax
