"""Perplexity curves of the lanes of a run."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes

from .. import metrics
from ..palette import colours
from ..policies import parse
from ..record import Run
from ..settings import setting
from .base import Figure, Numbers, axes, thinned
from .sink_depth import STYLES

FIRST = 32
"""Tokens before a curve begins: means over fewer say nothing."""


@dataclass(frozen=True)
class Perplexity(Figure):
    """Perplexity over the tokens read: of the last `roll` tokens against that of a reference lane (relative) or alone
    (rolling), or from the start (cumulative).  Switches and the moment when a cache is full are marked."""

    name: ClassVar[str] = "perplexity"
    title: ClassVar[str] = "Perplexity curves"
    needs: ClassVar[str] = "run"

    mode: str = setting("relative", "What is drawn.", choices=("relative", "rolling", "cumulative"))
    reference: int = setting(0, "The lane that others are compared with.", low=0)
    roll: int = setting(256, "Tokens of a rolling mean.", low=1, high=65_536)

    def numbers(self, source: Run) -> Numbers:
        if self.reference >= len(source.tracks):
            raise ValueError(f"the run has lanes 0 to {len(source.tracks) - 1}, and not {self.reference}")
        other, rows = source.tracks[self.reference].sums.view(), []
        for lane, track in enumerate(source.tracks):
            count = len(track.nll) if self.mode != "relative" else min(len(track.nll), len(other) - 1)
            sums, ends = track.sums.view(), np.arange(FIRST, count + 1)
            if self.mode == "relative":
                mean = metrics.rolling_mean(sums[: count + 1] - other[: count + 1], ends, self.roll)
            elif self.mode == "rolling":
                mean = metrics.rolling_mean(sums, ends, self.roll)
            else:
                mean = sums[ends] / ends
            kept = thinned(mean)
            rows += [(lane, int(ends[i]), float(np.exp(mean[i])), "") for i in kept]
        switches = [
            tuple(e.get(name) for name in ("lane", "position", "policy"))
            for e in source.events
            if e["what"] == "switch"
        ]
        # What others wrote into a run folder may say less.
        marks = [(lane, at, np.nan, policy) for lane, at, policy in switches if None not in (lane, at, policy)]
        for lane, policy in enumerate(parse(p) for p in source.spec.policies):
            if policy.full_from is not None and policy.full_from < len(source.tracks[lane].nll):
                marks.append((lane, policy.full_from, np.nan, "full"))
        lane, token, value, mark = zip(*rows, *marks, strict=True)
        policies = np.array(source.spec.policies)
        lane = np.array(lane)
        return {
            "lane": lane,
            "policy": policies[lane],
            "token": np.array(token),
            "perplexity": np.array(value),
            "mark": np.array(mark),
        }

    def draw(self, data: Numbers, *, ax: Axes | None = None) -> Axes:
        ax = perplexity(data, ax=ax)
        names = {
            "relative": f"Perplexity, times that of lane {self.reference}",
            "rolling": f"Perplexity, last {self.roll} tokens",
            "cumulative": "Perplexity from the start",
        }
        ax.set(ylabel=names[self.mode])
        return ax


def perplexity(data: Numbers, *, ax: Axes | None = None) -> Axes:
    """Draw columns `lane`, `policy`, `token`, `perplexity`; rows with a `mark` say when a lane switched or was full."""
    ax = axes(ax)
    lanes = sorted(set(data["lane"].tolist()))
    policies = [parse(data["policy"][data["lane"] == lane][0]) for lane in lanes]
    curve = data["mark"] == ""
    for lane, policy, (colour, dash) in zip(lanes, policies, colours(policies), strict=True):
        of = (data["lane"] == lane) & curve
        ax.plot(data["token"][of], data["perplexity"][of], color=colour, ls=STYLES[dash], label=policy.label)
        for i in np.flatnonzero((data["lane"] == lane) & ~curve):
            at, mark = data["token"][i], data["mark"][i]
            ax.axvline(at, color=colour, lw=0.6, ls=":" if mark == "full" else "--")
            words = "cache full" if mark == "full" else parse(mark).label
            ax.annotate(
                words, (at, 1), xycoords=("data", "axes fraction"), xytext=(2, -3), textcoords="offset points",
                rotation=90, va="top", color=colour, fontsize="x-small",
            )  # fmt: skip
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    ax.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:.1e}"[0] in "235" else "")
    ax.set(xlabel="Tokens read", ylabel="Perplexity")
    ax.legend(frameon=False)
    return ax
