"""Downloads: a file is made when it is asked for, and its address stays while the page is drawn again and again."""

import gc
from urllib.parse import unquote

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from app.downloads import NOT_OFFERED, ROUTES, Downloads, Offer


@pytest.fixture
def server():
    """A browser of a server that has downloads alone."""
    with TestClient(Starlette(routes=ROUTES)) as browser:
        yield browser


@pytest.mark.parametrize("name", ["table.csv", "Übersicht 100 % von 2/3?.csv", "a; filename=b.csv"])
def test_a_file_comes_under_its_name(server, name):
    page = Downloads()
    answer = server.get(page.offer("runs", name, Offer(lambda: "policy,ü\n", "text/csv")))
    assert (answer.status_code, answer.text) == (200, "policy,ü\n")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8" and answer.headers["cache-control"] == "no-store"
    kind, _, coded = answer.headers["content-disposition"].partition("; filename*=UTF-8''")
    assert kind == "attachment" and unquote(coded) == name and not set(coded) & set(" ;/\"'")


def test_a_file_is_made_at_each_press_of_what_was_offered_last(server):
    page, made = Downloads(), []
    first = page.offer("runs", "recall.csv", Offer(lambda: made.append(1) or "1", "text/csv"))
    assert page.offer("runs", "recall.csv", Offer(lambda: made.append(2) or b"2", "text/csv")) == first and made == []
    assert [server.get(first).text for _ in range(2)] == ["2", "2"] and made == [2, 2]


def test_what_cannot_be_made_is_a_sentence_and_no_trace(server):
    def full():
        raise ValueError("the disk is full: make room")

    def broken():
        raise KeyError("layer")

    page = Downloads()
    answer = server.get(page.offer("runs", "a.zip", Offer(full, "application/zip")))
    assert (answer.status_code, answer.text) == (500, "The disk is full: make room.")
    answer = server.get(page.offer("runs", "b.zip", Offer(broken, "application/zip")))
    assert answer.status_code == 500 and "press again" in answer.text and "Traceback" not in answer.text
    assert answer.headers["content-type"].startswith("text/plain")


def test_what_is_no_longer_offered_says_what_to_do(server):
    page = Downloads()
    address = page.offer("runs", "a.zip", Offer(bytes, "application/zip"))
    for other in (address.replace("a.zip", "b.zip"), address.replace(page.id, "x")):
        assert (server.get(other).status_code, server.get(other).text) == (410, NOT_OFFERED)
    assert server.get(address).status_code == 200
    # Its session is over.
    del page
    gc.collect()
    assert (server.get(address).status_code, server.get(address).text) == (410, NOT_OFFERED)


def drawn():
    """A page that offers its files anew whenever it is drawn, and another page."""
    import streamlit as st

    from app.downloads import download

    st.session_state.setdefault("page", "heads")
    st.session_state.turn = turn = st.session_state.get("turn", 0) + 1
    download("As CSV", "heads.csv", lambda: f"{turn}")
    if st.session_state.page == "heads":
        download("As PDF", "heads.pdf", lambda: b"%PDF", "application/pdf", primary=True)


def test_an_address_stays_while_its_page_is_drawn_and_goes_with_its_page(server):
    at = AppTest.from_function(drawn).run()
    first = [link.proto.url for link in at.get("link_button")]
    at.run()
    assert [link.proto.url for link in at.get("link_button")] == first and len(set(first)) == 2
    assert server.get(first[0]).text == "2"
    at.session_state.page = "recall"
    at.run()
    (other,) = [link.proto.url for link in at.get("link_button")]
    assert server.get(other).text == "3" and server.get(first[1]).status_code == 410
