"""Charts that stand still between two steps: data → plotly figures.  No Streamlit in here."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from analysis.figures.pareto import LEAST, at_least, on_front
from analysis.metrics import decimate
from analysis.palette import colours, labels
from analysis.policies import parse
from app.plain import markup

if TYPE_CHECKING:
    from analysis.experiments.ablation import Effect
    from analysis.experiments.measures import Measured
    from analysis.figures import Numbers

POINTS = 1500
"""Of a curve, at most."""
MARGIN = {"l": 48, "r": 8, "t": 8, "b": 44}
LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
"""Above a plot, which makes room for all its rows: on a narrow page there are several."""
SHARES = {"type": "linear", "range": [-3, 103], "ticksuffix": " %"}
"""The axis of shares, which are drawn in per cent."""


def logarithmic(values: NDArray[np.floating]) -> dict[str, Any]:
    """An axis of logarithms for these values.  By itself plotly writes the last digit of 0.9 or 20 alone."""
    known = values[np.isfinite(values) & (values > 0)]
    # All nine numbers from a power of ten to the next would be written over each other: 1, 2 and 5 are not.
    few = known.size > 0 and 5 <= known.max() / known.min() < 1000
    return {"type": "log", "tickformat": ",~g"} | ({"dtick": "D2"} if few else {})


def of_layers(count: int) -> dict[str, Any]:
    """An axis of so many layers, with whole numbers on it."""
    return {"title": "layer", "dtick": max(1, count // 6)}


def effects(found: "Sequence[Effect]", layers: int, heads: int) -> go.Figure:
    """Layers × heads, coloured by what the text then costs more, in nats per token; blank where not known yet."""
    cost = np.full((heads, layers), np.nan)
    for e in list(found):
        cost[e.head, e.layer] = e.excess
    most = max(1e-3, np.nanmax(np.abs(cost)) if len(found) else 0)
    figure = go.Figure(
        go.Heatmap(
            z=cost,
            colorscale="RdBu_r",
            zmid=0,
            zmin=-most,
            zmax=most,
            xgap=1,
            ygap=1,
            hovertemplate="layer %{x}, head %{y}<br>%{z:+.4f} nats/token<extra></extra>",
            colorbar={"title": {"text": "nats/token", "side": "right"}, "thickness": 12},
        )
    )
    figure.update_layout(height=330, margin=MARGIN, dragmode=False)
    figure.update_xaxes(of_layers(layers), range=[-0.5, layers - 0.5])
    figure.update_yaxes(title="head", range=[-0.5, heads - 0.5], dtick=1)
    return figure


def cells(values: NDArray[np.floating], label: str, top: float | None = None) -> go.Figure:
    """Numbers of each layer and head, [layers, heads]; `top`: the one with the brightest colour, None: the largest."""
    figure = go.Figure(
        go.Heatmap(
            z=values.T,
            colorscale="Viridis",
            zmin=0,
            zmax=top,
            xgap=1,
            ygap=1,
            hovertemplate="layer %{x}, head %{y}<br>%{z:.3f}<extra></extra>",
            colorbar={"title": {"text": label, "side": "right"}, "thickness": 12},
        )
    )
    figure.update_layout(height=300, margin=MARGIN, dragmode=False)
    figure.update_xaxes(of_layers(len(values)), range=[-0.5, len(values) - 0.5])
    figure.update_yaxes(title="head", range=[-0.5, values.shape[1] - 0.5], dtick=1)
    return figure


def depth(values: NDArray[np.floating], label: str) -> go.Figure:
    """Mean over heads by layer, of numbers [samples, layers, heads]; the band is ± one deviation of samples, and
    none where there is one sample."""
    of_samples = values.mean(2)
    mean = of_samples.mean(0)
    spread = of_samples.std(0, ddof=1) if len(values) > 1 else np.full(len(mean), np.nan)
    layers = np.arange(len(mean))
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure = go.Figure(
        [
            go.Scatter(x=layers, y=mean - spread, **band),
            go.Scatter(x=layers, y=mean + spread, fill="tonexty", fillcolor="rgba(0, 114, 178, 0.22)", **band),
            go.Scatter(x=layers, y=mean, mode="lines+markers", marker={"size": 4}, line={"color": "#0072B2"}),
        ]
    )
    figure.update_layout(height=300, margin=MARGIN, dragmode=False, showlegend=False)
    figure.update_xaxes(of_layers(len(layers)))
    figure.update_yaxes(title=label, rangemode="tozero")
    return figure


def norms(measured: "Measured") -> go.Figure:
    """Norms at the first token against those at the others, and the largest activation, by layer."""
    # It brings torch, which a page that compares runs does without.
    from analysis.experiments.measures import NORMS

    mean = measured.norms.mean(0)
    layers = np.arange(mean.shape[1])
    styles = {"key": ("#E69F00", "dash"), "value": ("#009E73", "solid"), "hidden": ("#0072B2", "dot")}
    figure = go.Figure()
    for kind, of in zip(NORMS, mean, strict=True):
        colour, dash = styles[kind]
        line = {"color": colour, "dash": dash}
        figure.add_scatter(x=layers, y=of[:, 0] / of[:, 1], name=f"{kind} of the first token", line=line)
    figure.add_scatter(
        x=layers,
        y=(measured.largest[..., 0] / measured.median).mean(0),
        name="largest activation / median",
        line={"color": "#D55E00", "dash": "dashdot"},
    )
    figure.update_layout(height=320, margin=MARGIN, dragmode=False, legend=LEGEND)
    figure.update_xaxes(of_layers(len(layers)))
    figure.update_yaxes(title="times that of the others", type="log", tickformat=",~g")
    return figure


def ranking(largest: "Sequence[Effect]") -> go.Figure:
    """Bars of heads in the order in which they are given, with their standard errors where these are known."""
    # A list's NaN would reach the browser as null, and be drawn as an error of 0.
    errors = np.array([e.error for e in largest])
    figure = go.Figure(
        go.Bar(
            x=[e.excess for e in largest],
            y=[f"{e.layer}.{e.head}" for e in largest],
            error_x={"array": errors, "thickness": 1},
            orientation="h",
            marker={"color": "#0072B2"},
            hovertemplate="head %{y}<br>%{x:+.4f} nats/token<extra></extra>",
        )
    )
    figure.update_layout(height=max(160, 24 * len(largest) + 60), margin=MARGIN, dragmode=False)
    title = "nats/token" if np.isnan(errors).all() else "nats/token, ± standard error"
    figure.update_xaxes(title=title, zeroline=True)
    figure.update_yaxes(title="layer.head", type="category", autorange="reversed")
    return figure


def overlay(curves: Sequence[tuple[str, str, str, NDArray[np.int64], NDArray[np.floating]]], mode: str) -> go.Figure:
    """Curves of lanes of several runs, as perplexities; those that are relative as times that of the reference."""
    relative = mode == "relative"
    figure, what = go.Figure(), "times the reference" if relative else "perplexity"
    values = np.exp(np.concatenate([np.zeros(int(relative)), *(np.minimum(nll, 50) for *_, nll in curves)]))
    for name, colour, dash, tokens, nll in curves:
        at = decimate(nll, POINTS)
        figure.add_scatter(
            x=tokens[at],
            # Beyond this nothing is to be seen.
            y=np.exp(np.minimum(nll[at], 50)),
            name=markup(name),
            mode="lines",
            line={"color": colour, "dash": dash, "width": 1.8},
            hovertemplate=f"token %{{x:,}}: %{{y:.4g}} {what}",
        )
    figure.update_layout(margin=MARGIN, legend=LEGEND, showlegend=True)
    figure.update_xaxes(title="tokens read", tickformat="~s")
    figure.update_yaxes(title="times the reference" if relative else f"{mode} perplexity", **logarithmic(values))
    return figure


def recall(numbers: "Numbers") -> go.Figure:
    """What each policy recalls over the distance to the fact, with 95 % intervals: columns that RecallCurve gives."""
    figure, names = go.Figure(), list(dict.fromkeys(numbers["policy"].tolist()))
    policies = [parse(name) for name in names]
    for name, label, (colour, dash) in zip(names, labels(policies), colours(policies), strict=True):
        of = numbers["policy"] == name
        x, share, low, high = (numbers[column][of] for column in ("distance", "recalled", "low", "high"))
        figure.add_scatter(
            x=x,
            y=100 * share,
            name=markup(label),
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 1.8},
            error_y={"array": 100 * (high - share), "arrayminus": 100 * (share - low), "thickness": 1, "width": 2},
            hovertemplate="%{x:,.0f} tokens: %{y:.0f} % recalled",
        )
    figure.update_layout(margin=MARGIN, legend=LEGEND, showlegend=True)
    figure.update_xaxes(title="tokens from the fact to the answer", rangemode="tozero")
    figure.update_yaxes(title="recalled", **SHARES)
    return figure


def pareto(numbers: "Numbers", cost: str, quality: str, *, share: bool) -> go.Figure:
    """Policies at budgets, a line for each policy and a level for dense: columns that the figure Pareto gives.

    `cost` and `quality`: the words on the axes; `share`: whether values are shares, from 0 to 1, which are drawn in per
    cent; others are drawn by their logarithms.
    """
    figure, titles = go.Figure(), list(dict.fromkeys(numbers["title"].tolist()))
    policies = [parse(numbers["policy"][numbers["title"] == title][0]) for title in titles]
    known, (values, small) = ~np.isnan(numbers["cost"]), at_least(numbers, share=share)
    values = 100 * values if share else values
    for title, policy, (colour, dash) in zip(titles, policies, colours(policies), strict=True):
        of = np.flatnonzero((numbers["title"] == title) & (known | (policy.name == "dense")))
        if policy.name == "dense":
            level = float(numbers["value"][of[0]]) * (100 if share else 1)
            # Its KL divergence from itself is 0, which no logarithm has.
            if level and known.any():
                ends = [numbers["cost"][known].min(), numbers["cost"][known].max()]
                # Over a single cost a line would have no length.
                ends = [ends[0] / 2, ends[1] * 2] if ends[0] == ends[1] else ends
                line = {"color": colour, "dash": "dot", "width": 1.2}
                figure.add_scatter(x=ends, y=[level] * 2, name=markup(title), mode="lines", line=line, hoverinfo="name")
            continue
        of = of[np.argsort(numbers["cost"][of])]
        figure.add_scatter(
            x=numbers["cost"][of],
            y=values[of],
            customdata=numbers["value"][of],
            name=markup(title),
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 1.8},
            hovertemplate="%{x:,.4g}: %{y:.0f} %" if share else "%{x:,.4g}: %{customdata:.4g}",
        )
    front = on_front(numbers, share=share)
    ring = {"symbol": "circle-open", "size": 13, "color": "#767676", "line": {"width": 1.5}}
    x, y = numbers["cost"][front], values[front]
    figure.add_scatter(x=x, y=y, name="Pareto front", mode="markers", marker=ring, hoverinfo="skip")
    figure.update_layout(margin=MARGIN, legend=LEGEND, showlegend=True)
    # Budgets are doubled more often than they are made ten times as large.
    doubled = [2.0**n for n in range(-10, 31)]
    ticks = {"tickvals": doubled, "ticktext": [f"{n:,.0f}" if n >= 1 else f"{n:.4g}" for n in doubled]}
    costs = set(numbers["cost"][known].tolist())
    between = [n for n in doubled if costs and min(costs) <= n <= max(costs)]
    figure.update_xaxes(
        title=cost, **logarithmic(numbers["cost"]) | (ticks if len(between) > 1 or len(costs) < 2 else {})
    )
    figure.update_yaxes(SHARES if share else logarithmic(values), title=quality)
    if small:
        tens = [10.0**n for n in range(round(math.log10(LEAST)), 7)]
        figure.update_yaxes(tickvals=tens, ticktext=[f"≤ {LEAST:g}", *(f"{n:,g}" for n in tens[1:])])
    return figure


def difference(values: NDArray[np.floating]) -> go.Figure:
    """Sink mass of each layer and head, less that of another run, [layers, heads]."""
    figure = cells(values, "")
    most = max(1e-3, float(np.abs(values).max()))
    figure.update_traces(
        colorscale="RdBu_r", zmin=-most, zmax=most, zmid=0,
        hovertemplate="layer %{x}, head %{y}<br>%{z:+.3f}<extra></extra>",
    )  # fmt: skip
    return figure
