"""What the caches of the lanes of a run take."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .. import metrics
from ..runs.run import Run
from ..runs.summary import label_of
from .base import POINTS, Figure, Numbers
from .drawing import axes, legend, whole_numbers
from .line_styles import lanes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Memory(Figure):
    """Measured bytes of each lane's keys and values over the tokens read."""

    name: ClassVar[str] = "memory"
    title: ClassVar[str] = "Cache memory"
    needs: ClassVar[str] = "run"

    def numbers(self, source: Run) -> Numbers:
        """Columns `lane`, `policy`, `label`, `token`, `megabytes`.  Raises ValueError where nothing was read."""
        rows = []
        for lane, track in enumerate(source.tracks):
            size = track.cache_bytes.view() / 1e6
            rows += [(lane, int(i) + 1, float(size[i])) for i in metrics.decimate(size, POINTS)]
        if not rows:
            raise ValueError("the run has read nothing yet, so there is nothing to draw")
        lane, token, size = (np.array(x) for x in zip(*rows, strict=True))
        labels = np.array([label_of(source, i) for i in range(len(source.tracks))])
        policies = np.array(source.spec.policies)
        return {"lane": lane, "policy": policies[lane], "label": labels[lane], "token": token, "megabytes": size}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """A line for each lane, over the tokens read."""
        return memory(data, ax=ax)


def memory(data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
    """Draw columns `lane`, `policy`, `label`, `token`, `megabytes`."""
    ax = axes(ax)
    for lane, (name, style) in lanes_of(data).items():
        of = data["lane"] == lane
        ax.plot(data["token"][of], data["megabytes"][of], **style, label=name)
    whole_numbers(ax.xaxis)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.set(xlabel="Tokens read", ylabel="KV cache (MB)")
    ax.set_ylim(bottom=0)
    legend(ax)
    return ax
