"""Choices that a page keeps while the widget that makes them is not on screen."""

from collections.abc import Collection
from typing import Any, Literal, TypedDict

import streamlit as st


def choice(key: str, first: Any) -> Any:
    """What a widget that keeps its choice has chosen."""
    return st.session_state.get(key, first)


def choose(key: str, value: Any) -> None:
    """Let a widget that keeps its choice, and was not drawn yet, have this one."""
    st.session_state[key] = value


class Kept(TypedDict):
    """What a widget is given that keeps its choice while it is not on screen.

    Its default is what is chosen.  Streamlit tells a browser a choice once, and a browser forgets it with the widget:
    one that draws the widget anew, or that the telling never reached, begins with the default, and says so.
    """

    key: str
    persist_state: Literal["session"]


class KeptValue(Kept):
    """What is given to a text, a number, a slider or a switch."""

    value: Any


class KeptDefault(Kept):
    """What is given to segments or pills."""

    default: Any


class KeptIndex(Kept):
    """What is given to a box of options."""

    index: int


def kept_value(key: str, first: Any, options: Collection | None = None) -> KeptValue:
    """Lets a text, a number, a slider or a switch keep its choice; `first` before any was made, and where it is no
    longer one of the options."""
    return {"key": key, "persist_state": "session", "value": _chosen(key, first, options)}


def kept_default(key: str, first: Any, options: Collection | None = None) -> KeptDefault:
    """Lets segments or pills keep their choice, likewise."""
    return {"key": key, "persist_state": "session", "default": _chosen(key, first, options)}


def kept_index(key: str, first: Any, options: Collection) -> KeptIndex:
    """Lets a box of options keep its choice, likewise."""
    return {"key": key, "persist_state": "session", "index": list(options).index(_chosen(key, first, options))}


def _chosen(key: str, first: Any, options: Collection | None) -> Any:
    now = choice(key, first)
    if options is not None and now not in options:
        choose(key, now := first)
    return now
