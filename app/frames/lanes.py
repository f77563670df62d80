"""What frames say of lanes and of their model: names and styles, how a lane can be switched, what a model costs."""

from collections.abc import Sequence
from typing import Any

from analysis.palette import briefs, labels
from analysis.policies import POLICIES, Policy, Streaming, Window
from analysis.runs.facts import ModelFacts
from analysis.runs.spec import Spec

SINK_TOKENS = 4
"""First tokens whose attention the engine sums up as sink mass, and that one press gives back to a lane."""
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
    """What each lane is called, how it is drawn, and which switches are one press away.

    No two lanes have one name (palette.py).
    """
    return [
        {
            "label": label,
            "brief": brief,
            "policy": str(policy),
            "color": color,
            "dash": dash,
            "offers": offers(policy),
        }
        for policy, label, brief, (color, dash) in zip(
            policies, labels(policies, since), briefs(policies, since), styles, strict=True
        )
    ]


def offers(policy: Policy) -> list[dict[str, Any]]:
    """Policies of another kind with as many cached tokens, for one press: words, policy, and whether to pin sinks."""
    size = policy.capacity or 0
    if policy.name == Streaming.name:
        return [{"words": "Drop the sinks", "policy": str(Window(window=size)), "pin": False}]
    if policy.name == Window.name and size > SINK_TOKENS:
        back = Streaming(sinks=SINK_TOKENS, window=size - SINK_TOKENS)
        return [{"words": "Bring the sinks back", "policy": str(back), "pin": True}]
    return []


def about(spec: Spec, model: ModelFacts, begins: str) -> list[str]:
    """The model of a run, what was done to it, and how its text begins, a few words each."""
    changed = []
    if spec.kv_heads is not None:
        changed.append(f"KV heads averaged to {spec.kv_heads}, without training")
    return [model.name, *changed, *([f"begins {begins}"] if begins else []), spec.arithmetic, model.device]


def card(model: ModelFacts | None) -> dict[str, Any]:
    """What the page says of a model: facts, and what its cache costs with more and with fewer KV heads."""
    if model is None:
        return {}
    return {
        "facts": model.card,
        "sharings": [
            {
                "what": f"{s.name}, {s.kv_heads} KV head{'s' if s.kv_heads > 1 else ''}",
                "own": s.own,
                "bytes": s.token,
                "costs": f"{s.token / 1e3:,.1f} kB a token, {s.token * s.length / 1e6:,.0f} MB for {s.length:,}",
            }
            for s in model.sharings
        ],
    }
