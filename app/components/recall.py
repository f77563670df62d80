"""The map of recall: a block of cells for each policy, side by side, each cell a button that says what was answered.

It holds no truth: it shows what the frame says (frames/recall.py), and sends back which cell was pressed.
"""

from collections.abc import Callable
from typing import Any

from .parts import declare

_component = declare("recall", "main")


def mount(frame: dict[str, Any], *, key: str, on_pick: Callable[[], None]) -> None:
    """Draw a frame.  `on_pick`: a cell was pressed, `session_state[key]["pick"]` says which."""
    _component(data=frame, key=key, on_pick_change=on_pick)
