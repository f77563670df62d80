"""What the panels of the heads page have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import streamlit as st

from analysis.experiments.resume import check_settings

from ..address import Parameters
from ..controls import chosen_text
from ..plain import plain
from ..recordings import Result
from .job_panel import JobPanel, Maker


@dataclass(frozen=True)
class HeadsPanel:
    """One panel of the heads page."""

    title: str
    job_panel: JobPanel
    """Where its job stands."""
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
    parameters: Parameters
    """What the page's address says of it."""
    usual: Mapping[str, Any]
    """The same as it is before anybody chose, by name; what is not here is none."""
    now: Callable[[], dict[str, Any]]
    """The same as it is now."""
    take: Callable[[dict[str, Any]], None]
    """Sets what an address asks, and all else as usual."""
    opened: Callable[[], str] = str
    """Readies what an address put here, and returns what there is to say of it."""
    takes_policy: bool = True
    """Whether the text is read under a policy that a person chooses."""


@dataclass(frozen=True)
class Found:
    """What is known of a result, from a job or from the library."""

    about: str
    """What was done, in a few words."""
    text_note: str
    """A sentence about control tokens in the text, where there is one to say."""

    @classmethod
    def of_job(cls, run: Any) -> Self:
        """What a job has found so far."""
        raise NotImplementedError

    @classmethod
    def of_result(cls, kept: Result) -> Self:
        """What the library keeps.  Raises ValueError where it is damaged."""
        raise NotImplementedError


Known = TypeVar("Known", bound=Found)


def draw_head(
    place: JobPanel, kind: type[Known], words: str, icon: str, start: Callable[[], None], resume: Callable[[], None]
) -> Known | None:
    """The head of a panel, with what there is to say of its text; returns what is known of its result."""
    found = place.head(kind, words, icon, start, resume)
    if found is not None and found.text_note:
        st.caption(plain(found.text_note))
    return found


def resume(place: JobPanel, *settings: str) -> None:
    """Compute what is missing of what stopped in a place; `settings`: what its job takes after spec and text."""

    def again(kept: Result) -> Maker:
        check_settings(kept.kind, kept.spec, kept.settings)
        # Of the job that stands there still, or read anew.
        text = getattr(place.job, "text", None) or chosen_text("heads", kept.spec.text)
        return partial(place.kind, kept.spec, text, *map(kept.settings.get, settings), resumes=kept.id)

    place.resume(again)
