"""The board: everything on the read page that moves, drawn by one component from one frame.

One component redraws itself ten times a second without remounting: zoom, focus and scroll positions survive, and
nothing jumps.  It holds no truth: it shows what the frame says, and sends back what the person pressed.
"""

from collections.abc import Callable
from typing import Any

from analysis.runs.player import BOARD

from ..recordings import address_of
from .parts import declare, serve_plotly

_component = declare("board", *BOARD)


def mount(
    frame: bytes,
    *,
    key: str,
    on_press: Callable[[], None],
    on_pick: Callable[[], None],
    on_change: Callable[[], None],
) -> None:
    """Draw a frame (frames/reading.py).

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


def replay(
    name: str,
    *,
    view: dict[str, Any],
    at: int | None,
    actions: list[tuple[str, str, str]],
    note: str,
    pace: int = 0,
    key: str,
    on_rest: Callable[[], None],
    on_press: Callable[[], None],
) -> None:
    """Replay the recording `name`, from a view and a position on; with a pace in tokens a second it plays at once.

    `actions`: buttons beside the player, what is pressed, its words and what they mean, of which the first stands out
    where it plays at once; `on_press`: one was pressed,
    `session_state[key]["press"]`; `on_rest`: what is looked at has changed, `["rest"]`.
    """
    serve_plotly()
    _component(
        data={
            "recording": {"url": address_of(name)},
            "view": view,
            "at": at,
            "actions": actions,
            "note": note,
            "pace": pace,
        },
        key=key,
        on_rest_change=on_rest,
        on_press_change=on_press,
    )
