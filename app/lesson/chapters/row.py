"""One row of one head, whose logits a student moves."""

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from analysis.palette import TRAINED
from app.components import chart
from app.lesson import Chapter
from app.panels.charts import MARGIN
from app.plain import markup, plain

from . import stage

MOST = 10
"""Tokens of the sentence: as many sliders as one can look over."""
FULL = 0.75
"""The head that is shown at first gives the first token about so much: enough to see, and not all."""


def draw(chapter: Chapter, page: Chapter) -> None:
    """Sliders for logits, and the weights that come of them."""
    state = st.session_state.lesson
    ids = stage.written(page, MOST, "row", stage.bos())
    if ids is None:
        return
    passage = stage.passage(ids)
    if state.get("row-ids") != ids:
        last = passage.sink_weights[..., -1]
        layer, head = np.unravel_index(np.abs(last - FULL).argmin(), last.shape)
        state.update({"row-ids": ids, "row-head": (int(layer), int(head)), "row-logits": None})
    layers, heads = passage.sink_mass.shape
    tools = st.container(horizontal=True, vertical_alignment="bottom")
    with tools:
        layer = st.number_input(
            page.say("layer"), 0, layers - 1, state["row-head"][0], key=f"row-layer-{ids}", width=110
        )
        head = st.number_input(page.say("head"), 0, heads - 1, state["row-head"][1], key=f"row-head-{ids}", width=110)
        kind = st.segmented_control(
            chapter.say("kind"),
            ["softmax", "off-by-one"],
            format_func=chapter.say,
            default="softmax",
            required=True,
            key="row-kind",
        )
    own = passage.row(layer, head).logits.numpy()
    if state["row-logits"] is None or state["row-head"] != (layer, head):
        state.update({"row-logits": own.tolist(), "row-head": (layer, head), "row-turn": state.get("row-turn", 0) + 1})
    room = st.container()
    words = stage.token_texts(ids)
    low, high = min(-20.0, *state["row-logits"], *own), max(20.0, *state["row-logits"], *own)
    columns = [*st.columns(5), *(st.columns(5) if len(ids) > 5 else [])]
    for i, (word, column) in enumerate(zip(words, columns, strict=False)):
        state["row-logits"][i] = column.slider(
            f"{plain(word.strip(chr(0x200B)))} · {chapter.say('logit')}",
            float(np.floor(low)),
            float(np.ceil(high)),
            float(state["row-logits"][i]),
            0.1,
            format="%.1f",
            key=f"row-logit-{state['row-turn']}-{i}",
        )
    with tools:
        # A press may arrive twice: so it says what the logits are to be, and not how much lower.
        lower = [x - 5 for x in state["row-logits"]]
        st.button(chapter.say("lower"), on_click=_put, args=(lower,), key="row-lower")
        st.button(chapter.say("reset"), on_click=_put, args=(own.tolist(),), key="row-reset")
    weights, nowhere = weigh(np.array(state["row-logits"]), kind)
    with room:
        left, middle, right = st.columns(3)
        left.metric(chapter.say("sum"), f"{weights.sum():.3f}")
        middle.metric(chapter.say("on-first"), f"{weights[0]:.3f}")
        if kind == "off-by-one":
            right.metric(chapter.say("nowhere"), f"{nowhere:.3f}")
        shown = ", ".join(f"{word} {w:.2f}" for word, w in zip(words, weights, strict=True))
        chart.mount(
            bars(words, weights, nowhere, chapter),
            key="row-chart",
            alt=chapter.say("alt", weights=shown),
            height=270,
            projected=45,
        )


def _put(logits: list[float]) -> None:
    state = st.session_state.lesson
    state.update({"row-logits": logits, "row-turn": state["row-turn"] + 1})


def weigh(logits: np.ndarray, kind: str) -> tuple[np.ndarray, float]:
    """Weights [keys], and what goes nowhere."""
    most = max(logits.max(), 0.0)
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


PLAY = stage.Play(draw)
