"""What the sink of each head is worth, knocked out one after the other: a panel of the heads page."""

from functools import partial
from typing import Any

import streamlit as st

from analysis.experiments.ablation import effects_as_csv
from analysis.policies import parse
from analysis.runs.spec import Spec
from app import address
from app.controls import Chosen, chosen_text
from app.jobs.ablation import AblationJob
from app.pages import PAGES
from app.panels import charts
from app.panels.job_panel import JobPanel, Maker
from app.plain import plain

from .heads import HeadsPanel

JOB_PANEL = JobPanel("knockouts", AblationJob, "heads")

KINDS = {"values": "is seen, and is empty", "weights": "is not seen"}
LAST_LAYER = 1024
SHOWN = 15
"""Heads in the ranking beside the grid."""


def sidebar() -> None:
    """What is taken away."""
    asked = st.session_state.heads
    st.caption("What is taken away")
    asked["kind"] = st.radio(
        "The sink of one head",
        list(KINDS),
        index=list(KINDS).index(asked["kind"]),
        format_func=KINDS.__getitem__,
        key=f"heads-kind-{st.session_state.revision}",
        help="An empty sink still takes its share of attention; where it is not seen, the others make up for it",
    )
    layer = st.number_input(
        "Layer",
        -1,
        LAST_LAYER,
        -1 if asked["layer"] is None else asked["layer"],
        key=f"heads-layer-{st.session_state.revision}",
        help="−1: all",
    )
    asked["layer"] = None if layer < 0 else layer


def start() -> None:
    """Begin with what is set; what was on screen ends."""
    JOB_PANEL.begin(_prepared, start)


def _prepared() -> Maker[AblationJob]:
    asked, old = st.session_state.heads, JOB_PANEL.job
    text = old.text if old is not None and asked["text"] == old.spec.text else chosen_text("heads", asked["text"])
    tokens = asked["tokens"]["knockouts"]
    spec = Spec(text=text.name, policies=(asked["policy"],), tokens=tokens, **asked["model"].decided()._asdict())
    return partial(AblationJob, spec, text, asked["kind"], asked["layer"])


def progress(run: AblationJob) -> None:
    """How far the job is, or why it ended."""
    done, total, left = len(run.effects), run.total, run.seconds_left
    words = "Loading the model"
    if run.status != "loading":
        soon = (
            "" if left is None else f", about {left:.0f} s left" if left < 90 else f", about {left / 60:.0f} min left"
        )
        tokens = 0 if run.tokenized is None else len(run.tokenized.ids)
        now = run.snapshot.passes
        first = f": {now * tokens:,.0f} of {tokens:,} tokens read with all sinks" if now < 1 else ""
        words = f"{done} of {total} heads{first}{soon}"
    JOB_PANEL.progress(run.share, words, f"Stopped after {done} of {total} heads. What was found is kept.")


def draw() -> None:
    """The panel; again and again while heads are knocked out."""
    run = JOB_PANEL.job
    with st.container(horizontal=True, vertical_alignment="center"):
        JOB_PANEL.buttons("Start" if run is None else "Start again", "play_arrow", start)
        if run is not None:
            read = run.spec.tokens if run.tokenized is None else len(run.tokenized.ids)
            tokens = f"{read:,} tokens of {run.text.title} {run.begins}"
            how = {"values": "emptied", "weights": "hidden"}[run.kind]
            st.caption(plain(f"{parse(run.spec.policies[0]).label} · {tokens} · sink {how} in one head at a time"))
    run = JOB_PANEL.watch()
    if run is None:
        st.markdown(
            "One head after the other loses its sink, and the text is read again: what it then costs more, in nats a "
            "token, is what the sink was worth to that head. Most heads hardly miss it; a few need it badly."
        )
        return
    if run.text_note:
        st.caption(plain(run.text_note))
    progress(run)
    if run.effects:
        # Heads are knocked out once the model is loaded.
        assert run.facts is not None
        left, right = st.columns([3, 2])
        with left:
            st.caption("Every head: red costs more without its sink, blue less")
            alt = "Layers by heads, coloured by what the text costs more without the sink of each"
            st.plotly_chart(
                charts.effects(run.effects, run.facts.layers, run.facts.heads),
                key="heads-grid",
                config={"displayModeBar": False},
                alt=alt,
            )
        with right:
            st.caption(f"The {min(SHOWN, len(run.effects))} that miss it most")
            alt = "; ".join(f"{e.layer}.{e.head}: {e.excess:+.4f}" for e in run.ranked[:SHOWN])
            st.plotly_chart(
                charts.ranking(run.ranked[:SHOWN]), key="heads-ranking", config={"displayModeBar": False}, alt=alt
            )
        worst, policy = run.ranked[0], run.spec.policies[0]
        without_worst = f"{policy}{',' if ':' in policy else ':'}knockout={run.kind},heads={worst.layer}.{worst.head}"
        link = {"lane": [policy, without_worst], **Chosen.of(run.spec).link()}
        if named := address.named_text(run.spec.text, run.text.sha256):
            link["text"] = named
        with st.container(horizontal=True, vertical_alignment="center"):
            st.download_button(
                "All heads as CSV",
                effects_as_csv(run.ranked),
                "heads.csv",
                "text/csv",
                icon=":material/download:",
                on_click="ignore",
            )
            st.page_link(
                PAGES["read"].path,
                label=f"Read on without the sink of {worst.layer}.{worst.head}",
                icon=f":material/{PAGES['read'].icon}:",
                query_params=link,
            )


def now() -> dict[str, Any]:
    """What is taken away, as the address says it."""
    asked = st.session_state.heads
    return {"kind": asked["kind"], "layer": asked["layer"]}


def take(found: dict[str, Any]) -> None:
    """Set what an address asks."""
    st.session_state.heads |= {"kind": "values", "layer": None} | found


PANEL = HeadsPanel(
    "What is each head's sink worth?",
    JOB_PANEL,
    512,
    65_536,
    sidebar,
    draw,
    lambda: JOB_PANEL.busy,
    parameters={"kind": address.one_of("kind", KINDS), "layer": address.whole("layer", 0, LAST_LAYER)},
    usual={"kind": "values"},
    now=now,
    take=take,
)
