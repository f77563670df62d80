"""How the tokens of answers are chosen, as widgets."""

import streamlit as st

from analysis.runs.spec import Sampling
from app.controls import whole_control


def sampling_controls(now: Sampling) -> Sampling:
    """Widgets for how answers are sampled, as they stand now; returns what the person chose."""
    key = f"-{st.session_state.revision}"
    temperature = st.slider(
        "Temperature", 0.0, 2.0, float(now.temperature), 0.1, key="temperature" + key, help="0: the most probable token"
    )
    return Sampling(
        max_new=whole_control("Tokens an answer, at most", 1, 4096, now.max_new, key="max_new" + key),
        temperature=temperature,
        top_k=whole_control(
            "Top k",
            1,
            1000,
            now.top_k or None,
            placeholder="all",
            key="top_k" + key,
            disabled=not temperature,
            help="Only so many of the most probable tokens; empty: all",
        )
        or 0,
        top_p=st.slider("Top p", 0.05, 1.0, float(now.top_p), 0.05, key="top_p" + key, disabled=not temperature),
        repetition_penalty=st.slider(
            "Repetition penalty",
            1.0,
            2.0,
            float(now.repetition_penalty),
            0.05,
            key="penalty" + key,
            help="Over the last 1,024 tokens; 1: none",
        ),
        seed=whole_control("Seed", 0, 2**31, now.seed, key="seed" + key, disabled=not temperature),
    )
