"""What frames say of lanes: names and styles, and how a lane can be switched."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from analysis.policies import POLICIES, Policy, Streaming, Window
from analysis.runs.screen import SINK_TOKENS, named

SCHEMA = [
    {
        "name": name,
        "title": policy.title,
        "help": (policy.__doc__ or "").split("\n")[0].replace("`", ""),
        "settings": [
            {
                "name": f.name,
                "default": f.default,
                "step": {int: 1, float: 0.5}.get(f.type),
                **{k: f.metadata[k] for k in ("help", "low", "high", "choices", "pattern", "intervention")},
            }
            for f in policy.settings() + policy.interventions()
        ],
    }
    for name, policy in POLICIES.items()
]
"""The policies and their settings: from these the page makes the form that switches a lane."""


def faces(
    policies: Sequence[Policy], styles: Sequence[tuple[str, str]], since: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """What each lane is called, how it is drawn, and which switches are one press away."""
    names = named(policies, styles, since)
    return [name | {"offers": offers(policy)} for name, policy in zip(names, policies, strict=True)]


def offers(policy: Policy) -> list[dict[str, Any]]:
    """Policies of another kind with as many cached tokens, for one press: words, policy, and whether to pin sinks.

    What else was changed about the lane stays; what that does not let be is not offered.
    """
    size = policy.capacity or 0
    same = {name: getattr(policy, name) for name in ("block", *(f.name for f in policy.interventions()))}
    with suppress(ValueError):
        if policy.name == Streaming.name:
            return [{"words": "Drop the sinks", "policy": str(Window(window=size, **same)), "pin": False}]
        if policy.name == Window.name and size > SINK_TOKENS:
            back = Streaming(sinks=SINK_TOKENS, window=size - SINK_TOKENS, **same)
            return [{"words": "Bring the sinks back", "policy": str(back), "pin": True}]
    return []
