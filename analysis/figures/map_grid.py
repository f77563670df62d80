"""Maps of several heads of several layers, side by side."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..settings import setting
from .base import Figure, Numbers, evenly
from .drawing import axes, colour_bar, decades
from .head_map import coloured, region_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

if TYPE_CHECKING:
    from ..maps.atlas import Atlas

CELLS = 128
"""Cells on a side of each map, at most."""


@dataclass(frozen=True)
class MapGrid(Figure):
    """Attention maps of the chosen layers (down) and heads (across) of a captured stretch."""

    name: ClassVar[str] = "map-grid"
    title: ClassVar[str] = "Maps of layers and heads"
    needs: ClassVar[str] = "stretch"
    height: ClassVar[float] = 0.9

    layers: str = setting(
        "auto",
        "auto: four, evenly from the first to the last; or numbers with spaces.",
        pattern=r"auto|\d{1,4}( \d{1,4})*",
    )
    heads: str = setting(
        "auto",
        "auto: three, evenly from the first to the last; or numbers with spaces.",
        pattern=r"auto|\d{1,4}( \d{1,4})*",
    )
    tokens: int = setting(128, "First tokens of the stretch.", low=2, high=65_536)
    cells: str = setting("weights", "Attention weights, or logits before the softmax.", choices=("weights", "logits"))

    def resolved(self, source: "Atlas") -> Self:
        """With the layers and heads that were left open."""
        layers, heads = source.stretch.mass.shape
        return replace(self, layers=evenly(self.layers, layers, 4), heads=evenly(self.heads, heads, 3))

    def numbers(self, source: "Atlas") -> Numbers:
        """`maps` [layers, heads, cells, cells], `layers` and `heads`.  Raises ValueError where there are no such."""
        chosen = self.resolved(source)
        layers, heads = ([int(n) for n in re.findall(r"\d+", text)] for text in (chosen.layers, chosen.heads))
        region = region_of(source, 0, self.tokens, CELLS)
        maps = [[source.draw(layer, head, region, kind=self.cells) for head in heads] for layer in layers]
        return {"maps": np.array(maps), "layers": np.array(layers), "heads": np.array(heads)}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """All maps in one picture, layers down and heads across."""
        return map_grid(data, ax=ax, logits=self.cells == "logits")


def map_grid(data: Numbers, *, ax: "Axes | None" = None, logits: bool = False) -> "Axes":
    """Draw `maps` [layers, heads, cells, cells] as one picture, with `layers` and `heads` at its sides."""
    ax = axes(ax)
    maps, side = data["maps"], data["maps"].shape[-1]
    gap = max(2, side // 16)
    step = side + gap
    whole = np.ones((len(maps) * step - gap, maps.shape[1] * step - gap, 4))
    _, meaning = coloured(maps[0, 0], logits=logits, linear=False)
    if logits:
        meaning.set_clim(np.nanmin(maps), np.nanmax(maps))
    for (i, j), _ in np.ndenumerate(maps[..., 0, 0]):
        values = maps[i, j]
        rgba = _on_one_scale(values, meaning) if logits else coloured(values, logits=False, linear=False)[0]
        whole[i * step : i * step + side, j * step : j * step + side] = rgba
    ax.imshow(whole, interpolation="nearest", aspect="equal")
    ax.set_xticks([j * step + side / 2 for j in range(maps.shape[1])], [f"{h}" for h in data["heads"]])
    ax.set_yticks([i * step + side / 2 for i in range(len(maps))], [f"{n}" for n in data["layers"]])
    ax.set(xlabel="Head", ylabel="Layer")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = colour_bar(ax, meaning, "Logit" if logits else "Attention weight")
    if not logits:
        decades(bar.ax.yaxis)
    return ax


def _on_one_scale(values: NDArray[np.float32], meaning: "ScalarMappable") -> NDArray[np.floating]:
    rgba = meaning.to_rgba(np.nan_to_num(values, nan=meaning.get_clim()[0]))
    rgba[np.isnan(values)] = 1
    return rgba
