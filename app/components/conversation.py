"""The chat page's component: lanes of one conversation, the field to write in, and the instruments beside them.

It holds no truth: it shows what the frame says (frames/chat.py), and sends back what the person said and pressed.
"""

from collections.abc import Callable

from analysis.runs.player import CONVERSATION

from .parts import Drawn, declare

COMPONENT = declare("conversation", *CONVERSATION)
"""Drawn from a frame, or from a recording (replay.py)."""


def mount(
    drawn: Drawn,
    *,
    key: str,
    on_say: Callable[[], None],
    on_press: Callable[[], None],
    on_pick: Callable[[], None],
    on_change: Callable[[], None],
) -> None:
    """Draw a frame, or those of a feed.

    `on_say`: words were sent, `session_state[key]["say"]`; `on_press`: stop, again, play, hold, skip or new,
    in `["press"]`; `on_pick`: a lane, head or token to look at, in `["pick"]`; `on_change`: a lane is to switch its
    policy, in `["change"]`.
    """
    COMPONENT(
        data=drawn,
        key=key,
        on_say_change=on_say,
        on_press_change=on_press,
        on_pick_change=on_pick,
        on_change_change=on_change,
    )
