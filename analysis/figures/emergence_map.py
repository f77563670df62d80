"""The attention map of a head of a small transformer, at one step of its training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..settings import setting
from .base import Figure, Numbers
from .head_map import head_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..lab.folder import SavedTraining


@dataclass(frozen=True)
class EmergenceMap(Figure):
    """The map of the head that looks at the first token most, as a training left it."""

    name: ClassVar[str] = "emergence-map"
    title: ClassVar[str] = "Map of a trained head"
    needs: ClassVar[str] = "trainings"
    height: ClassVar[float] = 0.8

    training: int = setting(0, "Which of the trainings, as they lie in the folder.", low=0)
    moment: int = setting(-1, "Which of its moments; -1: the last.", low=-1)

    def seen(self) -> str:
        """A sentence on the moment that is drawn."""
        when = "as a training left it" if self.moment < 0 else f"at moment {self.moment} of a training"
        return f"{self.title}. The map of the head that looked at the first token most then, {when}."

    def numbers(self, source: "Sequence[SavedTraining]") -> Numbers:
        """`map` [queries, keys], NaN above its diagonal.  Raises ValueError where there is no such training or map."""
        if self.training >= len(source):
            raise ValueError(f"there are trainings 0 to {len(source) - 1}, and not {self.training}")
        maps = source[self.training].maps
        if self.moment >= len(maps):
            raise ValueError(f"there are moments 0 to {len(maps) - 1}, and not {self.moment}")
        drawn = maps[self.moment].astype(np.float32)
        drawn[np.triu_indices(len(drawn), 1)] = np.nan
        return {"map": drawn, "begin": np.array(0), "scale": np.array(1)}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """The map, with linear colours."""
        return head_map(data, ax=ax, linear=True)
