"""Heads: maps of a captured stretch of text, and what the sink of each head is worth."""

import streamlit as st

from analysis.experiments.measures import LONGEST
from analysis.maps import capture
from analysis.policies import parse
from analysis.runs.spec import Spec
from app import address
from app.controls import Chosen, brand, heading, model_controls, policy_controls, text_controls
from app.frames.atlas import AtlasSender, Look
from app.jobs.ablation import AblationJob
from app.jobs.capture import CaptureJob
from app.jobs.registry import REGISTRY
from app.panels import atlas, knockouts, measures, slots
from app.plain import plain
from app.projection import project

TOKENS = {"maps": 2048, "measures": 64, "knockouts": 512}
"""What is read at first: a map can be large, and knock-outs read the text once for every head."""
MOST = {"maps": capture.LONGEST, "measures": LONGEST, "knockouts": 65_536}
"""Tokens that can be asked for."""
PANELS = {"maps": "Maps", "measures": "Measures", "knockouts": "What is each head's sink worth?"}


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
    spec = run.spec if run else Spec("embedded", "hamlet", ("dense",), TOKENS["maps"])
    ablation = run if isinstance(run, AblationJob) else None
    state.heads = {
        "model": Chosen.of(spec),
        "text": spec.text,
        "policy": spec.policies[0],
        "tokens": TOKENS | ({"knockouts" if ablation else "maps": spec.tokens} if run and spec.tokens else {}),
        "kind": ablation.kind if ablation else "values",
        "layer": ablation.layer if ablation else None,
        "samples": 64,
        "first": 4,
        "folder": run.folder if isinstance(run, CaptureJob) else "",
    }
    state.update(heads_problem="", atlas_look=Look(), atlas_sender=AtlasSender(), captures=[], atlas_shown="")
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


def sidebar(name: str, panel) -> None:
    asked = st.session_state.heads
    with st.sidebar:
        brand("Look into every head")
        st.caption("Model and text")
        asked["model"] = model_controls("heads", asked["model"])
        asked["text"] = text_controls("heads", asked["text"])
        tokens = asked["tokens"]
        tokens[name] = st.number_input("Tokens", 32, MOST[name], tokens[name], 64, key=f"heads-tokens-{name}")
        if name != "measures":
            st.caption("What is kept")
            policy = parse(asked["policy"])
            with st.popover(f":material/edit: {plain(policy.label)}", width="stretch"):
                asked["policy"] = str(policy_controls("heads", policy))
        panel.sidebar()


def body(panel) -> None:
    panel.draw()
    if panel.busy() != st.session_state.heads_busy or slots.news():
        # Begun or ended: the whole page runs again and sets the pace anew.
        st.rerun()


open_page()
project()
heading("Look into every head")
st.session_state.setdefault("heads_panel", "maps")
name = st.segmented_control(
    "Panel", list(PANELS), format_func=PANELS.get, key="heads_panel", label_visibility="collapsed", required=True
)
panel = {"maps": atlas, "measures": measures, "knockouts": knockouts}[name]
sidebar(name, panel)
st.session_state.heads_busy = panel.busy()
st.fragment(body, run_every=0.5 if st.session_state.heads_busy else None)(panel)
