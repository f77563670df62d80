"""The atlas: maps of a captured stretch that are panned and zoomed, drawn by one component from one frame.

It holds no truth but where one looks: it says which region it needs next, and draws coarse pieces until that has come.
"""

from collections.abc import Callable

from .parts import declare

_component = declare("atlas", "world", "many", "rows", "main")


def mount(frame: bytes, *, key: str, on_region: Callable[[], None], on_pick: Callable[[], None]) -> None:
    """Draw a frame (frames/atlas.py).

    `on_region`: a region is wanted, in `session_state[key]["region"]`; `on_pick`: a head, or a token, in `["pick"]`.
    """
    _component(data=frame, key=key, on_region_change=on_region, on_pick_change=on_pick)
