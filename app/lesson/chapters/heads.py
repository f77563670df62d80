"""What a cached token costs in well-known models."""

import csv
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from analysis import texts
from analysis.metrics import predicted_bytes
from analysis.policies import parse
from app import address
from app.choices import kept_value
from app.components import chart
from app.lesson import FOLDER, Chapter
from app.lesson.answers import Answer, Question
from app.panels.charts import MARGIN

from . import stage

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel

LENGTHS = [2**k for k in range(10, 21)]
LENGTH = 16_384
"""The one that is shown at first."""
BITS = (32, 16, 8, 4)
COLOURS = {"MHA": "#D55E00", "GQA": "#0072B2", "MQA": "#009E73"}


@cache
def known() -> list[dict[str, str]]:
    """Models and their sizes, as their published configurations have them."""
    with (FOLDER / "models.csv").open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def ask(model: "LanguageModel", text: str) -> Answer:
    """The model's `layers`, `heads`, `kv_heads`, the `size` of a head and the bytes of a `number`, and the bytes that a
    token of a text takes in a real cache, `measured`."""
    from analysis.engine.stream import open_lanes

    lane = open_lanes(model, texts.tokenize(texts.read(text), model.tokenizer, bos="off", limit=65), [parse("dense")])[
        0
    ]
    lane.read(64)
    sizes = {"layers": model.layers, "heads": model.heads, "kv_heads": model.kv_heads, "size": model.head_dim}
    found = {**sizes, "number": model.network.dtype.itemsize, "measured": lane.cache_bytes / 64}
    return {name: np.array(value) for name, value in found.items()}


def draw(chapter: Chapter, page: Chapter) -> None:
    """Sizes of caches of well-known models, and what the embedded one really takes."""
    left, right = st.columns([2, 1], vertical_alignment="bottom")
    tokens = left.select_slider(
        chapter.say("tokens"), LENGTHS, format_func=lambda n: f"{n:,}", **kept_value("heads-length", LENGTH, LENGTHS)
    )
    bits = stage.one_of(chapter.say("numbers"), BITS, "heads-bits", 16, place=right)
    found = stage.answers(page, Question(ask, (stage.SPEC.text,)))
    if found is None:
        return
    (own,), about = found
    models = [{"model": "SmolLM2-135M", **own}, *known()]
    rows = []
    for m in models:
        layers, heads, kv_heads, size = (int(m[k]) for k in ("layers", "heads", "kv_heads", "size"))
        kind = "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else "GQA"
        # Of 4 bits a number has half a byte: so bytes are counted of pairs.
        rows.append((str(m["model"]), kind, kv_heads, predicted_bytes(layers, kv_heads, size, 1, bits) / 8))
    values = "; ".join(f"{name} ({kind}): {each * tokens / 1e9:.2f} GB" for name, kind, _, each in rows)
    chart.mount(
        bars(rows, tokens, chapter),
        key="heads-chart",
        height=340,
        alt=chapter.say("alt", tokens=f"{tokens:,}", values=values),
    )
    predicted = predicted_bytes(*(int(own[k]) for k in ("layers", "kv_heads", "size")), 1, int(own["number"]))
    st.caption(chapter.say("measured", predicted=f"{predicted:,} B", measured=f"{own['measured']:,.0f} B"))
    st.table(
        {
            chapter.say("model"): [name for name, *_ in rows],
            chapter.say("kind"): [f"{kind}, {kv} KV" for _, kind, kv, _ in rows],
            chapter.say("per-token"): [f"{each / 1000:,.1f} kB" for *_, each in rows],
        }
    )
    stage.source(page, about)


def bars(rows: list[tuple[str, str, int, float]], tokens: int, chapter: Chapter) -> go.Figure:
    """Gigabytes of the cache of each model, for so many tokens."""
    sizes = [each * tokens / 1e9 for *_, each in rows]
    figure = go.Figure(
        go.Bar(
            y=[f"{name} · {kind}" for name, kind, *_ in rows],
            x=sizes,
            orientation="h",
            marker={"color": [COLOURS[kind] for _, kind, *_ in rows]},
            text=[f"{s:.2f} GB" for s in sizes],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.2f} GB<extra></extra>",
        )
    )
    figure.update_layout(margin={**MARGIN, "r": 76}, showlegend=False)
    figure.add_vline(x=8, line={"color": "#767676", "width": 1, "dash": "dot"})
    figure.update_xaxes(title=chapter.say("gigabytes"), range=[0, max(9, max(sizes) * 1.08)])
    figure.update_yaxes(autorange="reversed")
    return figure


PLAY = stage.Play(
    draw,
    recorded=(Question(ask, ("hamlet",)),),
    choices={
        "tokens": stage.Choice(address.one_of("tokens", LENGTHS), "heads-length", LENGTH),
        "bits": stage.Choice(address.one_of("bits", BITS), "heads-bits", 16),
    },
)
