"""The colours, line shapes and names of lanes: Okabe and Ito's colours, the same on every screen, and no two alike."""

from collections.abc import Sequence
from dataclasses import fields

from analysis.policies import Policy
from analysis.settings import told_apart

LOOKS = {
    "dense": ("#000000", "solid"),
    "window": ("#D55E00", "solid"),
    "recompute": ("#0072B2", "solid"),
    "streaming": ("#009E73", "solid"),
    "shift": ("#009E73", "dot"),
    "h2o": ("#E69F00", "solid"),
    "tova": ("#56B4E9", "solid"),
    "snapkv": ("#CC79A7", "solid"),
    "knorm": ("#56B4E9", "dash"),
    "keydiff": ("#CC79A7", "dash"),
    "scissorhands": ("#E69F00", "dash"),
    "cam": ("#E69F00", "dot"),
    "lagkv": ("#0072B2", "dash"),
    "adakv": ("#CC79A7", "dot"),
    "expected-attention": ("#56B4E9", "dot"),
    "pyramid": ("#D55E00", "dash"),
    "duo": ("#000000", "dash"),
    "random": ("#767676", "dashdot"),
    "late": ("#009E73", "dash"),
}
"""Of each policy: there are more of them than colours that all eyes tell apart, so dashes help."""
SPARE = ["#CC79A7", "#E69F00", "#56B4E9", "#D55E00", "#0072B2", "#767676"]
SIZES = ("budget", "window")
"""Settings that say how large a cache is."""
ROOMY = 2**20
"""Tokens of a budget at which policies are compared that have several."""
DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"]


def colours(policies: Sequence[Policy]) -> list[tuple[str, str]]:
    """Colour and dash of each lane, no two alike as long as there are dashes: a policy's own, or where those are taken
    another colour and dash."""
    taken: set[str] = set()
    styles: list[tuple[str, str]] = []
    for i, policy in enumerate(policies):
        own, dash = LOOKS.get(policy.name, (SPARE[0], "solid"))
        colour = next((c for c in (own, *SPARE) if c not in taken), own)
        again = sum(p.name == policy.name for p in policies[:i])
        dashes = (*((dash,) if not again else ()), *DASHES[again:], *DASHES)
        free = ((c, d) for c in (colour, *SPARE) for d in dashes if (c, d) not in styles)
        taken.add(colour)
        styles.append(next(free, (colour, dash)))
    return styles


def overlaid(runs: Sequence[Sequence[Policy]]) -> list[list[tuple[str, str]]]:
    """Colour and dash of each lane of several runs in one picture, no two alike as long as there are dashes: colours
    as each run has them by itself, and other dashes for the runs after the first."""
    looks: list[list[tuple[str, str]]] = []
    for policies in runs:
        own: list[tuple[str, str]] = []
        for colour, dash in colours(policies):
            taken = [look for of in looks for look in of] + own
            own.append((colour, next((d for d in (dash, *DASHES) if (colour, d) not in taken), dash)))
        looks.append(own)
    return looks


def labels(policies: Sequence[Policy], since: Sequence[int] = ()) -> list[str]:
    """A name for each lane, no two alike: its policy's label; where others have the same one, with the settings that
    differ; and where nothing differs, with a number from the second on.  `since`: the token from which each lane has
    had its policy: those that had it first keep its name."""
    return _numbered(told_apart([policy.label for policy in policies], policies), since)


def lines(policies: Sequence[Policy]) -> list[str]:
    """The name of each policy's line, where a policy at several budgets makes one: its title and what was changed about
    it; where several lines have the same, with the settings that differ, but for sizes."""
    keys, firsts, at_one_budget = [], {}, dict[tuple, list[str]]()
    for policy in policies:
        roomy = policy if policy.capacity is None else policy.at_budget(ROOMY)
        # The newest tokens that are protected are fewer at a small budget.
        key = policy.name, *(getattr(roomy, f.name) for f in fields(roomy) if f.name not in (*SIZES, "recent"))
        others = at_one_budget.setdefault((key, *(getattr(policy, size, None) for size in SIZES)), [])
        # Where they alone differ at one budget, these are two lines.
        others += [] if str(policy) in others else [str(policy)]
        keys.append((*key, others.index(str(policy))))
        firsts.setdefault(keys[-1], policy)
    named = [", ".join((p.title, *p.changes)) for p in firsts.values()]
    told = _numbered(told_apart(named, list(firsts.values()), but=SIZES), ())
    names = dict(zip(firsts, told, strict=True))
    return [names[key] for key in keys]


def briefs(policies: Sequence[Policy], since: Sequence[int] = ()) -> list[str]:
    """The same for the end of a curve, where there is room for some seventeen letters: a policy's title; where others
    have the same one, what they do not have in common."""
    found, parts = [], [label.split(", ") for label in labels(policies, since)]
    for policy, mine in zip(policies, parts, strict=True):
        same = [of for of, p in zip(parts, policies, strict=True) if p.title == policy.title]
        if len(same) == 1:
            found.append(policy.title)
            continue
        own = [part for part in mine if not all(part in of for of in same)]
        whole = own if mine[0] in own else [policy.title, *own]
        # What is particular comes first.
        short = whole if len(", ".join(whole)) <= 17 or not own else own
        found.append(", ".join(short).replace("Sinks + window", "Sinks"))
    return _numbered(found, since)


def _numbered(names: list[str], since: Sequence[int]) -> list[str]:
    """The same, with (2), (3) … behind those that came later."""
    found: dict[int, str] = {}
    for i in sorted(range(len(names)), key=lambda i: since[i] if since else 0):
        own, count = names[i], 1
        while own in found.values():
            count += 1
            own = f"{names[i]} ({count})"
        found[i] = own
    return [found[i] for i in range(len(names))]


TRAINED = {
    "softmax": ("#D55E00", "solid"),
    "learned": ("#CC79A7", "dash"),
    "off-by-one": ("#E69F00", "dashdot"),
    "relu": ("#0072B2", "solid"),
    "sigmoid": ("#009E73", "dot"),
}
"""Of each attention that is trained from nothing (lab.transformer)."""
