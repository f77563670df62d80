"""What a browser's address says, where the browser has not heard yet what it was told."""

import pytest
from streamlit.testing.v1 import AppTest


def script():
    import streamlit as st

    from app import address_bar

    address_bar.hear(arrived=st.session_state.pop("comes", False))
    for chapter in "123":
        address = {"chapter": chapter}
        st.button(chapter, on_click=address_bar.readdress, args=(("chapter",), address), key=chapter)
    st.text(" ".join(address_bar.addressed("chapter")))


@pytest.fixture
def at() -> AppTest:
    page = AppTest.from_function(script)
    page.query_params["lang"], page.query_params["chapter"] = "zh", "1"
    return page.run()


def says(at: AppTest, chapter: str) -> bool:
    """Whether page and address say this chapter, and what else was said is as it was."""
    assert not at.exception
    found = {name: [v] if isinstance(v := at.query_params[name], str) else v for name in at.query_params}
    return found == {"lang": ["zh"], "chapter": [chapter]} and at.text[0].value == chapter


def test_what_was_told_last_counts(at):
    assert says(at.button(key="2").click().run(), "2")
    # The browser sends what its address said before it heard of the second chapter.
    at.query_params["chapter"] = "1"
    assert says(at.run(), "2")
    at.query_params["chapter"] = "1"
    assert says(at.button(key="3").click().run(), "3")
    at.query_params["chapter"] = "2"
    assert says(at.button(key="2").click().run(), "2")


def test_an_address_that_a_person_comes_by_counts(at):
    assert says(at.button(key="2").click().run(), "2")
    at.session_state.comes = True
    at.query_params["chapter"] = "1"
    assert says(at.run(), "1")
