"""A conversation that is kept, on the page: the browser plays it by itself."""

from collections.abc import Callable
from dataclasses import asdict

import streamlit as st

from app.components import conversation
from app.controls import is_new_press
from app.recordings import Recording


def draw_recorded_chat(recording: Recording, note: str, begin: Callable[[], None], resume: Callable[[], None]) -> None:
    """Replay a conversation; `begin`, `resume`: what a person may do with it; `note`: what there is to say."""
    state, key = st.session_state, f"replay-{recording.name}"

    def rested() -> None:
        rest = state[key]["rest"]
        state.chat_view.look(rest, len(recording.spec.policies))
        state.chat_at = rest["at"] if isinstance(rest.get("at"), int) else state.chat_at

    def asked() -> None:
        if is_new_press("chat-press", press := state[key]["press"]):
            {"new": begin, "resume": resume}[press["what"]]()

    actions = [("new", "Talk live", "Load the model, and begin a conversation with what is set at the left")]
    if recording.goes_on and not recording.story:
        actions.insert(0, ("resume", "Resume", "Load the model, and go on where this conversation stopped"))
    conversation.replay(
        recording.name,
        view=asdict(state.chat_view),
        at=state.chat_at,
        actions=actions,
        note=note,
        key=key,
        on_rest=rested,
        on_press=asked,
    )
