"""What every head does, measured over many short texts: a panel of the heads page."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from analysis.experiments.measures import LONGEST, MASSIVE, MEASURES, Measured
from analysis.runs.spec import Spec
from app import address
from app.controls import choice, choose, chosen_text, kept
from app.jobs.measures import MeasuresJob
from app.panels import charts
from app.panels.job_panel import JobPanel, Maker
from app.plain import plain

from .heads import HeadsPanel

JOB_PANEL = JobPanel("measures", MeasuresJob, "heads")
MOST_SAMPLES, MOST_FIRST = 1000, 64
USUAL = {"samples": 64, "first": 4, "measure": next(iter(MEASURES)), "threshold": 0.3}
SHOWN = {"measure": "name", "threshold": "threshold"}
"""What of this is shown, and the end of its widget's key."""


def sidebar() -> None:
    """What is measured."""
    asked = st.session_state.heads
    st.caption("What is measured")
    left, right = st.columns(2)
    asked["samples"] = left.number_input(
        "Samples",
        1,
        MOST_SAMPLES,
        asked["samples"],
        key=f"measures-samples-{st.session_state.revision}",
        help="Stretches of the text, each read alone",
    )
    asked["first"] = right.number_input(
        "First tokens",
        1,
        MOST_FIRST,
        asked["first"],
        key=f"measures-first-{st.session_state.revision}",
        help="How many count for the sink mass",
    )


def start() -> None:
    """Begin with what is set; what was on screen ends."""
    JOB_PANEL.begin(_prepared, start)


def _prepared() -> Maker[MeasuresJob]:
    asked = st.session_state.heads
    text = chosen_text("heads", asked["text"])
    tokens = asked["tokens"]["measures"]
    spec = Spec(text=text.name, policies=("dense",), tokens=tokens, **asked["model"].decided()._asdict())
    return partial(MeasuresJob, spec, text, asked["samples"], asked["first"])


def table(measured: Measured) -> pd.DataFrame:
    """A row for each head: means over samples."""
    _, layers, heads = measured.heads["alpha"].shape
    places = {"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)}
    return pd.DataFrame(places | {name: x.mean(0).ravel() for name, x in measured.heads.items()})


def draw() -> None:
    """The panel; again and again while samples are measured."""
    run = JOB_PANEL.job
    with st.container(horizontal=True, vertical_alignment="center"):
        JOB_PANEL.buttons("Measure" if run is None else "Measure again", "straighten", start)
        if run is not None:
            tokens = f"{run.spec.tokens:,} tokens of {run.text.title}"
            begins = f", each {run.begins}" if run.begins else ""
            st.caption(plain(f"{run.done} of {run.samples} samples of {tokens}{begins}, dense"))
    run = JOB_PANEL.watch()
    if run is None:
        st.markdown(
            "Short samples of the text are read, each alone and from its own beginning, and every head is measured: "
            "how much it gives to the first tokens, how far and how evenly it looks, and what it does with itself and "
            "with punctuation."
        )
        return
    if run.text_note:
        st.caption(plain(run.text_note))
    JOB_PANEL.progress(run.done / run.samples, f"{run.done} of {run.samples} samples")
    if run.measured is None:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox(
            "Measure",
            list(MEASURES),
            format_func=MEASURES.__getitem__,
            key=kept("measures-name", USUAL["measure"]),
            width=320,
        )
        threshold = st.slider(
            "ε of the sink rate", 0.05, 0.95, step=0.05, key=kept("measures-threshold", USUAL["threshold"]), width=240
        )
        _, rate = run.measured.sink_rate(threshold)
        st.metric(f"Heads with α₁ > {threshold:.2f}", f"{rate:.1%}", help="The sink rate: of all heads of all samples")
    values, found = run.measured.heads[name], table(run.measured)
    left, right = st.columns(2)
    bare = {"displayModeBar": False}
    with left:
        st.caption(f"{MEASURES[name]}: every head, mean over samples")
        st.plotly_chart(charts.cells(values.mean(0), ""), key="measures-cells", config=bare, alt=MEASURES[name])
    with right:
        st.caption("Mean over heads by layer, ± standard deviation between samples")
        st.plotly_chart(charts.depth(values, ""), key="measures-depth", config=bare, alt=f"{MEASURES[name]} by layer")
    massive = np.flatnonzero(run.measured.massive)
    size, times = MASSIVE
    where = "no layer"
    if len(massive):
        places, times_seen = np.unique(run.measured.largest_at[:, massive].reshape(-1, 2), axis=0, return_counts=True)
        token, channel = places[times_seen.argmax()]
        where = f"layers {massive.min()} to {massive.max()}, most often at token {token}, channel {channel}"
    st.caption(f"Against the other tokens. Massive activations (above {size:g} and {times:,.0f} medians): {where}")
    st.plotly_chart(charts.norms(run.measured), key="measures-norms", config=bare, alt="Norms at the first token")
    st.caption("Every head; a press on a heading sorts")
    titles = {n: st.column_config.NumberColumn(title.split(",")[0], format="%.4f") for n, title in MEASURES.items()}
    st.dataframe(found, hide_index=True, height=320, column_config=titles)
    st.download_button(
        "All heads as CSV", found.to_csv(index=False), "measures.csv", "text/csv", icon=":material/download:",
        on_click="ignore",
    )  # fmt: skip


def now() -> dict[str, Any]:
    """What is measured, and what is shown of it, as the address says it."""
    asked = st.session_state.heads
    shown = {name: choice(f"measures-{key}", USUAL[name]) for name, key in SHOWN.items()}
    return {"samples": asked["samples"], "first": asked["first"], **shown}


def take(found: dict[str, Any]) -> None:
    """Set what an address asks."""
    found = {**USUAL, **found}
    st.session_state.heads |= {"samples": found["samples"], "first": found["first"]}
    for name, key in SHOWN.items():
        choose(f"measures-{key}", found[name])


PANEL = HeadsPanel(
    "Measures",
    JOB_PANEL,
    64,
    LONGEST,
    sidebar,
    draw,
    lambda: JOB_PANEL.busy,
    parameters={
        "samples": address.whole("samples", 1, MOST_SAMPLES),
        "first": address.whole("first", 1, MOST_FIRST),
        "measure": address.one_of("measure", MEASURES),
        "threshold": address.real("threshold", 0.05, 0.95),
    },
    usual=USUAL,
    now=now,
    take=take,
    takes_policy=False,
)
