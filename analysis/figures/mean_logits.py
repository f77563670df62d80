"""Mean attention logits of some layers, as Figure 2 of StreamingLLM shows them (Xiao et al. 2023)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from typing_extensions import override

from ..maps.region import Region
from ..settings import setting
from .base import Figure, Numbers, evenly, several
from .map_grid import map_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..maps.atlas import Atlas


@dataclass(frozen=True)
class MeanLogits(Figure):
    """Logits before the softmax, mean over the heads of a layer, over the first tokens of a captured stretch.

    The paper takes the mean over many sentences of one head; a stretch is one text, so here it is over heads.
    """

    name: ClassVar[str] = "mean-logits"
    title: ClassVar[str] = "Mean logits"
    needs: ClassVar[str] = "stretch"
    height: ClassVar[float] = 0.3

    layers: str = several("four")
    tokens: int = setting(16, "First tokens of the stretch.", low=2, high=128)

    @property
    @override
    def share(self) -> float:
        """As high as its maps, which are squares and share the width."""
        return self.height if self.layers == "auto" else min(0.62, 0.7 / len(self.layers.split()) + 0.12)

    def resolved(self, source: "Atlas") -> Self:
        """With the layers that were left open, and as many tokens as there are."""
        tokens = max(2, min(self.tokens, source.stretch.tokens))
        return replace(self, layers=evenly(self.layers, source.stretch.layers, 4), tokens=tokens)

    def numbers(self, source: "Atlas") -> Numbers:
        """`maps` [layers, tokens, tokens], and `layers`.  Raises ValueError where there are no such."""
        layers = [int(n) for n in self.resolved(source).layers.split()]
        end = min(self.tokens, source.stretch.tokens)
        region = Region((0, end), (0, end))
        heads = range(source.stretch.heads)
        maps = [np.mean([source.draw(layer, head, region, kind="logits") for head in heads], 0) for layer in layers]
        return {"maps": np.array(maps), "layers": np.array(layers)}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """All maps in one row."""
        # Layers stand where the heads of a grid do.
        row = {"maps": data["maps"][None], "layers": np.array(["mean of heads"]), "heads": data["layers"]}
        ax = map_grid(row, ax=ax, logits=True)
        # Beside its only row: as a number at a tick it would take a quarter of a narrow page.
        ax.set_yticks([])
        ax.set(xlabel="Layer", ylabel="Mean of heads")
        return ax
