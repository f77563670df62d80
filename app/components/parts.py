"""What the components are made of: pieces of script and style."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamlit.components import v2

from analysis.runs.player import script, style

HERE = Path(__file__).parent
Drawn = bytes | Mapping[str, str]
"""What a component is drawn from: a frame, or the feed from which it takes one frame after the other."""


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
