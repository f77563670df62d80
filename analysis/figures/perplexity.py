"""Curves of the lanes of a run: perplexity, or how far each lane predicts from the first one."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from ..policies import parse
from ..runs.run import Run, Track
from ..runs.summary import shared_tokens
from ..settings import setting
from .base import POINTS, Figure, Numbers
from .drawing import axes, legend, logarithmic, whole_numbers
from .fonts import visible
from .line_styles import lanes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FULL, SWITCH = (0, (1, 1)), (0, (4, 1))
"""Dashes of the upright lines where a cache is full or a lane switches."""
NAMED = 4
"""Switches that are told one by one, at most."""
COLUMNS = {"KL": "kl", "top-1": "agreement"}
"""Columns of what is no perplexity, by mode."""


@dataclass(frozen=True)
class Perplexity(Figure):
    """Perplexity over the tokens read: of the last `roll` tokens against that of a reference lane (relative, as far as
    both have read the same) or alone (rolling), or from the start (cumulative); or, where lanes were measured against
    the first one, the KL divergence from it, or the share of tokens before which both have the same most probable one
    (top-1).  Switches and the moment when a cache is full are marked."""

    name: ClassVar[str] = "perplexity"
    title: ClassVar[str] = "Perplexity curves"
    needs: ClassVar[str] = "run"

    mode: str = setting(
        "relative", "What is drawn; of one lane alone relative is rolling.", choices=(*metrics.MODES, *metrics.FIDELITY)
    )
    reference: int = setting(0, "The lane that relative perplexities are of.", low=0)
    roll: int = setting(metrics.ROLL, "Tokens of a rolling mean.", low=1, high=65_536)

    def resolved(self, source: Run) -> Self:
        """With a mode that one lane alone has: it has none to be compared with."""
        return replace(self, mode="rolling") if self.mode == "relative" and len(source.tracks) == 1 else self

    def seen(self) -> str:
        """A sentence on the one mode that is drawn, with the settings that it has."""
        last = f"the last {self.roll:,} tokens" if self.roll > 1 else "the last token"
        shown = {
            "relative": f"{self.title}. Perplexity of {last}, times that of lane {self.reference} as far as both have "
            "read the same",
            "rolling": f"{self.title}. Perplexity of {last}",
            "cumulative": f"{self.title}. Perplexity from the start",
            "KL": f"Divergence curves. KL divergence from the first lane, mean over {last}",
            "top-1": f"Agreement curves. Share of {last} before which a lane has the same most probable token as the "
            "first one",
        }[self.mode]
        return f"{shown}, over the tokens read."

    def marked(self, source: Run) -> str:
        """Which of switches and full caches are marked, where there are any."""
        full = {mark == "full" for *_, mark in _marks(source)}
        what = ["switches"] * (False in full) + ["the moment when a cache is full"] * (True in full)
        said = f"{' and '.join(what)} {'are' if False in full else 'is'} marked."
        return said[0].upper() + said[1:] if what else ""

    def numbers(self, source: Run) -> Numbers:
        """Columns `lane`, `policy`, `token`, `perplexity` (or `kl` in nats per token, or `agreement` in %) and `mark`:
        where that is not empty, the policy that the lane switched to, or `full`.

        Raises ValueError where there is no such lane, too little is read, or what is drawn was not measured.
        """
        if self.reference >= len(source.tracks):
            raise ValueError(f"the run has lanes 0 to {len(source.tracks) - 1}, and not {self.reference}")
        if self.mode in COLUMNS and not source.spec.fidelity:
            raise ValueError(
                "the lanes of this run were not measured against the first one: read with --fidelity (on the page: "
                "Measure fidelity), or draw another mode"
            )
        rows = []
        for lane, track in enumerate(source.tracks):
            token, y = self._curve(source, lane, track)
            rows += [(lane, int(token[i]), float(y[i]), "") for i in metrics.decimate(y, POINTS)]
        if not rows:
            raise ValueError(
                f"a curve begins with the mean over {metrics.FIRST} tokens, and the lanes have read fewer: read on"
            )
        lane, token, value, mark = (np.array(column) for column in zip(*rows, *_marks(source), strict=True))
        policy = np.array(source.spec.policies)[lane]
        return {
            "lane": lane,
            "policy": policy,
            "token": token,
            COLUMNS.get(self.mode, "perplexity"): value,
            "mark": mark,
        }

    def _curve(self, run: Run, lane: int, track: Track) -> tuple[NDArray, NDArray]:
        """Numbers of tokens [points], and what is drawn at each of them."""
        if self.mode in COLUMNS:
            known = track.kl.view() if self.mode == "KL" else 100 * track.agree.view()
            return metrics.curve_of_known(known, roll=self.roll)
        reference = run.tracks[self.reference].sums.view()
        if self.mode == "relative":
            # Lanes of a conversation go on with what each of them has said.
            reference = reference[: 1 + shared_tokens(run, self.reference, run, lane)]
        token, nll = metrics.curve(track.sums.view(), self.mode, reference=reference, roll=self.roll)
        return token, metrics.perplexities(nll)

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """A line for each lane, over the tokens read, with upright lines at the marks."""
        ax = perplexity(data, ax=ax)
        # Lanes are measured against the first one.
        other = 0 if self.mode in COLUMNS else self.reference
        than = visible(lanes_of(data).get(other, ("",))[0])
        ax.set(
            ylabel={
                "relative": f"Perplexity, times that of {than}",
                "rolling": f"Perplexity, last {self.roll} tokens",
                "cumulative": "Perplexity from the start",
                "KL": f"KL from {than}, nats/token, last {self.roll}",
                "top-1": f"Top-1 as {than}, %, last {self.roll} tokens",
            }[self.mode]
        )
        return ax


def _marks(run: Run) -> list[tuple[int, int, float, str]]:
    """Lane, token, no number, and the policy that the lane switched to there, or `full`."""
    marks = []
    for lane, (begun, track) in enumerate(zip(run.spec.policies, run.tracks, strict=True)):
        # Events also tell of switches under which nothing was read, or whose answer was given again.
        for (_, before), (at, policy) in pairwise([(0, begun), *track.policies]):
            if parse(policy) != parse(before):
                marks.append((lane, at, np.nan, policy))
        if track.full_at is not None:
            marks.append((lane, track.full_at, np.nan, "full"))
    return marks


def perplexity(data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
    """Draw columns `lane`, `policy`, `token`, and `perplexity`, `kl` or `agreement`; rows with a `mark` say when a lane
    switched or was full."""
    ax = axes(ax)
    (column,) = data.keys() & {"perplexity", *COLUMNS.values()}
    curve, full, switches = data["mark"] == "", [], []
    for lane, (name, style) in lanes_of(data).items():
        of, before = data["lane"] == lane, name
        ax.plot(data["token"][of & curve], data[column][of & curve], **style, label=name)
        for at, mark in zip(data["token"][of & ~curve].tolist(), data["mark"][of & ~curve].tolist(), strict=True):
            if mark == "full":
                full.append((at, style["color"]))
            else:
                then = parse(mark).label
                switches.append((at, style["color"], f"{before} → {then} at {at:,}"))
                before = then
    # Named among the lines and not where they stand: lanes are often full at the same token.
    for n, (at, colour) in enumerate(full):
        ax.axvline(at, color=colour, lw=0.6, ls=FULL, label="" if n else "Cache full")
    for n, (at, colour, words) in enumerate(sorted(switches)):
        words = words if n < NAMED else f"and {len(switches) - NAMED} more switches" if n == NAMED else ""
        ax.axvline(at, color=colour, lw=0.9, ls=SWITCH, label=words)
    if column == "perplexity":
        ax.set_yscale("log")
        logarithmic(ax.yaxis)
    else:
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    whole_numbers(ax.xaxis)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.set(xlabel="Tokens read", ylabel="Perplexity")
    legend(ax)
    return ax
