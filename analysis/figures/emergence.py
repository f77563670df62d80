"""A sink that grows: what small transformers did while they were trained, and the map that came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes

from ..lab.folder import SavedTraining
from ..lab.recipe import ATTENTIONS
from ..palette import TRAINED
from ..settings import setting
from .base import Figure, Numbers, axes, legend
from .head_map import head_map
from .strokes import DASHES, stroke

CURVES = {
    "weight": "Weight on the first token",
    "value": "Norm of its value, times the others'",
    "copied": "NLL of copied tokens (nats)",
    "loss": "NLL of all tokens (nats)",
}


@dataclass(frozen=True)
class Emergence(Figure):
    """What grew while small transformers were trained, one line for each; of the head that looks at the first token
    most."""

    name: ClassVar[str] = "emergence"
    title: ClassVar[str] = "A sink that grows"
    needs: ClassVar[str] = "trainings"

    curve: str = setting("weight", "What is drawn.", choices=tuple(CURVES))

    def numbers(self, source: Sequence[SavedTraining]) -> Numbers:
        values = [
            t.of_head({"weight": "weight", "value": "norm"}[self.curve])
            if self.curve in ("weight", "value")
            else t.curves[self.curve]
            for t in source
        ]
        counts = [len(v) for v in values]
        return {
            "training": np.repeat(np.arange(len(source)), counts),
            "attention": np.repeat([t.recipe.attention for t in source], counts),
            "step": np.concatenate([t.curves["step"] for t in source]).astype(int),
            self.curve: np.concatenate(values),
        }

    def draw(self, data: Numbers, *, ax: Axes | None = None) -> Axes:
        return emergence(data, ax=ax)


def emergence(data: Numbers, *, ax: Axes | None = None) -> Axes:
    """Draw columns `training`, `attention`, `step`, and one of weight, value, copied and loss."""
    ax = axes(ax)
    curve = next(name for name in CURVES if name in data)
    drawn: list[str] = []
    for training in np.unique(data["training"]):
        of = data["training"] == training
        attention = str(data["attention"][of][0])
        # Dashes say which attention, and markers tell trainings of the same one apart.
        look = stroke(list(ATTENTIONS).index(attention) + len(DASHES) * drawn.count(attention))
        drawn.append(attention)
        ax.plot(data["step"][of], data[curve][of], color=TRAINED[attention][0], **look, label=ATTENTIONS[attention])
    ax.set(xlabel="Steps of training", ylabel=CURVES[curve])
    ax.set_ylim(0, 1 if curve == "weight" else None)
    legend(ax)
    return ax


@dataclass(frozen=True)
class EmergenceMap(Figure):
    """The map of the head that looks at the first token most, as a training left it."""

    name: ClassVar[str] = "emergence-map"
    title: ClassVar[str] = "Map of a trained head"
    needs: ClassVar[str] = "trainings"
    height: ClassVar[float] = 0.8

    training: int = setting(0, "Which of the trainings, as they lie in the folder.", low=0)
    moment: int = setting(-1, "Which of its moments; -1: the last.", low=-1)

    def numbers(self, source: Sequence[SavedTraining]) -> Numbers:
        if self.training >= len(source):
            raise ValueError(f"there are trainings 0 to {len(source) - 1}, and not {self.training}")
        maps = source[self.training].maps
        if self.moment >= len(maps):
            raise ValueError(f"there are moments 0 to {len(maps) - 1}, and not {self.moment}")
        drawn = maps[self.moment].astype(np.float32)
        drawn[np.triu_indices(len(drawn), 1)] = np.nan
        return {"map": drawn, "begin": np.array(0), "scale": np.array(1)}

    def draw(self, data: Numbers, *, ax: Axes | None = None) -> Axes:
        return emergence_map(data, ax=ax)


def emergence_map(data: Numbers, *, ax: Axes | None = None) -> Axes:
    """Draw `map` [queries, keys]; NaN: later in the text."""
    return head_map(data, ax=ax, linear=True)
