"""Lanes of several runs beside one another: other models, policies or number formats, on the same tokens or on others.

NLLs of two lanes are compared token by token only as far as both have read the same tokens, which their token ids say:
names of texts and of tokenizers are not asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from .run import Run
from .summary import LaneSummary, mean_sink_mass, shared_tokens, summarize


@dataclass(frozen=True)
class ComparedLane:
    """A lane of one of the runs, against the first lane of the first run."""

    run: int
    """Which of the runs that are compared."""
    lane: int
    summary: LaneSummary
    shared: int
    """Predicted tokens from the beginning that both have read, and that are the same."""
    excess: float
    """Mean NLL above that of the reference over the shared tokens, nats/token; NaN where there are none."""
    error: float
    """Its standard error over blocks; NaN where there are fewer than two."""


@dataclass(frozen=True)
class Comparison:
    """Several runs, and what may be said of all their lanes together."""

    runs: tuple[Run, ...]
    lanes: tuple[ComparedLane, ...]
    mode: str
    """Of the curves: relative to the reference where all lanes have read the same tokens, else rolling."""
    why: str
    """Why these curves and no others, as a sentence."""

    def curve(self, lane: ComparedLane) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """Numbers of tokens [points], and a lane's mean NLL over the last of them in nats/token."""
        reference = self.runs[0].tracks[0].sums.view()
        sums = self.runs[lane.run].tracks[lane.lane].sums.view()
        return metrics.curve(sums, self.mode, reference=reference)


def compare(runs: Sequence[Run], names: Sequence[str]) -> Comparison:
    """All lanes of these runs; `names`: what sentences call the runs.  Raises ValueError where nothing was read yet."""
    if not runs or not len(runs[0].tracks[0].nll):
        raise ValueError(
            "the first lane of the first run has read nothing yet, so there is nothing to compare with: choose another"
        )
    lanes, other = [], None
    against = runs[0].tracks[0].nll.view()
    for i, run in enumerate(runs):
        for lane, summary in enumerate(summarize(run)):
            nll = run.tracks[lane].nll.view()
            shared = shared_tokens(runs[0], 0, run, lane)
            # A lane that has read nothing, as where a run ended early, has no tokens of its own.
            if other is None and shared < min(len(nll), len(against)):
                other = i, shared
            lanes.append(ComparedLane(i, lane, summary, shared, *metrics.excess(nll[:shared], against[:shared])))
    if other is None:
        why = "All lanes have read the same tokens, so each is shown relative to the first lane of the first run."
    elif other[0] == 0:
        why = f"Lanes of {names[0]} have read tokens of their own, so rolling perplexities are shown."
    else:
        where = f"from token {other[1] + 1:,} on" if other[1] else "from the first one on"
        why = f"{names[other[0]]} has other tokens than {names[0]} {where}, so rolling perplexities are shown."
    return Comparison(tuple(runs), tuple(lanes), "rolling" if other else "relative", why)


def grid_difference(run: Run, lane: int, other: Run, other_lane: int) -> NDArray[np.floating]:
    """Mean sink mass of a lane, less that of another one, [layers, heads]: each over all that it has read.

    Raises ValueError where a lane has read nothing, or the two have other layers and heads.
    """
    first, second = mean_sink_mass(run, lane), mean_sink_mass(other, other_lane)
    if first.shape != second.shape:
        sizes = ", and ".join(f"{layers} layers of {heads} heads" for layers, heads in (first.shape, second.shape))
        raise ValueError(f"there is no difference head by head, since one model has {sizes}")
    return first - second
