"""A page as a projector shows it: large type, and nothing beside what is looked at.  One key, on every page; the button
that copies the page's address stands beside it."""

import streamlit as st

from analysis import resource
from app import address
from app.address_bar import addressed, readdress
from app.components import link
from app.lesson import translated
from app.plain import plain

STYLE = resource("app/components/shared/projected.css")
NAME = "projected"
"""Of the parameter in addresses."""
PARAMETERS: address.Parameters = {NAME: address.switch(NAME)}
"""What every page's address says of it."""


def project(
    begin: str = "Project", end: str = "Leave projection", copy: str = "Copy link", copied: str = "Copied",
    language: str = "en",
) -> None:  # fmt: skip
    """The button, and the style where it is on.  A page that is opened in the same tab stays projected."""
    state = st.session_state
    if state.arrived and state.get(NAME):
        readdress((NAME,), {NAME: "1"})
    asked = {NAME: said[-1]} if (said := addressed(NAME)) else {}
    found, problems = address.values(PARAMETERS, asked)
    on = state[NAME] = bool(found.get(NAME))
    if problems:
        st.info(plain(translated(address.wrong(problems), language)))
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
