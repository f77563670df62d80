"""The address that a browser shows, so that a reload, a second tab and a link show the page as it is.

A browser sends its address with whatever is pressed.  What it has been told of late may not have reached it by then, so
from a person's arrival on it is what was told last that counts.
"""

from collections.abc import Collection, Mapping

import streamlit as st


def hear(*, arrived: bool) -> None:
    """Take the address that a browser sends where a person came by it; else tell it again, where it sends another."""
    if arrived or "address" not in st.session_state:
        st.session_state.address = _sent()
    elif _sent() != st.session_state.address:
        st.query_params.from_dict(st.session_state.address)


def addressed(name: str) -> list[str]:
    """What the address says by this name, once or more often."""
    return st.session_state.get("address", _sent()).get(name, [])


def is_linked(names: Collection[str], here: str = "") -> bool:
    """Whether somebody came to this page for what its address says: by these parameters, and not for the run that is
    `here` already."""
    state, asked = st.session_state, st.query_params
    came = state.arrived and any(name in asked for name in names) and not (here and asked.get("run") == here)
    return state.returned or came


def readdress(names: Collection[str], values: Mapping[str, str | list[str]]) -> None:
    """Let the page's address say these values of the named parameters, and of others what it says.

    It is not told without need: that may come after a person went back, and would be taken for the address of the
    other page.
    """
    said = st.session_state.get("address", _sent())
    wanted = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    wanted |= {name: of for name, of in said.items() if name not in names}
    if wanted != said or wanted != _sent():
        st.session_state.address = wanted
        st.query_params.from_dict(wanted)


def _sent() -> dict[str, list[str]]:
    return {name: st.query_params.get_all(name) for name in st.query_params}
