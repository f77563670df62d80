"""Charts that stand still between two steps: data → plotly figures.  No Streamlit in here."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from analysis.ablation import Effect

MARGIN = {"l": 48, "r": 8, "t": 8, "b": 44}


def effects(found: Sequence[Effect], layers: int, heads: int) -> go.Figure:
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
    figure.update_xaxes(title="layer", range=[-0.5, layers - 0.5])
    figure.update_yaxes(title="head", range=[-0.5, heads - 0.5], dtick=1)
    return figure


def ranking(largest: Sequence[Effect]) -> go.Figure:
    """Bars of heads in the order in which they are given, with their standard errors."""
    figure = go.Figure(
        go.Bar(
            x=[e.excess for e in largest],
            y=[f"{e.layer}.{e.head}" for e in largest],
            error_x={"array": [e.error for e in largest], "thickness": 1},
            orientation="h",
            marker={"color": "#0072B2"},
            hovertemplate="head %{y}<br>%{x:+.4f} nats/token<extra></extra>",
        )
    )
    figure.update_layout(height=max(160, 24 * len(largest) + 60), margin=MARGIN, dragmode=False)
    figure.update_xaxes(title="nats/token, ± standard error", zeroline=True)
    figure.update_yaxes(title="layer.head", type="category", autorange="reversed")
    return figure
