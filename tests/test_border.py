"""The border of the pages: what is raised while one is drawn is a sentence on it, and a line in the log."""

from streamlit.testing.v1 import AppTest

from app import main
from app.border import failed


def script():
    import streamlit as st

    from app.border import failed

    for e in (st.session_state.thrown, st.session_state.thrown):
        failed(e)


def drawn(e: Exception) -> list[str]:
    page = AppTest.from_function(script)
    page.session_state.thrown = e
    page.run()
    assert not page.exception
    return [said.value for said in page.error]


def test_what_a_page_raises_is_one_sentence_and_once_in_the_log(caplog):
    one, two = drawn(KeyError("parts"))
    assert one == two and one.startswith("Something failed inside Sinkscope (KeyError): reload the page")
    name = one.split("says of ")[1].rstrip(".")
    assert [record.getMessage() for record in caplog.records if name in record.getMessage()] == [
        f"{name}: KeyError: 'parts'"
    ]


def test_what_others_wrote_is_text_there_too():
    assert (
        drawn(ValueError("there is no ![x](http://evil/) here"))[0]
        == r"There is no !\[x](http:" + "\u2060//evil/) here."
    )


def test_the_server_asks_it():
    assert main.app._on_script_error is failed
