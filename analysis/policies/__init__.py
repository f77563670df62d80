"""The eviction policies, by the name that a person writes."""

from .base import Afresh, Band, Policy
from .dense import Dense
from .recompute import Recompute
from .streaming import Streaming
from .window import Window

POLICIES: dict[str, type[Policy]] = {p.name: p for p in (Dense, Window, Streaming, Recompute)}


def parse(text: str) -> Policy:
    """The policy written as `name:key=value,key=value`; raises ValueError with what exists when it is not known."""
    name, _, settings = text.partition(":")
    if name.strip() not in POLICIES:
        raise ValueError(f"there is no policy {name.strip()!r}; choose one of: {', '.join(POLICIES)}")
    return POLICIES[name.strip()].parse(settings)


__all__ = ["POLICIES", "Afresh", "Band", "Dense", "Policy", "Recompute", "Streaming", "Window", "parse"]
