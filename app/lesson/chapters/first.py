"""How much every head gives to the first token of the student's own sentence, and of others."""

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from analysis import texts
from app import address
from app.components import chart
from app.controls import kept
from app.lesson import Chapter
from app.panels.charts import MARGIN

from . import stage

MOST = 64
SINK = 0.3
"""Weight from which a head counts as a sink head (Gu et al. 2024)."""
BEGINNINGS = ("own", "word", "bos", "newline")
OTHER = "Yesterday"
LONGEST = 100
"""Characters of the word that a student puts first."""


def draw(chapter: Chapter, page: Chapter) -> None:
    """The sentence, its beginnings, and the sink mass of every head."""
    # What comes first is chosen here, BOS among it: so the sentence has none of its own.
    ids = stage.written(page, MOST, "off")
    if ids is None:
        return
    left, right = st.columns([2, 1], vertical_alignment="bottom")
    begin = stage.one_of(chapter.say("begin"), BEGINNINGS, "first-begin", BEGINNINGS[0], chapter.say, left)
    other = right.text_input(chapter.say("another"), key=kept("first-other", OTHER), max_chars=LONGEST).strip() or OTHER
    own = stage.sentence_kept()
    masses = {name: stage.passage(_begun(name, own, other, ids)).sink_mass for name in BEGINNINGS}
    mass = masses[begin]
    layers, heads = mass.shape
    chart.mount(
        grid(mass, page, chapter),
        key="first-chart",
        alt=chapter.say("alt", layers=layers, heads=heads, count=int((mass > SINK).sum())),
        height=290,
        projected=44,
    )
    layer, head = (int(i) for i in np.unravel_index(mass.argmax(), mass.shape))
    many = [i for i in range(layers) if (mass[i] > SINK).mean() > 0.5]
    where = chapter.say("from-layers", list=ranges(many)) if many else chapter.say("no-layer")
    st.markdown(chapter.say("strongest", layer=layer, head=head, weight=f"{mass.max():.2f}", layers=where))
    rows = {
        chapter.say("column-first"): [chapter.say(name) for name in BEGINNINGS],
        chapter.say("column-heads"): [f"{(m > SINK).sum()} / {m.size}" for m in masses.values()],
        chapter.say("column-mean"): [f"{m.mean():.2f}" for m in masses.values()],
    }
    st.table(rows)


def _begun(name: str, text: str, other: str, ids: tuple[int, ...]) -> tuple[int, ...]:
    """The sentence with another beginning, as tokens."""
    tokenizer = stage.model().tokenizer
    if name == "word":
        _, _, rest = text.strip().partition(" ")
        return stage.ids_of(f"{other} {rest}" if rest else other, MOST)
    before = {"own": [], "bos": texts.opening(tokenizer, "on"), "newline": list(stage.ids_of("\n", 1))}[name]
    return tuple([*before, *ids][:MOST])


def ranges(numbers: list[int]) -> str:
    """Whole numbers in order, as stretches: 3–5, 8."""
    stretches: list[list[int]] = []
    for n in numbers:
        if stretches and n == stretches[-1][-1] + 1:
            stretches[-1].append(n)
        else:
            stretches.append([n])
    return ", ".join(f"{s[0]}–{s[-1]}" if len(s) > 1 else f"{s[0]}" for s in stretches)


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
    choices={
        "sentence": stage.OWN,
        "begin": stage.Choice(address.one_of("begin", BEGINNINGS), "first-begin", BEGINNINGS[0]),
        "other": stage.Choice(address.typed("other", LONGEST), "first-other", OTHER),
    },
)
