"""How much every head gives to the first token of the student's own sentence, and of others."""

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from analysis import texts
from app import address
from app.choices import kept_value
from app.components import chart
from app.lesson import Chapter
from app.lesson.answers import Answer, Question
from app.panels.charts import MARGIN
from app.ranges import ranges

from . import stage
from .sentence import long_enough, read, tokens

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel

MOST = 64
SINK = 0.3
"""Weight from which a head counts as a sink head (Gu et al. 2024)."""
BEGINNINGS = ("own", "word", "bos", "newline")
OTHER = "Yesterday"
LONGEST = 100
"""Characters of the word that a student puts first."""


def ask(model: "LanguageModel", sentence: str, other: str) -> Answer:
    """`masses` [beginnings, layers, heads]: the sink mass of the sentence with each beginning."""
    # What comes first is chosen here, BOS among it: so the sentence has none of its own.
    ids = tokens(model, sentence)
    count = {"count": np.array(len(ids))}
    if len(ids) < 2:
        return count
    _, space, rest = sentence.partition(" ")
    begun = {
        "own": ids,
        # Where no space parts words, as in Chinese, another one takes the place of the first token.
        "word": tokens(model, f"{other} {rest}") if space else [*tokens(model, other), *ids[1:]],
        "bos": [*texts.opening(model.tokenizer, "on"), *ids],
        "newline": [*tokens(model, "\n")[:1], *ids],
    }
    return count | {"masses": np.stack([read(model, begun[name][:MOST]).sink_mass for name in BEGINNINGS])}


def draw(chapter: Chapter, page: Chapter) -> None:
    """The sentence, its beginnings, and the sink mass of every head."""
    own, below = stage.written(page), st.container()
    left, right = st.columns([2, 1], vertical_alignment="bottom")
    begin = stage.one_of(chapter.say("begin"), BEGINNINGS, "first-begin", BEGINNINGS[0], chapter.say, left)
    other = (
        right.text_input(chapter.say("another"), **kept_value("first-other", OTHER), max_chars=LONGEST).strip() or OTHER
    )
    with below:
        if (found := stage.answers(page, Question(ask, (own, other)))) is None:
            return
        (answer,), about = found
        if not long_enough(page, answer, MOST):
            return
    masses = dict(zip(BEGINNINGS, answer["masses"], strict=True))
    mass = masses[begin]
    layers, heads = mass.shape
    chart.mount(
        grid(mass, page, chapter),
        key="first-chart",
        alt=chapter.say("alt", layers=layers, heads=heads, count=int((mass > SINK).sum())),
        height=290,
        projected=41,
    )
    layer, head = (int(i) for i in np.unravel_index(mass.argmax(), mass.shape))
    many = [i for i in range(layers) if (mass[i] > SINK).mean() > 0.5]
    where = chapter.say("from-layers", list=ranges(many)) if many else chapter.say("no-layer")
    st.markdown(chapter.say("strongest", layer=layer, head=head, weight=f"{mass.max():.2f}", layers=where))
    # A token that sees k tokens, itself among them, would give each of them 1/k.
    if (even := float(np.mean(1 / np.arange(2, min(int(answer["count"]), MOST) + 1)))) > SINK:
        st.caption(chapter.say("few", even=f"{even:.2f}"))
    rows = {
        chapter.say("column-first"): [chapter.say(name) for name in BEGINNINGS],
        chapter.say("column-heads"): [f"{(m > SINK).sum()} / {m.size}" for m in masses.values()],
        chapter.say("column-mean"): [f"{m.mean():.2f}" for m in masses.values()],
    }
    st.table(rows)
    stage.source(page, about)


def grid(mass: np.ndarray, page: Chapter, chapter: Chapter) -> go.Figure:
    """Sink mass of every head: layers across, heads up."""
    figure = go.Figure(
        go.Heatmap(
            z=mass.T,
            zmin=0,
            zmax=1,
            colorscale="Viridis",
            xgap=1,
            ygap=1,
            hovertemplate=f"{page.say('layer')} %{{x}}, {page.say('head')} %{{y}}: %{{z:.2f}}<extra></extra>",
            colorbar={"title": {"text": chapter.say("colour"), "side": "right"}, "thickness": 12},
        )
    )
    figure.update_layout(margin=MARGIN)
    figure.update_xaxes(title=page.say("layer"), range=[-0.5, len(mass) - 0.5], showgrid=False)
    figure.update_yaxes(title=page.say("head"), range=[-0.5, mass.shape[1] - 0.5], dtick=1, showgrid=False)
    return figure


PLAY = stage.Play(
    draw,
    recorded=(Question(ask, (stage.SENTENCE, OTHER)),),
    choices={
        "sentence": stage.OWN,
        "begin": stage.Choice(address.one_of("begin", BEGINNINGS), "first-begin", BEGINNINGS[0]),
        "other": stage.Choice(address.typed("other", LONGEST), "first-other", OTHER),
    },
)
