"""The board: everything on the live page that moves, drawn by one component from one frame.

One component redraws itself ten times a second without remounting: zoom, focus and scroll positions survive, and
nothing jumps.  It holds no truth: it shows what the frame says, and sends back what the person pressed.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import plotly
import streamlit as st

HERE = Path(__file__).parent / "board"
STATIC = Path(__file__).parent.parent / "static"
PARTS = ("frame", "colour", "toolbar", "cards", "curves", "grid", "map", "strip", "main")
"""Pieces of the component's script in order: one module, since a component's script can import nothing of its own."""

SCRIPT = "\n".join((HERE / f"{part}.js").read_text(encoding="utf-8") for part in PARTS)
STYLE = (HERE / "board.css").read_text(encoding="utf-8")

_component = st.components.v2.component(
    "board", html='<div class="sk"></div>\n', css=STYLE, js=SCRIPT, isolate_styles=False
)


@st.cache_resource
def serve_plotly() -> None:
    """Put plotly's script where Streamlit serves files from: it ships inside the Python package, not on a server."""
    source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    target = STATIC / "plotly.min.js"
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        STATIC.mkdir(exist_ok=True)
        draft = target.with_suffix(".part")
        shutil.copyfile(source, draft)
        draft.replace(target)


def mount(
    frame: bytes,
    *,
    key: str,
    on_press: Callable[[], None],
    on_pick: Callable[[], None],
    on_change: Callable[[], None],
) -> None:
    """Draw a frame (frames.py).

    `on_press`: start, pause, resume, stop or restart was pressed, `session_state[key]["press"]` says which; `on_pick`:
    a choice of what to look at, in `["pick"]`; `on_change`: a lane is to switch its policy, in `["change"]`.
    """
    serve_plotly()
    _component(
        data=frame,
        key=key,
        on_press_change=on_press,
        on_pick_change=on_pick,
        on_change_change=on_change,
    )
