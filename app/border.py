"""The border of the pages: whatever is raised while one is drawn, or by a press, is one sentence on it."""

import secrets

import streamlit as st

from analysis.errors import error_message, log
from app.plain import plain


def failed(e: Exception) -> bool:
    """Say it on the page, and put it into the log; what a page raises ten times a second is there once."""
    last, name = st.session_state.get("failed", ("", ""))
    if last != repr(e):
        name = f"page {secrets.token_hex(3)}"
        log(e, name)
        st.session_state.failed = repr(e), name
    st.error(plain(error_message(e, name, "reload the page")))
    # Streamlit shows no more of it.
    return True
