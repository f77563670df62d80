"""What the panels of the heads page have in common."""

from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from ..jobs.base import Job


@dataclass(frozen=True)
class HeadsPanel:
    """One panel of the heads page."""

    title: str
    tokens: int
    """Tokens that are read unless a person asks for more or fewer."""
    most_tokens: int
    """Tokens that a person can ask for."""
    sidebar: Callable[[], None]
    """Draws its widgets at the side."""
    draw: Callable[[], None]
    """Draws the panel."""
    busy: Callable[[], bool]
    """Whether there will be something new without a press."""
    takes_policy: bool = True
    """Whether the text is read under a policy that a person chooses."""


def to_address(job: Job) -> None:
    """Let the page's address name a job, and how it reads its text."""
    st.query_params["run"] = job.id
    st.session_state.heads["model"].to_address()
