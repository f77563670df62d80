"""A chart that is drawn again in place: nothing flickers while a curve grows, on a light page or a dark one."""

import plotly.graph_objects as go
import streamlit as st

from .parts import script, serve_plotly, style

_component = st.components.v2.component(
    "chart",
    html='<div class="sk"></div>\n',
    css=style("chart"),
    js=script("chart", "main"),
    isolate_styles=False,
)


def mount(figure: go.Figure, *, key: str, alt: str, height: int = 300, projected: int = 0) -> None:
    """Draw a figure; `alt`: what it shows, in words and numbers; `height` in pixels; `projected`: on a projector, in
    hundredths of the screen's height."""
    serve_plotly()
    _component(data={"figure": figure.to_json(), "alt": alt, "height": height, "projected": projected}, key=key)
