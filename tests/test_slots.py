"""The fifth run: the page says who holds the four slots, and one that nobody watches can be taken over."""

import re
from functools import partial

import pytest
from streamlit.testing.v1 import AppTest

from analysis.runs.spec import Spec
from app.jobs import base
from app.jobs.reading import ReadingJob
from app.jobs.registry import MAX_LIVE, REGISTRY

from .test_jobs import Tab
from .test_jobs_reading import begin, text

WATCHED = r"reading of random.npy \(watched\)"


def script():
    import streamlit as st

    from app.panels import slots

    state = st.session_state

    def start():
        try:
            state.mine = slots.start(state.make, start).id
            state.problem = ""
        except ValueError as e:
            state.problem = str(e)

    state.setdefault("problem", "")
    slots.offer()
    st.button("Start", on_click=start)
    st.text(state.problem)


@pytest.fixture
def held(model):
    """Four runs whose pages are open."""
    runs = [begin(REGISTRY, model, pace=5) for _ in range(MAX_LIVE)]
    for run in runs:
        run.renew_lease(Tab())
    yield runs
    for holder in REGISTRY.holders():
        REGISTRY.free(holder.id)


def buttons(page, label):
    return [b for b in page.button if b.label.startswith(label)]


def test_who_holds_the_four_is_said_and_one_is_taken_over(held, model, monkeypatch):
    page = AppTest.from_function(script)
    spec = Spec(model, "ids![x](http://evil/).npy", ("dense",), chunk=32)
    page.session_state.make = partial(ReadingJob, spec, text(100))
    page.run()
    buttons(page, "Start")[0].click().run()
    assert page.text[0].value == "4 runs are live already: above stands what they are"
    assert page.markdown[0].value.startswith("4 of 4 slots are held.")
    watched = [m.value for m in page.markdown[1:]]
    assert len(watched) == 4 and all(re.fullmatch(WATCHED, said) for said in watched)
    assert not buttons(page, "Take over")
    for run in held[:2]:
        monkeypatch.setattr(run, "renewed", run.renewed - base.PAUSE_AFTER - 1)
    page.run()
    one, other = buttons(page, "Take over")
    assert re.fullmatch(r"Take over: reading of .*\(unwatched for 1\d s\)", one.label)
    other.click().run()
    mine = page.session_state.mine
    assert REGISTRY.get(held[1].id) is None and REGISTRY.get(mine).spec == spec
    assert not buttons(page, "Take over") and page.text[0].value == ""


def test_a_slot_that_has_become_free_needs_no_taking(held, model):
    page = AppTest.from_function(script)
    page.session_state.make = partial(ReadingJob, Spec(model, "random.npy", ("dense",)), text(100))
    page.run()
    buttons(page, "Start")[0].click().run()
    REGISTRY.free(held[3].id)
    page.run()
    buttons(page, "Begin now")[0].click().run()
    assert REGISTRY.get(page.session_state.mine) is not None and not page.exception
