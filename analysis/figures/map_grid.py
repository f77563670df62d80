"""Maps of several heads of several layers, side by side."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from typing_extensions import override

from ..settings import setting
from .base import Figure, Numbers, evenly, several
from .drawing import DIMMEST, axes, colour_bar, decades
from .head_map import coloured, meaning_of, region_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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

    layers: str = several("four")
    heads: str = several("three")
    tokens: int = setting(128, "First tokens of the stretch.", low=2, high=65_536)
    cells: str = setting("weights", "Attention weights, or logits before the softmax.", choices=("weights", "logits"))

    @property
    @override
    def share(self) -> float:
        """No higher than its maps, which are squares, when all the width is theirs that labels and colours leave."""
        if "auto" in (self.layers, self.heads):
            return self.height
        return min(self.height, 0.65 * len(self.layers.split()) / len(self.heads.split()) + 0.11)

    def resolved(self, source: "Atlas") -> Self:
        """With the layers and heads that were left open, and as many tokens as there are."""
        (layers, heads), tokens = source.stretch.mass.shape, max(2, min(self.tokens, source.stretch.tokens))
        return replace(self, layers=evenly(self.layers, layers, 4), heads=evenly(self.heads, heads, 3), tokens=tokens)

    def seen(self) -> str:
        """As of all figures, or a sentence on logits."""
        if self.cells == "weights":
            return super().seen()
        return self.told(
            "Logits before the softmax, of the chosen layers (down) and heads (across) of a captured stretch"
        )

    def numbers(self, source: "Atlas") -> Numbers:
        """`maps` [layers, heads, cells, cells], `layers` and `heads`, and the tokens of a cell, `scale`.

        Raises ValueError where there are no such.
        """
        chosen = self.resolved(source)
        layers, heads = ([int(n) for n in text.split()] for text in (chosen.layers, chosen.heads))
        region = region_of(source, 0, self.tokens, CELLS)
        maps = [[source.draw(layer, head, region, kind=self.cells) for head in heads] for layer in layers]
        sides = {"layers": np.array(layers), "heads": np.array(heads)}
        return {"maps": np.array(maps), **sides, "scale": np.array(region.scale)}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """All maps in one picture, layers down and heads across."""
        return map_grid(data, ax=ax, logits=self.cells == "logits")


def map_grid(data: Numbers, *, ax: "Axes | None" = None, logits: bool = False) -> "Axes":
    """Draw `maps` [layers, heads, cells, cells] as one picture, with `layers` and `heads` at its sides."""
    from .cells import Cells

    ax = axes(ax)
    maps, side = data["maps"], data["maps"].shape[-1]
    step = side + max(2, side // 16)
    meaning = meaning_of(maps, logits=logits)
    for i, j in np.ndindex(maps.shape[:2]):
        Cells(ax, maps[i, j], partial(coloured, meaning=meaning), corner=(j * step, i * step), size=side)
    down, across = (count * step - (step - side) for count in maps.shape[:2])
    ax.set(aspect="equal", xlim=(0, across), ylim=(down, 0))
    ax.set_xticks([j * step + side / 2 for j in range(maps.shape[1])], [f"{h}" for h in data["heads"]])
    ax.set_yticks([i * step + side / 2 for i in range(len(maps))], [f"{n}" for n in data["layers"]])
    ax.set(xlabel="Head", ylabel="Layer")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = colour_bar(ax, meaning, "Logit" if logits else "Attention weight")
    if not logits:
        decades(bar.ax.yaxis, least=DIMMEST)
    return ax
