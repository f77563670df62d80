"""Heads: maps of a captured stretch of text, measures of every head, and what the sink of each head is worth."""

import streamlit as st

from analysis.policies import parse
from analysis.runs.spec import Spec
from app import address
from app.controls import Chosen, brand, heading, model_controls, policy_controls, text_controls
from app.frames.atlas import AtlasSender, AtlasView
from app.jobs.ablation import AblationJob
from app.jobs.capture import CaptureJob
from app.jobs.registry import REGISTRY
from app.panels import atlas, knockouts, measures
from app.panels.heads import HeadsPanel
from app.panels.job_panel import redraw
from app.plain import plain
from app.projection import project

PANELS = {"maps": atlas.PANEL, "measures": measures.PANEL, "knockouts": knockouts.PANEL}


def open_page() -> None:
    """What a tab begins with: what its address names, or a stretch of Hamlet."""
    state = st.session_state
    state.setdefault("revision", 0)
    if "heads" in state:
        return
    named = st.query_params.get("run")
    run = REGISTRY.get(named)
    if not isinstance(run, AblationJob | CaptureJob):
        # None, or of another page.
        run = None
    spec = run.spec if run else Spec("embedded", "hamlet", ("dense",), PANELS["maps"].tokens)
    ablation = run if isinstance(run, AblationJob) else None
    state.heads = {
        "model": Chosen.of(spec),
        "text": spec.text,
        "policy": spec.policies[0],
        "tokens": {name: panel.tokens for name, panel in PANELS.items()}
        | ({"knockouts" if ablation else "maps": spec.tokens} if run and spec.tokens else {}),
        "kind": ablation.kind if ablation else "values",
        "layer": ablation.layer if ablation else None,
        "samples": 64,
        "first": 4,
        "folder": run.folder if isinstance(run, CaptureJob) else "",
    }
    state.update(heads_problem="", atlas_view=AtlasView(), atlas_sender=AtlasSender(), captures=[], atlas_shown="")
    if ablation:
        state.update(knockouts_run=named, heads_panel="knockouts")
    elif isinstance(run, CaptureJob):
        state.update(atlas_run=named, captures=[named])
    elif named:
        del st.query_params["run"]
        state.heads_problem = "What that address names is no longer in memory: begin again."
    if run is None:
        try:
            state.heads["model"] = state.heads["model"].linked()
        except ValueError as e:
            state.heads_problem = address.wrong(e)


def sidebar(name: str, panel: HeadsPanel) -> None:
    """What is read, under which policy, and the widgets of the panel."""
    asked = st.session_state.heads
    with st.sidebar:
        brand("heads")
        st.caption("Model and text")
        asked["model"] = model_controls("heads", asked["model"])
        asked["text"] = text_controls("heads", asked["text"])
        tokens = asked["tokens"]
        tokens[name] = st.number_input("Tokens", 32, panel.most_tokens, tokens[name], 64, key=f"heads-tokens-{name}")
        if panel.takes_policy:
            st.caption("What is kept")
            policy = parse(asked["policy"])
            with st.popover(f":material/edit: {plain(policy.label)}", width="stretch"):
                asked["policy"] = str(policy_controls("heads", policy))
        panel.sidebar()


open_page()
project()
heading("heads")
st.session_state.setdefault("heads_panel", "maps")
name = st.segmented_control(
    "Panel",
    list(PANELS),
    format_func=lambda n: PANELS[n].title,
    key="heads_panel",
    label_visibility="collapsed",
    required=True,
)
# The session gave it a value, and one is required.
assert name is not None
panel = PANELS[name]
sidebar(name, panel)
redraw(panel.draw, panel.busy, every=0.5)
