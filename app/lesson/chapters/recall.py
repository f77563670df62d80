"""A number that is said in a text and asked for at its end, beside the perplexity of the same caches."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from plotly.subplots import make_subplots

from analysis import metrics, texts
from analysis.policies import parse
from app import address
from app.components import chart
from app.lesson import Chapter
from app.lesson.answers import Answer, Question
from app.panels.charts import MARGIN

from . import stage
from .reading import numbers

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel

SIZES = (64, 128, 256)
SIZE = 128
"""The one that is recorded."""
LENGTHS, DEPTHS = (96, 160, 256, 384), (5.0, 50.0, 95.0)
"""Tokens of the texts, and where in them the number stands, in %."""
BEGIN, END = 256, 640
"""Tokens whose perplexity is told: no cache holds all that comes before them."""
SEED = 0


def policies(size: int) -> tuple[str, ...]:
    """Dense, and two ways to spend a cache of one size."""
    return "dense", f"window:window={size}", f"streaming:sinks=4,window={size - 4}"


def ask(model: "LanguageModel", text: str, bos: str, size: int) -> Answer:
    """Of each policy: the `perplexity` of a stretch of a text, [policies]; and for each depth and length whether a
    number was `recalled`, and the `nll` of the answer, [policies, depths, lengths]."""
    from analysis.engine.stream import open_lanes
    from analysis.experiments.recall.asked import Asked

    names = tuple(str(parse(name)) for name in policies(size))
    ids = texts.tokenize(texts.read(text), model.tokenizer, bos=bos, limit=END)
    perplexities = []
    for lane in open_lanes(model, ids, [parse(name) for name in names]):
        nll = []
        while not lane.done:
            nll.append(lane.read(END).nll)
        perplexities.append(metrics.perplexity(np.concatenate(nll)[BEGIN - 1 :]))
    spec = replace(stage.SPEC, text="passkey", policies=names, tokens=None, bos=bos)
    shape = len(names), len(DEPTHS), len(LENGTHS)
    found = {"recalled": np.zeros(shape, bool), "nll": np.zeros(shape, np.float32)}
    for cell in Asked("passkey", LENGTHS, DEPTHS, 1, SEED).cells(spec):
        (row,) = cell.rows(model)
        at = names.index(row.policy), DEPTHS.index(cell.place.depth or 0.0), LENGTHS.index(row.length)
        found["recalled"][at], found["nll"][at] = row.hit, row.nll
    return {"perplexity": np.array(perplexities), **found}


def draw(chapter: Chapter, page: Chapter) -> None:
    """How well each lane reads, and what it gives back."""
    size = stage.one_of(chapter.say("cache"), SIZES, "recall-size", SIZE)
    found = stage.answers(page, Question(ask, (stage.SPEC.text, stage.bos(), size)))
    if found is None:
        return
    (answer,), about = found
    names = [stage.policy_name(page, parse(name)) for name in policies(size)]
    st.caption(chapter.say("perplexity", begin=BEGIN, end=END))
    numbers([(name, f"{p:.1f}", "") for name, p in zip(names, answer["perplexity"], strict=True)])
    st.caption(chapter.say("recalled"))
    counts = [
        (name, chapter.say("count", count=int(of.sum()), most=of.size))
        for name, of in zip(names, answer["recalled"], strict=True)
    ]
    alt = chapter.say("alt", values="; ".join(chapter.say("counted", policy=n, count=of) for n, of in counts))
    # One below the other, they fit above a map on a narrow page too.
    titles = [f"{name}<br>{count}" for name, count in counts]
    chart.mount(maps(answer, titles, chapter), key="recall-maps", alt=alt, height=300, projected=46)
    stage.source(page, about)


def maps(answer: Answer, titles: list[str], chapter: Chapter) -> go.Figure:
    """A map for each policy: lengths across, depths down, bright where the number came back; the NLL in the cells."""
    figure = make_subplots(1, len(titles), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03)
    places = [[(row, column) for column in range(len(LENGTHS))] for row in range(len(DEPTHS))]
    for i, (recalled, nll) in enumerate(zip(answer["recalled"], answer["nll"], strict=True)):
        figure.add_heatmap(
            z=recalled.astype(int),
            x=[f"{n}" for n in LENGTHS],
            y=[f"{d:g}" for d in DEPTHS],
            text=[[f"{'✓' if recalled[at] else '✗'}<br>{nll[at]:.1f}" for at in line] for line in places],
            texttemplate="%{text}",
            hoverinfo="skip",
            colorscale="Cividis",
            zmin=0,
            zmax=1,
            showscale=False,
            xgap=2,
            ygap=2,
            row=1,
            col=i + 1,
        )
    figure.update_xaxes(type="category")
    # All have the same lengths: said once, in the middle, where it meets nothing.
    figure.update_xaxes(title=chapter.say("length"), row=1, col=(len(titles) + 1) // 2)
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_yaxes(title=chapter.say("depth"), row=1, col=1)
    figure.update_layout(margin={**MARGIN, "t": 44})
    return figure


PLAY = stage.Play(
    draw,
    recorded=(Question(ask, (stage.SPEC.text, "auto", SIZE)),),
    choices={"cache": stage.Choice(address.one_of("cache", SIZES), "recall-size", SIZE)},
)
