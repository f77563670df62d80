"""A chart that is drawn again in place: nothing flickers while a curve grows, on a light page or a dark one."""

import plotly.graph_objects as go

from .parts import declare

_component = declare("chart", "main")


def mount(figure: go.Figure, *, key: str, alt: str, height: int = 300, projected: int = 34) -> None:
    """Draw a figure; `alt`: what it shows, in words and numbers; `height` in pixels; `projected`: on a projector, in
    hundredths of the screen's height."""
    _component(data={"figure": figure.to_json(), "alt": alt, "height": height, "projected": projected}, key=key)
