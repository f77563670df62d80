"""What the sink's value is worth, and what its weight is."""

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from analysis import metrics, texts
from analysis.engine.stream import open_lanes
from analysis.experiments.measures import NORMS, Measured, joined, measure, samples_of
from analysis.policies import parse
from app import address
from app.components import chart
from app.lesson import Chapter
from app.panels.charts import MARGIN

from . import stage

BEGIN, END = 128, 384
"""Tokens that are read with the sink taken away: few, since the first result should come at once."""
SAMPLES, LENGTH = 8, 64
TAKEN = {
    "none": ("dense", "dense"),
    "values": ("dense", "dense:knockout=values"),
    "weights": ("dense", "dense:knockout=weights"),
    "start": ("dense:knockout=weights", "dense:knockout=weights"),
}
"""How the tokens before are read, and those that count."""
COLOURS = {"none": "#767676", "values": "#009E73", "weights": "#D55E00", "start": "#E69F00"}


@st.cache_resource(show_spinner=False)
def measured(bos: str) -> Measured:
    """Norms and activations of the embedded model over samples of Hamlet."""
    begin = texts.opening(stage.model().tokenizer, bos)
    samples = samples_of(stage.hamlet(4096, "off"), SAMPLES, LENGTH, begin)
    return joined(list(measure(stage.model(), samples, first=1)))


@st.cache_resource(show_spinner=False)
def perplexity(taken: str, bos: str) -> float:
    """Of a stretch of Hamlet, with what attention finds at the first token changed in every head."""
    before, then = (parse(p) for p in TAKEN[taken])
    (lane,) = open_lanes(stage.model(), stage.hamlet(END, bos), [before], sink_tokens=1)
    while lane.position < BEGIN:
        lane.read(BEGIN - lane.position)
    lane.switch(then)
    nll = []
    while not lane.done:
        nll.append(lane.read(END).nll)
    return metrics.perplexity(np.concatenate(nll))


def draw(chapter: Chapter, page: Chapter) -> None:
    """Norms at the first token, and perplexity with the sink taken away."""
    sizes = measured(stage.bos())
    value = _ratio(sizes, "value")
    chart.mount(
        norms(sizes, chapter, page),
        key="nothing-norms",
        alt=chapter.say("alt-norms", values=", ".join(f"{v:.2f}" for v in value)),
        height=270,
        projected=42,
    )
    taken = stage.one_of(chapter.say("take"), list(TAKEN), "nothing-take", "none", chapter.say)
    pressed = st.session_state.lesson.setdefault("nothing-pressed", ["none"])
    if taken not in pressed:
        pressed.append(taken)
    with st.spinner(page.say("reading")):
        found = {name: perplexity(name, stage.bos()) for name in TAKEN if name in pressed}
    values = ", ".join(f"{chapter.say(n)}: {p:.1f}" for n, p in found.items())
    st.caption(chapter.say("perplexity", begin=BEGIN, end=END))
    chart.mount(
        bars(found, chapter), key="nothing-bars", alt=chapter.say("alt-bars", values=values), height=190, projected=28
    )


def _ratio(sizes: Measured, kind: str) -> np.ndarray:
    """Norm at the first token, times the mean of the others', by layer."""
    of = sizes.norms[:, NORMS.index(kind)].mean(0)
    return of[:, 0] / of[:, 1]


def norms(sizes: Measured, chapter: Chapter, page: Chapter) -> go.Figure:
    """Norms at the first token against those of the others, by layer."""
    figure = go.Figure()
    lines = {
        "value": (_ratio(sizes, "value"), "#009E73", "solid"),
        "key": (_ratio(sizes, "key"), "#E69F00", "dash"),
        "activation": ((sizes.largest[..., 0] / sizes.median).mean(0), "#D55E00", "dashdot"),
    }
    for name, (y, colour, dash) in lines.items():
        figure.add_scatter(
            x=np.arange(len(y)),
            y=y,
            name=chapter.say(name),
            mode="lines",
            line={"color": colour, "dash": dash},
            hovertemplate="%{x}: %{y:.3~g}",
        )
    figure.add_hline(y=1, line={"color": "#767676", "width": 1, "dash": "dot"})
    figure.update_layout(margin={**MARGIN, "t": 44}, legend={"orientation": "h", "y": 1.3, "x": 0})
    figure.update_xaxes(title=page.say("layer"))
    figure.update_yaxes(title=chapter.say("norms-axis"), type="log", dtick=1)
    return figure


def bars(found: dict[str, float], chapter: Chapter) -> go.Figure:
    """Perplexity with each thing taken away."""
    figure = go.Figure(
        go.Bar(
            y=[chapter.say(n) for n in found],
            x=list(found.values()),
            orientation="h",
            marker={"color": [COLOURS[n] for n in found]},
            text=[f"{p:,.1f}" for p in found.values()],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1f}<extra></extra>",
        )
    )
    figure.update_layout(margin={**MARGIN, "r": 60}, showlegend=False)
    figure.update_xaxes(type="log", dtick=1, title=chapter.say("bars"), range=[0, np.log10(max(found.values()) * 1.4)])
    figure.update_yaxes(autorange="reversed")
    return figure


PLAY = stage.Play(draw, choices={"take": stage.Choice(address.one_of("take", TAKEN), "nothing-take", "none")})
