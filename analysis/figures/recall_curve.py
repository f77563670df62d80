"""What is recalled over the distance to the fact."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..palette import labels
from ..policies import parse
from ..settings import setting
from .base import Figure, Numbers
from .drawing import axes, legend
from .line_styles import line_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..experiments.recall.cells import Row


@dataclass(frozen=True)
class RecallCurve(Figure):
    """How often the answer was given, over the tokens between the fact and the answer, one line for each policy; the
    band is the 95 % interval (Wilson 1927)."""

    name: ClassVar[str] = "recall-curve"
    title: ClassVar[str] = "Recall over distance"
    needs: ClassVar[str] = "recall"

    points: int = setting(12, "Points of a line, at most: answers at like distances are put together.", low=1, high=200)

    def numbers(self, source: "Sequence[Row]") -> Numbers:
        """Columns `policy`, `distance` (mean of a point's), `answers`, `recalled` (their share), `low` and `high`.

        Raises ValueError where nothing in the texts says the answers.
        """
        from ..experiments.recall.cells import wilson

        rows = [(row.policy, row.distance, row.hit) for row in source if row.distance is not None]
        if not rows:
            raise ValueError("nothing in these texts says the answers, so there is no distance: choose another task")
        farthest, points = max(distance for _, distance, _ in rows), list[tuple[str, float, int, float, float, float]]()
        for policy in dict.fromkeys(policy for policy, _, _ in rows):
            mine = [(distance, hit) for p, distance, hit in rows if p == policy]
            for number in range(self.points):
                of = [(d, hit) for d, hit in mine if d * self.points // (farthest + 1) == number]
                if of:
                    hits = sum(hit for _, hit in of)
                    distance = sum(d for d, _ in of) / len(of)
                    points.append((policy, distance, len(of), hits / len(of), *wilson(hits, len(of))))
        names = ("policy", "distance", "answers", "recalled", "low", "high")
        return {name: np.array(column) for name, column in zip(names, zip(*points, strict=True), strict=True)}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """A line with a band for each policy, over the distance."""
        return recall_curve(data, ax=ax)


def recall_curve(data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
    """Draw columns `policy`, `distance`, `recalled`, `low`, `high`: one line with a band for each policy."""
    ax = axes(ax)
    names = list(dict.fromkeys(data["policy"]))
    policies = [parse(p) for p in names]
    for policy, label, style in zip(names, labels(policies), line_styles(policies), strict=True):
        of = data["policy"] == policy
        # Every point is a number of its own, so every one has a marker.
        style |= {"markevery": None, "marker": style["marker"] or "."}
        ax.plot(data["distance"][of], data["recalled"][of], **style, label=label)
        ax.fill_between(data["distance"][of], data["low"][of], data["high"][of], color=style["color"], alpha=0.15, lw=0)
    ax.set(xlabel="Tokens from the fact to the answer", ylabel="Recalled", ylim=(-0.03, 1.03))
    ax.set_xlim(0)
    legend(ax)
    return ax
