"""The reading page with an hour behind it: a run of four lanes whose record begins with thirty thousand tokens.

For timing only, and no part of the product: the numbers are the ones that these lanes read first, repeated.  From there
on the real model reads the real text.
"""

import ctypes
import dataclasses
import gc
import time
from functools import partial
from pathlib import Path

import numpy as np

from analysis import texts
from analysis.experiments.presets import FOUR
from analysis.runs.spec import Spec
from app.jobs.reading import ReadingJob
from app.jobs.registry import REGISTRY

from .sizes import size

BEHIND = size(30_000, 600)
BEGUN = size(200, 20)
"""Tokens that every lane reads before the record is made longer."""
ROOT = Path(__file__).parents[2]


def begin() -> ReadingJob:
    """A live run whose record is `BEHIND` tokens long."""
    run = REGISTRY.start(partial(ReadingJob, Spec("embedded", "hamlet", FOUR, None, 128), texts.read("hamlet")))
    while min(len(t.nll) for t in run.run.tracks) < BEGUN:
        time.sleep(0.1)
        run.renew_lease()
    run.request("paused")
    while run.status != "paused":
        time.sleep(0.1)
        run.renew_lease()
    offsets = [_lengthen(track) for track in run.run.tracks]
    append = run.run.append
    run.run.append = lambda step: append(dataclasses.replace(step, start=step.start + offsets[step.lane]))
    run.pieces = run.pieces * 2
    run.request("running")
    return run


def _lengthen(track) -> int:
    nll, before = track.nll.view().copy(), len(track.nll)
    while len(track.nll) < BEHIND:
        begun = len(track.nll) + 1
        track.sums.append(track.sums.view()[-1] + np.cumsum(nll, dtype=np.float64))
        for name in ("cache_tokens", "cache_bytes", "seconds", "compute", "token_ids"):
            column = getattr(track, name)
            column.append(column.view()[-len(nll) :].copy())
        track.spans.append((begun, begun + len(nll)))
        track.sink_mass.append(track.sink_mass[-1])
        track.nll.append(nll)
    return len(track.nll) - before


def page() -> None:
    import streamlit as st

    st.set_page_config(layout="wide")
    if st.query_params.get("tidy") == "now":
        # Before memory is measured: what is free goes back to the system, where it has a way.
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
        st.query_params["tidy"] = "done"
        return
    if "run" not in st.query_params:
        st.query_params["run"] = begin().id
    # What the frame (app/main.py) tells its pages.
    st.session_state.arrived, st.session_state.offered = "page" not in st.session_state, False
    st.session_state.page, st.session_state.returned = "", False
    st.navigation([st.Page(ROOT / "app/views/read.py", default=True)], position="hidden").run()
