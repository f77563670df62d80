"""The board: everything on the read page that moves, drawn by one component, one frame after the other.

One component redraws itself several times a second without remounting: zoom, focus and scroll positions survive, and
nothing jumps.  It holds no truth: it shows what the frame says, and sends back what the person pressed.
"""

from collections.abc import Callable

from analysis.runs.player import BOARD

from .parts import Drawn, declare

COMPONENT = declare("board", *BOARD)
"""Drawn from a frame, or from a recording (replay.py)."""


def mount(
    drawn: Drawn,
    *,
    key: str,
    on_press: Callable[[], None],
    on_pick: Callable[[], None],
    on_change: Callable[[], None],
) -> None:
    """Draw a frame (frames/reading.py), or those of a feed.

    `on_press`: start, pause, resume, stop or restart was pressed, `session_state[key]["press"]` says which; `on_pick`:
    a choice of what to look at, in `["pick"]`; `on_change`: a lane is to switch its policy, in `["change"]`.
    """
    COMPONENT(
        data=drawn,
        key=key,
        on_press_change=on_press,
        on_pick_change=on_pick,
        on_change_change=on_change,
    )
