"""The attention map of one head."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ..maps.region import Region
from ..settings import setting
from .base import Figure, Numbers, strongest
from .drawing import DIMMEST, axes, colour_bar, decades, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

    from ..maps.atlas import Atlas
    from .cells import Picture

EVICTED, LATER = "#DADCE0", "white"
CELLS = 512
"""Cells on a side of a map, at most: more would make the sink a line that no printer shows."""
ROUNDED = 1.001
"""What weights that sum to 1 never pass, however they were rounded."""


@dataclass(frozen=True)
class HeadMap(Figure):
    """What each token of a captured stretch gave to each other token, in one head."""

    name: ClassVar[str] = "head-map"
    title: ClassVar[str] = "Attention map of a head"
    needs: ClassVar[str] = "stretch"
    height: ClassVar[float] = 0.86

    layer: int = setting(-1, "Layer of the head; −1: where the head is that gives most to the first tokens.", low=-1)
    head: int = setting(-1, "The head; −1: the one that gives most to the first tokens.", low=-1)
    begin: int = setting(0, "First token.", low=0)
    tokens: int = setting(1024, "How many tokens from there on.", low=2, high=65_536)
    cells: str = setting("weights", "Attention weights, or logits before the softmax.", choices=("weights", "logits"))
    pool: str = setting("max", "What a cell of several tokens shows.", choices=("max", "mean"))
    colour: str = setting("logarithmic", "How weights become colours.", choices=("logarithmic", "linear"))

    def resolved(self, source: "Atlas") -> Self:
        """With the layer and head that were left open, as many tokens as there are, and the colours of logits."""
        layer, head = strongest(source.stretch.mass, self.layer, self.head)
        tokens = max(2, min(self.tokens, source.stretch.tokens - self.begin))
        colour = "linear" if self.cells == "logits" else self.colour
        return replace(self, layer=layer, head=head, tokens=tokens, colour=colour)

    @property
    @override
    def idle(self) -> tuple[str, ...]:
        return ("colour",) if self.cells == "logits" else ()

    def seen(self) -> str:
        """As of all figures, or a sentence on logits."""
        if self.cells == "weights":
            return super().seen()
        return self.told("Logit, before the softmax, of each token of a captured stretch for each other, in one head")

    def numbers(self, source: "Atlas") -> Numbers:
        """`map` [cells, cells], and its `begin` and `scale` in tokens.  Raises ValueError where it does not exist."""
        region, chosen = region_of(source, self.begin, self.tokens, CELLS), self.resolved(source)
        drawn = source.draw(chosen.layer, chosen.head, region, pool=self.pool, kind=self.cells)
        return {"map": drawn, "begin": np.array(region.rows[0]), "scale": np.array(region.scale)}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """One map, queries down and keys across."""
        logits, linear = self.cells == "logits", self.colour == "linear"
        return head_map(data, ax=ax, logits=logits, linear=linear, mean=self.pool == "mean")


def region_of(source: "Atlas", begin: int, tokens: int, cells: int) -> Region:
    """Tokens from `begin` on against themselves, in at most so many cells on a side.

    Raises ValueError where the stretch has ended before.
    """
    total = source.stretch.tokens
    if begin >= total:
        raise ValueError(f"the stretch has {total:,} tokens, so none from {begin:,} on: choose a smaller begin")
    return Region.square(begin, min(total, begin + tokens), cells)


def meaning_of(values: NDArray[np.float32], *, logits: bool, linear: bool = False) -> "ScalarMappable":
    """What the colours of maps mean; those of logits reach from the least to the greatest of these values."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    if logits:
        norm = Normalize(float(np.nanmin(values)), float(np.nanmax(values)))
    else:
        norm = Normalize(0, 1) if linear else LogNorm(DIMMEST, 1, clip=True)
    return ScalarMappable(norm, colormaps["viridis"])


def coloured(values: NDArray[np.float32], meaning: "ScalarMappable") -> "Picture":
    """A map [cells, cells] as a picture."""
    from matplotlib.colors import to_rgba

    rgba = meaning.to_rgba(np.nan_to_num(values, nan=meaning.get_clim()[0]))
    row, column = np.indices(values.shape)
    rgba[np.isnan(values)] = to_rgba(EVICTED)
    rgba[np.isnan(values) & (column > row)] = to_rgba(LATER)
    return rgba


def head_map(
    data: Numbers, *, ax: "Axes | None" = None, logits: bool = False, linear: bool = False, mean: bool = False
) -> "Axes":
    """Draw `map` [cells, cells], whose cells are `scale` tokens from `begin` on; NaN: evicted, or later in the text.

    `mean`: what a cell of several tokens shows.
    """
    from .cells import Cells

    ax = axes(ax)
    values, begin, scale = data["map"], int(data["begin"]), int(data["scale"])
    meaning, size = meaning_of(values, logits=logits, linear=linear), len(values) * scale
    Cells(ax, values, partial(coloured, meaning=meaning), corner=(begin, begin), size=size, mean=mean)
    ax.set(aspect="equal", xlim=(begin, begin + size), ylim=(begin + size, begin))
    # An edge where it usually stands covers half its width of the map: on a narrow page the first token's column.
    ax.spines[:].set_position(("outward", 2 * ax.spines["left"].get_linewidth()))
    whole_numbers(ax.xaxis)
    whole_numbers(ax.yaxis)
    ax.set(xlabel="Attended token", ylabel="Query token")
    bar = colour_bar(ax, meaning, "Logit" if logits else "Attention weight")
    if not (logits or linear):
        decades(bar.ax.yaxis, least=DIMMEST)
    elif not logits and (values > ROUNDED).any():
        # Those of ReLU sum to anything.
        ends = np.linspace(0, 1, 6).tolist()
        bar.set_ticks(ends, labels=[f"≥ {end:.1f}" if end == 1 else f"{end:.1f}" for end in ends])
    return ax
