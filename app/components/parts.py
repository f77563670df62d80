"""What the components are made of: pieces of script and style, and the plotting script that they load."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly
import streamlit as st
from streamlit.components import v2

from analysis.runs.player import script, style

HERE = Path(__file__).parent
STATIC = HERE.parent / "static"


def declare(component: str, *parts: str) -> Callable[..., Any]:
    """A component whose script has these parts, in this order, and whose style stands beside them."""
    named = [part if "/" in part else f"{component}/{part}" for part in parts]
    return v2.component(
        component,
        html='<div class="sk"></div>\n',
        css=style(*named),
        js=script(*named),
        isolate_styles=False,
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
