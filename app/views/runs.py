"""Runs: the library of runs, what one does with them, and several of them laid over one another."""

import streamlit as st

from analysis.runs import library
from app.address_bar import addressed
from app.controls import AROUND, brand, heading, problem
from app.panels import run_comparison, run_list
from app.panels.job_panel import redraw
from app.projection import project


def draw() -> None:
    """The list, or the runs that the address compares; again and again while one of them is written."""
    st.session_state.runs_live = False
    try:
        found = library.entries()
        st.session_state.runs_live = any(e.live for e in found)
        if names := addressed("compare"):
            run_comparison.draw(found, names)
        else:
            run_list.draw(found)
    except ValueError as e:
        problem(e)


st.session_state.setdefault("revision", 0)
if st.session_state.get("arrived"):
    # What was done when one was here before is no news.
    run_list.said(problem="", note="")
    run_list.arrive()
    run_comparison.arrive()
with st.sidebar:
    brand("runs")
    st.html(AROUND.with_name("runs.css"))
project()
heading("runs")
redraw(draw, lambda: 2 if st.session_state.get("runs_live") else None)
