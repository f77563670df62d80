"""The colours and line shapes of lanes: Okabe and Ito's, the same on every screen."""

from collections.abc import Sequence

from analysis.policies import Policy

POLICY = {"dense": "#000000", "window": "#D55E00", "recompute": "#0072B2", "streaming": "#009E73"}
SPARE = ["#CC79A7", "#E69F00", "#56B4E9", "#D55E00", "#0072B2", "#F0E442"]
DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"]


def colours(policies: Sequence[Policy]) -> list[tuple[str, str]]:
    """Colour and dash of each lane: a policy has its own colour, a second lane of it another one and another dash."""
    taken: set[str] = set()
    shown = []
    for i, policy in enumerate(policies):
        own = POLICY.get(policy.name, SPARE[0])
        free = [own, *SPARE]
        colour = next((c for c in free if c not in taken), own)
        taken.add(colour)
        again = sum(p.name == policy.name for p in policies[:i])
        shown.append((colour, DASHES[again % len(DASHES)]))
    return shown
