"""A run that is kept, on the page that would show it live: the browser plays it by itself."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from app.components import replay
from app.controls import is_new_press
from app.recordings import Recording
from app.view import ChatView, View

Action = tuple[str, str, Callable[[], None]]
"""A button beside the player: its words, what they mean, and what happens."""


def draw_replay(
    component: Callable[..., Any],
    recording: Recording,
    view: View | ChatView,
    *,
    at: str,
    live: Action,
    resume: Action,
    note: str,
    pace: int = 0,
    told: int = 0,
) -> None:
    """Replay a recording in a component, from the view and the position `at` of the session on, which both follow it.

    `live`, `resume`: what a person may do with it; `pace`: tokens a second at which it plays at once; `told`: how many
    times a story was begun.
    """
    state, key = st.session_state, f"replay-{recording.name}-{told}"
    offered = {"live": live, **({"resume": resume} if recording.goes_on and not recording.story else {})}

    def rested() -> None:
        rest = state[key]["rest"]
        view.look(rest, len(recording.spec.policies))
        state[at] = rest["at"] if isinstance(rest.get("at"), int) else state[at]

    def asked() -> None:
        if is_new_press(f"{at}-press", press := state[key]["press"]) and press["what"] in offered:
            offered[press["what"]][-1]()

    replay.mount(
        component,
        recording.name,
        view=view.shown(),
        at=state[at],
        # Where it can go on, that stands first.
        actions=[(what, words, meaning) for what, (words, meaning, _) in reversed(offered.items())],
        note=note,
        pace=pace,
        key=key,
        on_rest=rested,
        on_press=asked,
    )
