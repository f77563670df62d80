"""What the components are made of: pieces of script and style, and the plotting script that they load."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly
import streamlit as st
from streamlit.components import v2

HERE = Path(__file__).parent
STATIC = HERE.parent / "static"
SHARED = ("frame", "colour", "sample", "switch", "grid", "card", "plotly", "mount")


def script(component: str, *parts: str) -> str:
    """The shared pieces and a component's own as one module: a component's script can import nothing of its own."""
    paths = [HERE / "shared" / f"{part}.js" for part in SHARED] + [HERE / component / f"{part}.js" for part in parts]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def declare(component: str, *parts: str) -> Callable[..., Any]:
    """A component whose script has these parts, in this order, and whose style stands beside them."""
    return v2.component(
        component,
        html='<div class="sk"></div>\n',
        css=style(component),
        js=script(component, *parts),
        isolate_styles=False,
    )


def style(component: str) -> str:
    """The shared style and a component's own."""
    return "\n".join(
        (HERE / place).read_text(encoding="utf-8") for place in ("shared/page.css", f"{component}/{component}.css")
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
