"""A page as a projector shows it: large type, and nothing beside what is looked at.  One key, on every page; the button
that copies the page's address stands beside it."""

import streamlit as st

from analysis import resource
from app.address_bar import addressed, readdress
from app.components import link

STYLE = resource("app/components/shared/projected.css")
NAME = "projected"
"""Of the parameter in addresses."""


def project(
    begin: str = "Project", end: str = "Leave projection", copy: str = "Copy link", copied: str = "Copied"
) -> None:
    """The button, and the style where it is on.  A page that is opened in the same tab stays projected."""
    state = st.session_state
    if state.arrived and state.get(NAME):
        readdress((NAME,), {NAME: "1"})
    on = state[NAME] = addressed(NAME)[-1:] == ["1"]
    if on:
        st.html(STYLE)
    with st.container(key="project", width="content", horizontal=True, vertical_alignment="center"):
        link.mount(copy, copied)
        st.button(
            end if on else begin, on_click=_turn, args=(not on,), shortcut="P", type="tertiary",
            icon=":material/present_to_all:", key="project-button",
        )  # fmt: skip


def _turn(on: bool) -> None:
    st.session_state[NAME] = on
    readdress((NAME,), {NAME: "1"} if on else {})
