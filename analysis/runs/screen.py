"""What a screen says of a run, live or recorded: names and styles of its lanes, marks on its curves, and its model."""

from collections.abc import Sequence
from typing import Any

from .. import metrics
from ..metrics import BLOCK, FIDELITY, FIRST, ROLL
from ..palette import briefs, labels
from ..policies import Policy, parse
from .codec import LEVELS
from .facts import ModelFacts
from .run import ROLES, Run, Track
from .spec import Spec

MODES = (*metrics.MODES, *FIDELITY)
"""Curves of a reading."""
COMPARED = ("relative", *FIDELITY)
"""Those that need another lane."""
PAINTS = ("nll", "attention")
"""What the text is coloured by."""
GRIDS = ("sink mass", "output error")
"""What is shown of every head: the attention that it gives to the first tokens, or how far its output is from that of
the first lane, where this was measured."""
POINTS = 360
"""Points of a curve: about one a pixel."""
MEMORY_POINTS = 120
"""Points of a curve of memory."""
STRIP = 360
"""Newest tokens of the text on screen."""
GRID = 256
"""Newest tokens over which the sink grid is a mean."""
SINK_TOKENS = 4
"""First tokens whose attention the engine sums up as sink mass, and that one press gives back to a lane."""
CONSTANTS: dict[str, Any] = {
    "modes": MODES,
    "compared": COMPARED,
    "fidelity": FIDELITY,
    "paints": PAINTS,
    "grids": GRIDS,
    "levels": LEVELS,
    "sink_tokens": SINK_TOKENS,
    "roll": ROLL,
    "first": FIRST,
    "block": BLOCK,
    "points": POINTS,
    "memory_points": MEMORY_POINTS,
    "strip": STRIP,
    "grid": GRID,
}
"""What the scripts of pages share with Python."""
TAIL = 1500
"""Newest tokens of a conversation on screen."""
FIRST_TOKENS = 4
"""First tokens of a conversation, always on screen: where the sinks are."""
RECENT = 16
"""Tokens of an answer over which the sink grid and the time per token are a mean."""
BUCKETS = 120
"""Points of a curve of what a conversation costs."""
CUT = ("limit", "stopped", "failed")
"""Ends of an answer that are marked, since the model did not say them."""
CHAT_CONSTANTS: dict[str, Any] = {"roles": ROLES, "sink_tokens": SINK_TOKENS, "cut": CUT}
"""What the scripts of conversations share with Python."""


def named(
    policies: Sequence[Policy], styles: Sequence[tuple[str, str]], since: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """What each lane is called and how it is drawn; no two lanes have one name (palette.py)."""
    return [
        {"label": label, "brief": brief, "policy": str(policy), "color": color, "dash": dash}
        for policy, label, brief, (color, dash) in zip(
            policies, labels(policies, since), briefs(policies, since), styles, strict=True
        )
    ]


def changes(track: Track, begun: Sequence[Policy], lane: int) -> list[tuple[int, str]]:
    """What a lane was called from which token on."""
    changed = track.policies[:]
    names = [parse(policy).label for _, policy in changed]
    if names and names[0] == begun[lane].label:
        names[0] = labels(begun)[lane]
    return [(at, name) for (at, _), name in zip(changed, names, strict=True)]


def marks(run: Run, read: int) -> list[dict[str, Any]]:
    """Where something happened while a run read its first `read` tokens: caches filled, lanes were switched, and the
    text grew longer than what the model was trained on."""
    full: dict[int, int] = {}
    for track in run.tracks:
        if (at := track.full_at) is not None:
            full[at] = full.get(at, 0) + 1
    found = [{"x": x, "text": "caches full" if n > 1 else "cache full", "kind": "full"} for x, n in full.items()]
    trained = run.model.trained_length if run.model else None
    if trained and trained < read:
        found.append({"x": trained, "text": "trained length", "kind": "trained"})
    # What was switched again before anything was read leaves no mark.
    switches = {(e["position"], e["lane"]): e for e in run.switches}
    for (position, lane), event in switches.items():
        text = ", ".join(filter(None, (parse(event["policy"]).label, event.get("how"))))
        found.append({"x": position, "text": text, "kind": "switch", "lane": lane})
    return found


def about(spec: Spec, model: ModelFacts, begins: str) -> list[str]:
    """The model of a run, what was done to it, and how its text begins, a few words each."""
    changed = []
    if spec.kv_heads is not None:
        changed.append(f"KV heads averaged to {spec.kv_heads}, without training")
    return [model.name, *changed, *([f"begins {begins}"] if begins else []), spec.arithmetic, model.device]


def card(model: ModelFacts | None) -> dict[str, Any]:
    """What a page says of a model: facts, and what its cache costs with more and with fewer KV heads."""
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
