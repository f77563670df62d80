"""How lines on paper are told apart where there is no colour: a pattern of dashes for each policy, and then markers."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np

from ..palette import colours
from ..policies import Policy, parse
from .base import Numbers

DASHES = (
    "-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 1.6, 1, 1.6)),
    (0, (10, 2.5)), (0, (6, 1.4, 1, 1.4, 1, 1.4)), (0, (2.4, 1)), (0, (10, 1.6, 3, 1.6)),
)  # fmt: skip
"""Solid, dashes, dots, dash and dot, long dashes, dash and two dots, short dashes, long and short."""
MARKERS = ("", "o", "s", "^", "v", "D", "x", "+")
OWN = {"dense": 0, "streaming": 1, "window": 2, "recompute": 3, "h2o": 4, "tova": 5, "snapkv": 6, "duo": 7}
"""Of the dashes: what a policy has in every figure, where no other line of the figure has it already."""


def line_styles(policies: Sequence[Policy]) -> list[dict[str, Any]]:
    """Colour, dashes and marker of each line, as matplotlib takes them; dashes and marker alone tell any two apart."""
    own = {OWN[policy.name]: i for i, policy in reversed(list(enumerate(policies))) if policy.name in OWN}
    free = cycle(n for n in range(len(DASHES) * len(MARKERS)) if n not in own)
    numbers = [OWN[p.name] if own.get(OWN.get(p.name)) == i else next(free) for i, p in enumerate(policies)]
    return [{"color": colour, **line_style(n)} for (colour, _), n in zip(colours(policies), numbers, strict=True)]


def lanes_of(data: Numbers) -> dict[int, tuple[str, dict[str, Any]]]:
    """Name and style of each lane in columns `lane` and `policy`, and `label` where names are not those of the
    policies; no two have the same."""
    lanes = sorted(set(data["lane"].tolist()))
    firsts = [int(np.argmax(data["lane"] == lane)) for lane in lanes]
    policies = [parse(data["policy"][first]) for first in firsts]
    labels = [str(data["label"][i]) for i in firsts] if "label" in data else [policy.label for policy in policies]
    names = [
        f"{name} (lane {lane})" if labels.count(name) > 1 else name for lane, name in zip(lanes, labels, strict=True)
    ]
    return dict(zip(lanes, zip(names, line_styles(policies), strict=True), strict=True))


def line_style(number: int) -> dict[str, Any]:
    """Dashes and marker of a line: the first ones have no marker."""
    marker = MARKERS[number // len(DASHES) % len(MARKERS)]
    return {"linestyle": DASHES[number % len(DASHES)], "marker": marker, "markersize": 2.5, "markevery": 0.1}
