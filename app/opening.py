"""What is on screen of a page that cannot be opened yet, since the libraries that it needs are being imported."""

import streamlit as st

from app.libraries import LIBRARIES
from app.pages import Page
from app.plain import plain


def opened(page: Page, language: str) -> bool:
    """Whether a page can run.  Where it cannot, this stands in its place, and it follows by itself."""
    LIBRARIES.begin()
    if page.at_once or LIBRARIES.ready:
        return True
    st.title(page.title(language), anchor=False)
    st.fragment(_wait, run_every=0.3)()
    return False


def _wait() -> None:
    if LIBRARIES.ready:
        st.rerun()
    if LIBRARIES.problem:
        st.error(plain(LIBRARIES.problem))
        return
    st.progress(LIBRARIES.share, f"{LIBRARIES.said} …")
    st.caption("A first start takes some seconds, later pages open at once.")
