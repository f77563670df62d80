"""A sink that grows: what small transformers did while they were trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..lab.recipe import ATTENTIONS, names_of
from ..palette import TRAINED
from ..settings import setting
from .base import Figure, Numbers
from .drawing import axes, legend, whole_numbers
from .line_styles import DASHES, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..lab.folder import SavedTraining

CURVES = {
    "weight": "Weight on the first token",
    "value": "Norm of its value, times the others'",
    "copied": "NLL of copied tokens (nats/token)",
    "loss": "NLL of all tokens (nats/token)",
}


@dataclass(frozen=True)
class Emergence(Figure):
    """What grew while small transformers were trained, one line for each; of the head that looks at the first token
    most."""

    name: ClassVar[str] = "emergence"
    title: ClassVar[str] = "A sink that grows"
    needs: ClassVar[str] = "trainings"

    curve: str = setting("weight", "What is drawn.", choices=tuple(CURVES))

    def seen(self) -> str:
        """A sentence on the curve that is drawn: NLL is of a whole model, and of no head."""
        of = {
            "weight": "Weight on the first token, of the head that looks at it most",
            "value": "Norm of the first token's value, times the others', of the head that looks at it most",
            "copied": "NLL of copied tokens",
            "loss": "NLL of all tokens",
        }[self.curve]
        return f"{self.title}. {of}, while small transformers were trained, one line for each."

    def numbers(self, source: "Sequence[SavedTraining]") -> Numbers:
        """Columns `training`, `attention`, `label`, `step` and the curve: a row for each measurement."""
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
            "label": np.repeat(names_of([t.recipe for t in source]), counts),
            "step": np.concatenate([t.curves["step"] for t in source]).astype(int),
            self.curve: np.concatenate(values),
        }

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """A line for each training, over its steps."""
        return emergence(data, ax=ax)


def emergence(data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
    """Draw columns `training`, `attention`, `label`, `step`, and one of weight, value, copied and loss."""
    ax = axes(ax)
    curve = next(name for name in CURVES if name in data)
    drawn: list[str] = []
    for training in np.unique(data["training"]):
        of = data["training"] == training
        attention, name = str(data["attention"][of][0]), str(data["label"][of][0])
        # Dashes say which attention, and markers tell trainings of the same one apart.
        style = line_style(list(ATTENTIONS).index(attention) + len(DASHES) * drawn.count(attention))
        drawn.append(attention)
        ax.plot(data["step"][of], data[curve][of], color=TRAINED[attention][0], **style, label=name)
    whole_numbers(ax.xaxis)
    ax.set(xlabel="Steps of training", ylabel=CURVES[curve])
    # Weights of ReLU have no bound.
    ax.set_ylim(0, 1 if curve == "weight" and data[curve].max(initial=0) <= 1 else None)
    legend(ax)
    return ax
