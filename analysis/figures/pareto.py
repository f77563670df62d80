"""Which caches are worth what they take: quality against cost."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ..palette import lines
from ..policies import parse
from ..settings import setting
from .base import Figure, Numbers
from .drawing import axes, decades, legend, octaves
from .line_styles import line_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..experiments.verdict import Entry, Verdict

COSTS = {"tokens": "Cached tokens", "megabytes": "Cache, MB", "milliseconds": "ms/token"}
"""What a cache costs, and the words on the axis."""
LEAST = 1e-4
"""The KL divergence, in nats/token, that all smaller ones are drawn at: below it they are rounding, or 0, which no
logarithm has."""


def measures(entries: "Iterable[Entry]") -> dict[str, str]:
    """The tasks of recall of these entries, by how `measure` names them."""
    return {task.replace(",", ";"): task for e in entries for task in e.recall}


@dataclass(frozen=True)
class Pareto(Figure):
    """Policies at budgets: perplexity over dense's, or the share recalled, against what the cache takes, one line for
    each policy.  A ring marks the Pareto front: nothing that takes less is as good."""

    name: ClassVar[str] = "pareto"
    title: ClassVar[str] = "Quality against cost"
    needs: ClassVar[str] = "verdict"

    measure: str = setting(
        "perplexity",
        "What is good: perplexity, kl, or a task of recall; where it has several settings, they follow a colon, with "
        "semicolons between them.",
        pattern=r"[\w.\-:=;]{1,200}",
    )
    cost: str = setting("megabytes", "What a cache takes.", choices=tuple(COSTS))

    @property
    @override
    def task(self) -> str:
        return "" if self.measure in ("perplexity", "kl") else self.measure

    def seen(self) -> str:
        """A sentence on the quality and the cost that are drawn."""
        value = {"perplexity": "perplexity over dense's", "kl": "KL divergence from dense"}
        cost = {"tokens": "cached tokens", "megabytes": "megabytes of the cache", "milliseconds": "ms a token"}
        return (
            f"{self.title}. Policies at budgets: {value.get(self.measure, f'the share recalled of {self.measure}')} "
            f"against {cost[self.cost]}, one line for each policy. A ring marks the Pareto front: nothing that takes "
            "less is as good." + self._of_shares() + self._least()
        )

    def _of_shares(self) -> str:
        """What shares and their costs are of."""
        if not self.task:
            return ""
        read = " What a cache takes was measured on other texts." if self.cost != "tokens" else ""
        return f" Shares are of the facts that dense recalls.{read}"

    def _least(self) -> str:
        """Where a divergence is drawn that is 0, or as good as that."""
        return f" A divergence below {LEAST:g} nats/token is drawn at {LEAST:g}." if self.measure == "kl" else ""

    def numbers(self, source: "Verdict") -> Numbers:
        """Columns `policy`, `title`, `cost`, `value` and `front`; a row for each entry, dense with NaN for tokens.

        Raises ValueError where that was not measured.
        """
        task = self._task(source)
        entries = [(e, value) for e in source.entries if (value := self._value(e, task)) is not None]
        if all(e.budget is None for e, _ in entries):
            # Dense alone is nothing to compare.
            rivals = [e for e in source.entries if e.budget is not None]
            asked = {"perplexity": "perplexity", "kl": "kl", **measures(rivals)}
            known = [name for name, of in asked.items() if any(self._value(e, of) is not None for e in rivals)]
            why = f"{self.measure} was not measured"
            if task in measures(rivals).values():
                why = f"dense itself recalls nothing of {self.measure}"
            raise ValueError(f"{why}: choose one of {', '.join(known)}" if known else f"{why}: compare by perplexity")
        costs = [self._cost(e) for e, _ in entries]
        if self.cost != "tokens" and all(np.isnan(costs)):
            raise ValueError("what a cache takes was not measured, since no text was read: choose cost=tokens")
        loss = [value if self.measure in ("perplexity", "kl") else -value for _, value in entries]
        points = list(zip(costs, loss, strict=True))
        front = [not any(p != q and p[0] <= q[0] and p[1] <= q[1] for p in points) for q in points]
        return {
            "policy": np.array([e.policy for e, _ in entries]),
            "title": np.array(lines([parse(e.policy) for e, _ in entries])),
            "cost": np.array(costs),
            "value": np.array([value for _, value in entries]),
            # What has no cost is beaten by nothing, and stands nowhere.
            "front": np.array(front) & ~np.isnan(costs),
        }

    def _task(self, source: "Verdict") -> str:
        """The task that is meant: the one that is written so, or the only one of this name."""
        tasks = measures(source.entries)
        if self.measure in tasks:
            return tasks[self.measure]
        named = [written for written in tasks if written.partition(":")[0] == self.measure]
        if len(named) > 1:
            raise ValueError(f"{self.measure} was measured with several settings: choose one of {', '.join(named)}")
        return tasks[named[0]] if named else self.measure

    def _value(self, entry: "Entry", task: str) -> float | None:
        if task in ("perplexity", "kl"):
            return entry.relative if task == "perplexity" else entry.kl
        of = entry.recall.get(task)
        return None if of is None or not of.asked else of.hits / of.asked

    def _cost(self, entry: "Entry") -> float:
        found = {"tokens": entry.budget, "megabytes": entry.megabytes, "milliseconds": entry.milliseconds}[self.cost]
        return float("nan") if found is None else float(found)

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """A line for each policy, over its budgets."""
        said = {"perplexity": "Perplexity ÷ dense", "kl": "KL divergence from dense, nats/token"}
        value = said.get(self.measure, f"Recalled, {self.measure}")
        return pareto(data, cost=COSTS[self.cost], value=value, share=self.measure not in said, ax=ax)


def pareto(data: Numbers, *, cost: str, value: str, share: bool, ax: "Axes | None" = None) -> "Axes":
    """Draw columns `policy`, `title`, `cost`, `value`, `front`: a line for each title, and a level for dense.

    `cost` and `value`: the words on the axes; `share`: whether values are shares, from 0 to 1; others are drawn by
    their logarithms.
    """
    ax = axes(ax)
    titles, (values, small) = list(dict.fromkeys(data["title"])), at_least(data, share=share)
    firsts = [parse(data["policy"][data["title"] == title][0]) for title in titles]
    for title, first, style in zip(titles, firsts, line_styles(firsts), strict=True):
        of = np.flatnonzero(data["title"] == title)
        if first.name == "dense":
            # Its KL divergence from itself is 0, which no logarithm has.
            if not data["value"][of][0]:
                continue
            ax.axhline(data["value"][of][0], color=style["color"], linestyle=style["linestyle"], lw=0.8, label=title)
            continue
        of = of[np.argsort(data["cost"][of])]
        # Every budget is a run of its own, so every one has a marker.
        style |= {"markevery": None, "marker": style["marker"] or "."}
        ax.plot(data["cost"][of], values[of], **style, label=title)
    front = on_front(data, share=share)
    ax.plot(data["cost"][front], values[front], "o", ms=6, mfc="none", mec="0.4", mew=0.7, label="Pareto front")
    ax.set_xscale("log", base=2)
    octaves(ax.xaxis)
    if share:
        ax.set_ylim(-0.03, 1.03)
    elif small:
        ax.set_yscale("log")
        ax.set_ylim(0.7 * LEAST, max(10 * LEAST, ax.get_ylim()[1]))
        decades(ax.yaxis, least=LEAST)
    else:
        ax.set_yscale("log", base=2)
        octaves(ax.yaxis, least=3)
    ax.set(xlabel=cost, ylabel=value)
    legend(ax)
    return ax


def at_least(data: Numbers, *, share: bool) -> tuple[NDArray[np.float64], bool]:
    """Column `value` as it is drawn, and whether some policy's was smaller than LEAST; shares are drawn as they are."""
    values = data["value"].astype(np.float64)
    if share:
        return values, False
    return np.maximum(values, LEAST), bool(((values < LEAST) & (data["policy"] != "dense")).any())


def on_front(data: Numbers, *, share: bool) -> NDArray[np.bool_]:
    """Which rows have a ring: those of column `front`, but for dense where it has no level."""
    return data["front"].astype(bool) & (share | (data["value"] > 0) | (data["policy"] != "dense"))
