"""Who steers a job that several pages watch: all of them see it, and one may tell it what to do.

The others are told which one that is, and may take over.
"""

import streamlit as st

from ..controls import problem
from ..jobs.base import Job, Steering
from .slots import this_page


def mine(job: Job) -> bool:
    """Whether this page may tell a job what to do."""
    return job.steering(this_page()).mine


def who(seen: Steering, noun: str, *, taken: bool) -> str:
    """Which viewer steers a job, as another one is told; `noun`: what the job is; `taken`: from this one."""
    how, what = "has taken over" if taken else "steers", f"{'these' if noun.endswith('s') else 'this'} {noun}"
    return f"Viewer {seen.owner} {how} {what}. You are viewer {seen.viewer} of {seen.viewers}."


def say(job: Job, wrong: str = "") -> None:
    """Say who steers a live job, where that is another page, and offer to take over; `wrong`: what is wrong on this
    page alone."""
    seen, state = job.steering(this_page()), st.session_state
    # Always there, so that what stands below is the same element before and after.
    place = st.container(horizontal=True, vertical_alignment="center")
    if seen.mine or not job.live:
        if seen.mine:
            state.steered = job.id
        return
    with place:
        problem(wrong)
        st.markdown(who(seen, job.noun, taken=state.get("steered") == job.id), width="content")
        st.button("Take over", key=f"take-over-{job.id}", on_click=_take_over, args=(job,))


def _take_over(job: Job) -> None:
    job.take_over(this_page())
