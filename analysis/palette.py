"""The colours and line shapes of lanes: Okabe and Ito's, the same on every screen."""

from collections.abc import Sequence

from analysis.policies import Policy

LOOKS = {
    "dense": ("#000000", "solid"),
    "window": ("#D55E00", "solid"),
    "recompute": ("#0072B2", "solid"),
    "streaming": ("#009E73", "solid"),
    "h2o": ("#E69F00", "solid"),
    "tova": ("#56B4E9", "solid"),
    "snapkv": ("#CC79A7", "solid"),
    "knorm": ("#56B4E9", "dash"),
    "keydiff": ("#CC79A7", "dash"),
    "scissorhands": ("#E69F00", "dash"),
    "lagkv": ("#0072B2", "dash"),
    "pyramid": ("#D55E00", "dash"),
    "duo": ("#000000", "dash"),
    "random": ("#767676", "dot"),
    "late": ("#009E73", "dash"),
}
"""Of each policy: there are more of them than colours that all eyes tell apart, so dashes help."""
SPARE = ["#CC79A7", "#E69F00", "#56B4E9", "#D55E00", "#0072B2", "#767676"]
DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"]


def colours(policies: Sequence[Policy]) -> list[tuple[str, str]]:
    """Colour and dash of each lane, no two alike: a policy's own, or where those are taken another colour and dash."""
    taken: set[str] = set()
    looks: list[tuple[str, str]] = []
    for i, policy in enumerate(policies):
        own, dash = LOOKS.get(policy.name, (SPARE[0], "solid"))
        colour = next((c for c in (own, *SPARE) if c not in taken), own)
        again = sum(p.name == policy.name for p in policies[:i])
        free = [d for d in (*((dash,) if not again else ()), *DASHES[again:], *DASHES) if (colour, d) not in looks]
        taken.add(colour)
        looks.append((colour, free[0]))
    return looks


TRAINED = {
    "softmax": ("#D55E00", "solid"),
    "learned": ("#CC79A7", "dash"),
    "off-by-one": ("#E69F00", "dashdot"),
    "relu": ("#0072B2", "solid"),
    "sigmoid": ("#009E73", "dot"),
}
"""Of each attention that is trained from nothing (small.py)."""
