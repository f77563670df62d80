"""Costs of reading as they were counted, and how they grow with the length of a text.  They are counted in costs.py."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ..policies import Policy

READINGS = 2
"""Times that the text is read; the first warms up."""
SIZES = (64, 128, 256, 512, 1024)
"""Tokens of the windows that are recomputed."""
FILE = "costs.csv"
WINDOWS = "a window, recomputed"
"""What the table calls them, which has a policy for all else."""
FORMERLY = "a window, encoded afresh"
"""What tables of earlier versions call them."""
POWERS = np.arange(0.3, 2.5, 0.01)
"""Powers of a token's cost that are tried."""


Array = NDArray[np.number]


@dataclass(frozen=True)
class Cost:
    """What a lane has cost when it had read so many tokens."""

    tokens: int
    seconds: float
    attention: float
    """Seconds of these in attention: scores, softmax, weighted values, and what the cache needs."""
    cache_bytes: int
    """What the cache takes now."""


HEADER = ("policy", *(f.name for f in fields(Cost)))
"""Columns of the table."""


@dataclass(frozen=True)
class LaneCosts:
    """What a lane cost up to each chunk."""

    policy: Policy
    costs: tuple[Cost, ...]


@dataclass(frozen=True)
class Costs:
    """What is known so far: costs of lanes, which reading this is, which share of it is done, and costs of windows."""

    lanes: tuple[LaneCosts, ...] = ()
    reading: int = 1
    share: float = 0.0
    windows: tuple[Cost, ...] = ()


@dataclass(frozen=True)
class Growth:
    """How the cost of a text grows with its length T."""

    exponent: float
    """Of the whole text's cost; NaN before there is enough to see."""
    fixed: float
    """Seconds of a token that do not depend on T, fitted beside the power; 0 where a token's cost hardly grows."""


def growth(tokens: Array, total: Array) -> Growth:
    """The power with which a total cost grows, from totals [steps] after so many tokens [steps].

    It is one more than that of a single token's cost, and NaN before there are five steps.  Where a token has come to
    cost more than twice what it did at the beginning, a fixed cost is fitted beside the power: launching, rotating and
    reading the newest tokens take their time however short the text is, and would hide a power that shows only in long
    ones.
    """
    tokens, total = np.asarray(tokens, np.float64), np.asarray(total, np.float64)
    if len(tokens) < 5:
        return Growth(float("nan"), 0.0)
    each, middle = np.diff(total) / np.diff(tokens), (tokens[1:] + tokens[:-1]) / 2
    if np.median(each[middle >= middle[-1] * 3 / 4]) < 2 * np.median(each[middle <= max(middle[-1] / 16, middle[1])]):
        late = middle >= middle[-1] / 4
        return Growth(1 + exponent(middle[late], each[late]), 0.0)
    fits = [_fit(middle, each, power) for power in POWERS]
    best = min(range(len(fits)), key=lambda i: fits[i][1])
    return Growth(1 + float(POWERS[best]), fits[best][0])


def _fit(size: Array, cost: Array, power: float) -> tuple[float, float]:
    """The fixed part of cost = fixed + slope · size^power, and what is left over, relative to the cost."""
    columns = np.stack((np.ones_like(size), (size / size[-1]) ** power), 1) / cost[:, None]
    found = np.linalg.lstsq(columns, np.ones_like(cost), rcond=None)[0]
    if found[0] < 0:
        found = np.array([0.0, np.linalg.lstsq(columns[:, 1:], np.ones_like(cost), rcond=None)[0][0]])
    # The sum of sizes and not of squares: one slow moment does not move it far.
    return float(found[0]), float(np.abs(columns @ found - 1).sum())


def exponent(size: Array, cost: Array) -> float:
    """The power with which a cost grows: the median slope between any two points on two logarithmic axes (Theil 1950).

    One slow moment, as any shared machine has, does not move it.  NaN before there are three points.
    """
    if len(size) < 3:
        return float("nan")
    x, y = np.log(np.asarray(size, np.float64)), np.log(np.asarray(cost, np.float64))
    a, b = np.triu_indices(len(x), 1)
    return float(np.median((y[b] - y[a]) / (x[b] - x[a])))
