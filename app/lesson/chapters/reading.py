"""Lanes of a run as chapters draw them: one chart, and a number for each lane."""

from collections.abc import Collection, Sequence

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from numpy.typing import NDArray

from analysis import metrics
from analysis.palette import colours
from analysis.policies import parse
from analysis.runs.run import Track
from analysis.runs.screen import POINTS
from app.panels.charts import LEGEND, MARGIN


def rolling(tracks: Sequence[Track], lane: int, reference: int | None = None) -> tuple[NDArray, NDArray]:
    """Tokens read and rolling perplexity of a lane, or its ratio to another lane's over the same tokens."""
    against = None if reference is None else tracks[reference].sums.view()
    mode = "rolling" if against is None else "relative"
    ends, mean = metrics.curve(tracks[lane].sums.view(), mode, reference=against)
    kept = metrics.decimate(mean, POINTS)
    return ends[kept], np.exp(mean[kept])


def newest(tracks: Sequence[Track], halted: Collection[int] = ()) -> tuple[int, list[float]]:
    """Tokens that all lanes but the halted have read, and the rolling perplexity of each lane at the last of them,
    [lanes]: lanes at different places of a text are not compared otherwise.  NaN while they are too few for a curve,
    and where a halted lane has not come so far."""
    read = [len(track.nll) for track in tracks]
    shared = min([n for lane, n in enumerate(read) if lane not in halted] or read)
    ends = np.array([shared])
    return shared, [
        float(metrics.perplexities(metrics.rolling_mean(track.sums.view(), ends, metrics.ROLL))[0])
        if metrics.FIRST <= shared <= n
        else float("nan")
        for track, n in zip(tracks, read, strict=True)
    ]


def styles(policies: Sequence[str]) -> list[tuple[str, str]]:
    """The colour and the dash of each lane."""
    return colours([parse(p) for p in policies])


def curves(
    lines: Sequence[tuple[str, NDArray, NDArray]], styles: Sequence[tuple[str, str]], x: str, y: str, least: float
) -> go.Figure:
    """Lines with their names at their ends; `least`: the axis goes at least so high."""
    figure = go.Figure()
    tops = [np.quantile(v, 0.998) for _, _, v in lines if len(v)] or [least]
    lows = [np.quantile(v, 0.002) for _, _, v in lines if len(v)] or [least / 4]
    high, low = max(least, max(tops) * 1.15), min(lows) * 0.85
    longest = max([float(t[-1]) for _, t, _ in lines if len(t)], default=256.0)
    for (name, tokens, values), (colour, dash) in zip(lines, styles, strict=True):
        figure.add_scatter(
            x=tokens, y=values, name=name, line={"color": colour, "dash": dash, "width": 2}, hovertemplate="%{y:.3~g}",
            # One point has no line: nothing would be drawn of it.
            mode="markers" if len(tokens) == 1 else "lines", marker={"color": colour},
        )  # fmt: skip
    figure.update_layout(margin={**MARGIN, "t": 34}, legend=LEGEND)
    figure.update_xaxes(title=x, range=[0, max(longest, 256) * 1.01])
    ticks = [
        t for t in (1, 1.2, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1000) if low < t < high
    ]
    figure.update_yaxes(
        title=y, type="log", range=[np.log10(low), np.log10(high)], tickvals=ticks, ticktext=[f"{t:g}" for t in ticks]
    )
    return figure


def numbers(items: Sequence[tuple[str, str, str]]) -> None:
    """A number for each lane: its name, the number, and what stands below."""
    for column, (name, number, below) in zip(st.columns(len(items)), items, strict=True):
        column.metric(name, number, below or None, delta_color="off", delta_arrow="off")
