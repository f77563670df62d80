"""What the panels of the heads page have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis import texts

from ..address import Parameters
from ..controls import chosen_text
from ..recordings import Result
from .job_panel import JobPanel


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


def text_of(kept: Result, place: JobPanel) -> texts.Text:
    """The text of a result that is completed: that of the job that stands there still, or one that is read anew.

    Raises ValueError where it is no longer here.
    """
    text = getattr(place.job, "text", None)
    return chosen_text("heads", kept.spec.text) if text is None else text
