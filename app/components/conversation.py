"""The chat page's component: lanes of one conversation, the field to write in, and the instruments beside them.

It holds no truth: it shows what the frame says (frames/chat.py), and sends back what the person said and pressed.  A
recorded conversation it fetches and plays by itself, in the same lanes.
"""

from collections.abc import Callable
from typing import Any

from ..recordings import address_of
from .parts import declare, serve_plotly

_component = declare(
    "conversation",
    *("shared/recording", "shared/player"),
    *("lanes", "composer", "meters", "recorded", "replay", "main"),
)


def mount(
    frame: bytes,
    *,
    key: str,
    on_say: Callable[[], None],
    on_press: Callable[[], None],
    on_pick: Callable[[], None],
    on_change: Callable[[], None],
) -> None:
    """Draw a frame.

    `on_say`: words were sent, `session_state[key]["say"]`; `on_press`: stop, again, play, hold, skip or new,
    in `["press"]`; `on_pick`: a lane, head or token to look at, in `["pick"]`; `on_change`: a lane is to switch its
    policy, in `["change"]`.
    """
    serve_plotly()
    _component(
        data=frame,
        key=key,
        on_say_change=on_say,
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
    key: str,
    on_rest: Callable[[], None],
    on_press: Callable[[], None],
) -> None:
    """Replay the conversation `name` of the library, from a view and a position on.

    `actions`: buttons beside the player, what is pressed, its words and what they mean; `on_press`: one was pressed,
    `session_state[key]["press"]`; `on_rest`: what is looked at has changed, `["rest"]`.
    """
    serve_plotly()
    _component(
        data={"recording": {"url": address_of(name)}, "view": view, "at": at, "actions": actions, "note": note},
        key=key,
        on_rest_change=on_rest,
        on_press_change=on_press,
    )
