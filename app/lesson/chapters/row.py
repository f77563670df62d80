"""One row of one head, whose logits a student moves."""

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from analysis.palette import TRAINED
from app import address
from app.choices import choice, choose
from app.components import chart
from app.lesson import Chapter
from app.lesson.answers import Answer, Question
from app.panels.charts import MARGIN
from app.plain import markup, plain
from app.view import HEAD

from . import stage
from .sentence import head_near, long_enough, rows

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel

KINDS = ("softmax", "off-by-one")
MOST = 10
"""Tokens of the sentence: as many sliders as one can look over."""
FULL = 0.75
"""The head that is shown at first gives the first token about so much: enough to see, and not all."""


def ask(model: "LanguageModel", sentence: str, bos: str) -> Answer:
    """Logits of the last token in every head."""
    return rows(model, sentence, bos, MOST)[0]


def draw(chapter: Chapter, page: Chapter) -> None:
    """Sliders for logits, and the weights that come of them."""
    state = st.session_state.lesson
    question = Question(ask, (stage.written(page), stage.bos()))
    if (found := stage.answers(page, question)) is None:
        return
    (answer,), about = found
    if not long_enough(page, answer, MOST):
        return
    stage.forget_of("row", question, "row-head", "row-logits")
    words, shape = answer["words"].tolist(), answer["sinks"].shape
    tools = st.container(horizontal=True, vertical_alignment="bottom")
    with tools:
        shown = stage.head_controls(page, "row", question, shape, head_near(answer["sinks"], FULL), (st, st))
        kind = stage.one_of(chapter.say("kind"), KINDS, "row-kind", KINDS[0], chapter.say)
    own = answer["logits"][shown]
    logits = choice("row-logits", None) if state.get("row-head-of") in (None, shown) else None
    state["row-head-of"] = shown
    if logits is not None and len(logits) != len(words):
        stage.say_problem(f"This row has {len(words)} logits, and the address of this page has {len(logits)}.")
        logits = None
    moved = list(own.tolist() if logits is None else logits)
    room = st.container()
    low, high = min(-20.0, *moved, *own), max(20.0, *moved, *own)
    columns = [*st.columns(5), *(st.columns(5) if len(words) > 5 else [])]
    for i, (word, column) in enumerate(zip(words, columns, strict=False)):
        moved[i] = column.slider(
            f"{plain(word.strip(chr(0x200B)))} · {chapter.say('logit')}",
            float(np.floor(low)),
            float(np.ceil(high)),
            float(moved[i]),
            0.1,
            format="%.1f",
            key=f"row-logit-{stage.turn()}-{state.get('row-turn', 0)}-{shown}-{question}-{i}",
        )
    choose("row-logits", tuple(moved) if np.abs(np.array(moved) - own).max() > 1e-4 else None)
    with tools:
        # A press may arrive twice: so it says what the logits are to be, and not how much lower.
        st.button(chapter.say("lower"), on_click=_put, args=(tuple(x - 5 for x in moved),), key="row-lower")
        st.button(chapter.say("reset"), on_click=_put, args=(None,), key="row-reset")
    stage.source(page, about)
    weights, nowhere = weigh(np.array(moved), kind)
    with room:
        left, middle, right = st.columns(3)
        left.metric(chapter.say("sum"), f"{weights.sum():.3f}")
        middle.metric(chapter.say("on-first"), f"{weights[0]:.3f}")
        if kind == "off-by-one":
            right.metric(chapter.say("nowhere"), f"{nowhere:.3f}")
        given = ", ".join(f"{word} {w:.2f}" for word, w in zip(words, weights, strict=True))
        chart.mount(
            bars(words, weights, nowhere, chapter),
            key="row-chart",
            alt=chapter.say("alt", weights=given),
            height=270,
            projected=38,
        )


def _put(logits: tuple[float, ...] | None) -> None:
    state = st.session_state.lesson
    choose("row-logits", logits)
    state["row-turn"] = state.get("row-turn", 0) + 1


def weigh(logits: np.ndarray, kind: str) -> tuple[np.ndarray, float]:
    """Weights [keys], and what goes nowhere."""
    # What off by one adds has a logit of 0. Softmax has no such one, and is the same however low all logits are.
    most = max(logits.max(), 0.0) if kind == "off-by-one" else logits.max()
    sizes, extra = np.exp(logits - most), np.exp(-most) if kind == "off-by-one" else 0.0
    total = sizes.sum() + extra
    return sizes / total, float(extra / total)


def bars(words: list[str], weights: np.ndarray, nowhere: float, chapter: Chapter) -> go.Figure:
    """The weight of each token as bars; `nowhere`: the share that no token gets."""
    names, heights = [markup(word) for word in words], [*weights]
    colours = [TRAINED["softmax"][0], *["#0072B2"] * (len(words) - 1)]
    if nowhere:
        names, heights, colours = (
            [*names, chapter.say("nowhere").replace(" ", "<br>")],
            [*heights, nowhere],
            [*colours, "#767676"],
        )
    figure = go.Figure(
        go.Bar(
            x=names,
            y=heights,
            marker={"color": colours},
            text=[f"{h:.2f}" for h in heights],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{x}: %{y:.4f}<extra></extra>",
        )
    )
    figure.update_layout(margin={**MARGIN, "t": 18}, showlegend=False)
    figure.update_xaxes(type="category")
    figure.update_yaxes(range=[0, 1.05], title=chapter.say("weight"))
    return figure


PLAY = stage.Play(
    draw,
    recorded=(Question(ask, (stage.SENTENCE, "auto")),),
    choices={
        "sentence": stage.OWN,
        "head": stage.Choice(HEAD, "row-head"),
        "kind": stage.Choice(address.one_of("kind", KINDS), "row-kind", KINDS[0]),
        "logits": stage.Choice(address.reals("logits", MOST, -1000, 1000), "row-logits"),
    },
)
