"""What every head does, measured over many short texts: a panel of the heads page."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd
import streamlit as st
from typing_extensions import override

from analysis.experiments.measures import LONGEST, MASSIVE, MEASURES, Measured, read
from analysis.runs.spec import Spec
from app import address, recordings
from app.choices import choice, choose, kept_index, kept_value
from app.controls import chosen_text
from app.downloads import download
from app.jobs.measures import MeasuresJob
from app.panels import charts
from app.panels.job_panel import JobPanel, Maker
from app.ranges import ranges

from .heads import Found, HeadsPanel, draw_head, resume

JOB_PANEL = JobPanel("measures", MeasuresJob, "heads", "measures")
MOST_SAMPLES, MOST_FIRST = 1000, 64
USUAL = {"samples": 64, "first": 4, "measure": next(iter(MEASURES)), "threshold": 0.3}
SHOWN = {"measure": "name", "threshold": "threshold"}
"""What of this is shown, and the end of its widget's key."""


@dataclass(frozen=True)
class FoundMeasures(Found):
    """What is known of measures."""

    measured: Measured | None

    @classmethod
    @override
    def of_job(cls, run: MeasuresJob) -> Self:
        return cls(_about(run.done, run.samples, run.spec, run.text.title, run.begins), run.text_note, run.measured)

    @classmethod
    @override
    def of_result(cls, kept: recordings.Result) -> Self:
        file = kept.path / "measures.npz"
        measured = read(file) if file.exists() else None
        done = 0 if measured is None else len(measured.median)
        samples = kept.settings.get("samples")
        wanted = samples if isinstance(samples, int) else done
        return cls(_about(done, wanted, kept.spec, kept.title, kept.begins), kept.text_note, measured)


def _about(done: int, samples: int, spec: Spec, title: str, begins: str) -> str:
    each = f", each {begins}" if begins else ""
    return f"{done} of {samples} samples of {spec.tokens or 0:,} tokens of {title}{each}, dense"


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
        help="Stretches of the text, each read alone; they overlap where the text is short",
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
    again = partial(resume, JOB_PANEL, "samples", "first")
    found = draw_head(JOB_PANEL, FoundMeasures, "Measure", "straighten", start, again)
    if found is None:
        st.markdown(
            "Short samples of the text are read, each alone and from its own beginning, and every head is measured: "
            "how much it gives to the first tokens, how far and how evenly it looks, and what it does with itself and "
            "with punctuation."
        )
        return
    if (run := JOB_PANEL.job) is not None:
        JOB_PANEL.progress(run.done / run.samples, f"{run.done} of {run.samples} samples")
    if found.measured is not None:
        draw_measured(found.measured)


def draw_measured(measured: Measured) -> None:
    """What was measured of every head, by layer, and against the other tokens."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox(
            "Measure",
            list(MEASURES),
            format_func=MEASURES.__getitem__,
            **kept_index("measures-name", USUAL["measure"], MEASURES),
            width=320,
        )
        threshold = st.slider(
            "ε of the sink rate",
            0.05,
            0.95,
            step=0.05,
            **kept_value("measures-threshold", USUAL["threshold"]),
            width=240,
        )
        _, rate = measured.sink_rate(threshold)
        rated = f"{100 * rate:.1f} %"
        st.metric(f"Heads with α₁ > {threshold:.2f}", rated, help="The sink rate: of all heads of all samples")
    values, rows = measured.heads[name], table(measured)
    left, right = st.columns(2)
    bare = {"displayModeBar": False}
    with left:
        st.caption(f"{MEASURES[name]}: every head, mean over samples")
        st.plotly_chart(charts.cells(values.mean(0), ""), key="measures-cells", config=bare, alt=MEASURES[name])
    with right:
        spread = ", ± standard deviation between samples" if len(values) > 1 else ""
        st.caption(f"Mean over heads by layer{spread}")
        st.plotly_chart(charts.depth(values, ""), key="measures-depth", config=bare, alt=f"{MEASURES[name]} by layer")
    size, times = MASSIVE
    massive = f"Massive activations (above {size:g} and {times:,.0f} medians): {massive_in(measured)}"
    st.caption(f"Against the other tokens. {massive}")
    st.plotly_chart(charts.norms(measured), key="measures-norms", config=bare, alt="Norms at the first token")
    st.caption("Every head; a press on a heading sorts")
    titles = {n: st.column_config.NumberColumn(title, format="%.4f") for n, title in MEASURES.items()}
    st.dataframe(rows, hide_index=True, height=320, column_config=titles)
    download("All heads as CSV", "measures.csv", lambda: rows.to_csv(index=False))


def massive_in(measured: Measured) -> str:
    """The layers that have massive activations, and where these are most often."""
    layers = np.flatnonzero(measured.massive).tolist()
    if not layers:
        return "no layer"
    places, times_seen = np.unique(measured.largest_at[:, layers].reshape(-1, 2), axis=0, return_counts=True)
    token, channel = places[times_seen.argmax()]
    return f"layer{'s' * (len(layers) > 1)} {ranges(layers)}, most often at token {token}, channel {channel}"


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
