"""Perplexity against the size of the cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .. import COMMAND, metrics
from ..palette import lines
from ..policies import parse
from .base import Figure, Numbers
from .drawing import axes, legend, octaves
from .line_styles import line_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Budget(Figure):
    """Perplexity of the lanes of a grid's runs against the most tokens that each cached, one line for each policy.  All
    have read the same tokens, by the same model."""

    name: ClassVar[str] = "budget"
    title: ClassVar[str] = "Perplexity against budget"
    needs: ClassVar[str] = "grid"

    def numbers(self, source: Path) -> Numbers:
        """Columns `policy`, `cached` and `perplexity`: a row for each lane.  Raises ValueError where there is none, or
        lanes have read other tokens, whose perplexities say nothing of policies."""
        from ..runs.reader import load
        from ..runs.summary import shared_tokens

        found, first = [], None
        for about in sorted(Path(source).glob("*/run.json")):
            run = load(about.parent)
            if not run.tracks or not len(run.tracks[0].nll):
                continue
            first = first or run
            read, loading = len(first.tracks[0].nll), first.spec.loading
            for lane, (policy, track) in enumerate(zip(run.spec.policies, run.tracks, strict=True)):
                if track.policies[1:]:
                    raise ValueError(
                        f"lane {lane} of {about.parent.name} was switched to another policy, so its perplexity is that "
                        "of no policy: choose a folder of runs whose lanes keep theirs"
                    )
                same = shared_tokens(first, 0, run, lane)
                if run.spec.loading != loading or not read == same == len(track.nll):
                    raise ValueError(
                        f"{about.parent.name} has other tokens or another model than other runs of {source}: choose a "
                        f"folder of runs that differ in policies alone, as {COMMAND} reproduce budgets makes it"
                    )
                found.append((policy, int(track.cache_tokens.view().max()), metrics.perplexity(track.nll.view())))
        if not found:
            raise ValueError(f"{source} holds no runs: {COMMAND} reproduce budgets --out {source} makes them")
        policy, held, value = zip(*sorted(dict.fromkeys(found), key=lambda f: (parse(f[0]).name, f[1])), strict=True)
        return {"policy": np.array(policy), "cached": np.array(held), "perplexity": np.array(value)}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """A line for each policy, over its sizes of the cache."""
        return budget(data, ax=ax)


def budget(data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
    """Draw columns `policy`, `cached`, `perplexity`: a line for each policy over its budgets, a level for dense."""
    ax = axes(ax)
    policies = [parse(p) for p in data["policy"]]
    of_lines = np.array(lines(policies))
    names = list(dict.fromkeys(of_lines.tolist()))
    firsts = [policies[int(np.argmax(of_lines == name))] for name in names]
    for name, first, style in zip(names, firsts, line_styles(firsts), strict=True):
        of = of_lines == name
        if first.name == "dense":
            ax.axhline(
                data["perplexity"][of][0], color=style["color"], linestyle=style["linestyle"], lw=0.8, label=name
            )
            continue
        # Every size is a run, so every one has a marker.
        style |= {"markevery": None, "marker": style["marker"] or "."}
        ax.plot(data["cached"][of], data["perplexity"][of], **style, label=name)
    ax.set_xscale("log", base=2)
    octaves(ax.xaxis)
    ax.set(xlabel="Cached tokens", ylabel="Perplexity")
    legend(ax)
    return ax
