"""What the sink's value is worth, and what its weight is."""

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from numpy.typing import NDArray

from analysis import metrics, texts
from analysis.policies import parse
from app import address
from app.components import chart
from app.lesson import Chapter
from app.lesson.answers import Answer, Question
from app.panels.charts import LEGEND, MARGIN

from . import stage

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel

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


def sizes(model: "LanguageModel", text: str, bos: str) -> Answer:
    """What stands at the first token over samples of a text, times the others', [layers]: norms of its `value` and its
    `key`, and its largest `activation`, times the median."""
    from analysis.experiments.measures import NORMS, joined, measure, samples_of

    begin = texts.opening(model.tokenizer, bos)
    samples = samples_of(_tokens(model, text, 4096, "off"), SAMPLES, LENGTH, begin)
    found = joined(list(measure(model, samples, first=1)))
    norms = {kind: found.norms[:, NORMS.index(kind)].mean(0) for kind in ("value", "key")}
    activation = (found.largest[..., 0] / found.median).mean(0)
    return {kind: of[:, 0] / of[:, 1] for kind, of in norms.items()} | {"activation": activation}


def perplexity(model: "LanguageModel", text: str, bos: str, taken: str) -> Answer:
    """Of a stretch of a text, with what attention finds at the first token changed in every head."""
    from analysis.engine.stream import open_lanes

    before, then = (parse(p) for p in TAKEN[taken])
    (lane,) = open_lanes(model, _tokens(model, text, END, bos), [before], sink_tokens=1)
    while lane.position < BEGIN:
        lane.read(BEGIN - lane.position)
    lane.switch(then)
    nll = []
    while not lane.done:
        nll.append(lane.read(END).nll)
    return {"perplexity": np.array(metrics.perplexity(np.concatenate(nll)))}


def _tokens(model: "LanguageModel", text: str, tokens: int, bos: str) -> NDArray[np.int32]:
    """The first tokens of a text, [tokens]."""
    return texts.tokenize(texts.read(text), model.tokenizer, bos=bos, limit=tokens)


def draw(chapter: Chapter, page: Chapter) -> None:
    """Norms at the first token, and perplexity with the sink taken away."""
    room, state = st.container(), st.session_state
    taken = stage.one_of(chapter.say("take"), list(TAKEN), "nothing-take", "none", chapter.say)
    pressed = state.lesson.setdefault("nothing-pressed", ["none"])
    if taken not in pressed:
        pressed.append(taken)
    asked = (stage.SPEC.text, stage.bos())
    names = [name for name in TAKEN if name in pressed]
    found = stage.answers(page, Question(sizes, asked), *(Question(perplexity, (*asked, name)) for name in names))
    if found is None:
        return
    (measured, *perplexities), about = found
    with room:
        chart.mount(
            norms(measured, chapter, page),
            key="nothing-norms",
            alt=chapter.say("alt-norms", values=", ".join(f"{v:.2f}" for v in measured["value"])),
            height=270,
            projected=42,
        )
    of = {name: float(answer["perplexity"]) for name, answer in zip(names, perplexities, strict=True)}
    values = ", ".join(f"{chapter.say(n)}: {p:.1f}" for n, p in of.items())
    st.caption(chapter.say("perplexity", begin=BEGIN, end=END))
    chart.mount(
        bars(of, chapter), key="nothing-bars", alt=chapter.say("alt-bars", values=values), height=190, projected=28
    )
    stage.source(page, about)


def norms(measured: Answer, chapter: Chapter, page: Chapter) -> go.Figure:
    """Norms at the first token against those of the others, by layer."""
    figure = go.Figure()
    lines = {
        "value": ("#009E73", "solid"),
        "key": ("#E69F00", "dash"),
        "activation": ("#D55E00", "dashdot"),
    }
    for name, (colour, dash) in lines.items():
        figure.add_scatter(
            x=np.arange(len(measured[name])),
            y=measured[name],
            name=chapter.say(name),
            mode="lines",
            line={"color": colour, "dash": dash},
            hovertemplate="%{x}: %{y:.3~g}",
        )
    figure.add_hline(y=1, line={"color": "#767676", "width": 1, "dash": "dot"})
    figure.update_layout(margin={**MARGIN, "t": 44}, legend=LEGEND)
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


ASKED = ("hamlet", "auto")
PLAY = stage.Play(
    draw,
    recorded=(Question(sizes, ASKED), *(Question(perplexity, (*ASKED, taken)) for taken in TAKEN)),
    choices={"take": stage.Choice(address.one_of("take", TAKEN), "nothing-take", "none")},
)
