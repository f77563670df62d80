"""The slots in which jobs live: where all are held a page says by whom, and offers those that nobody watches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import streamlit as st
from streamlit.runtime import Runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from ..jobs.base import Job
from ..jobs.loading import Models
from ..jobs.registry import MAX_LIVE, REGISTRY, Full, Kind
from ..lesson import lesson, translated
from ..plain import plain


@dataclass(frozen=True)
class Page:
    """A page in somebody's browser."""

    id: str

    @property
    def open(self) -> bool:
        """Whether the page is still open in a browser."""
        return Runtime.exists() and bool(Runtime.instance().is_active_session(self.id))


def this_page() -> Page:
    """The page whose script runs this."""
    context = get_script_run_ctx()
    assert context is not None, "only the script of a page asks for it"
    return Page(context.session_id)


def renew_lease(job: Job) -> None:
    """Tell a job that somebody watches it from this page."""
    job.renew_lease(this_page())


def start(make: Callable[[Models], Kind], again: Callable[[], None], instead: str = "") -> Kind:
    """Begin a job, in the slot of the one that it is `instead` of; `again`: what a person does to begin it.

    Raises ValueError where it cannot be, or all slots are held: then `offer` shows who holds them.
    """
    state = st.session_state
    state.wanted = None
    try:
        job = REGISTRY.start(make, instead)
    except Full:
        state.wanted = state.get("page"), again
        raise ValueError(f"{MAX_LIVE} runs are live already: above stands what they are") from None
    job.take_over(this_page())
    renew_lease(job)
    return job


def news() -> bool:
    """Whether the whole page should run again: an offer stands above its parts, or is no longer needed."""
    state = st.session_state
    return bool(state.get("wanted")) != state.get("offered", False)


def offer(language: str = "en") -> None:
    """Where something was to begin on this page and all slots are held: by what, and which can be taken over."""
    page, again = st.session_state.get("wanted") or (None, None)
    if again is not None and page == st.session_state.get("page"):
        st.fragment(_offer, run_every=2)(again, language)


def _offer(again: Callable[[], None], language: str) -> None:
    if st.session_state.wanted is None:
        # It has begun: the whole page shows it.
        st.rerun()
    holders, say = REGISTRY.holders(), lesson(language)["page"].say
    with st.container(border=True):
        st.markdown(say("slots-held", count=len(holders), most=MAX_LIVE))
        if len(holders) < MAX_LIVE:
            st.button(say("slots-free"), on_click=again, type="primary", key="slot-free")
        for holder in holders:
            said = plain(translated(str(holder), language))
            if holder.unwatched:
                taken = partial(_take_over, holder.id, again)
                st.button(f"{say('slots-take')}: {said}", on_click=taken, key=f"slot-{holder.id}")
            else:
                st.markdown(said)


def _take_over(job_id: str, again: Callable[[], None]) -> None:
    # Where somebody watches again by now, it begins in another slot or the offer comes once more.
    REGISTRY.take_over(job_id)
    again()
