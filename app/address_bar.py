"""The address that a browser shows, so that a reload, a second tab and a link show the page as it is."""

from collections.abc import Collection, Mapping

import streamlit as st


def is_linked(names: Collection[str], here: str = "") -> bool:
    """Whether somebody came to this page for what its address says: by these parameters, and not for the run that is
    `here` already."""
    state, asked = st.session_state, st.query_params
    came = state.arrived and any(name in asked for name in names) and not (here and asked.get("run") == here)
    return state.returned or came


def readdress(names: Collection[str], values: Mapping[str, str | list[str]]) -> None:
    """Let the page's address say these values of the named parameters, and of others what it says."""
    said = {name: st.query_params.get_all(name) for name in st.query_params}
    wanted = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    wanted |= {name: of for name, of in said.items() if name not in names}
    if wanted != said:
        st.query_params.from_dict(wanted)
