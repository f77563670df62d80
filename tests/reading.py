"""A lane that reads a text to its end, and what it has told by then."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.engine.lane import Lane
from analysis.engine.stream import open_lanes
from analysis.policies import parse


class Reading(NamedTuple):
    """All steps of one lane joined, with the fields of a Step, and the lane itself."""

    nll: NDArray
    sink_mass: NDArray
    cache_tokens: NDArray
    cache_bytes: NDArray
    lane: Lane


def read(model, tokens, policy, chunk=64, **settings) -> Reading:
    """One lane over the whole text, `chunk` tokens at a time; `settings` as `open_lanes` has them."""
    policy = parse(policy) if isinstance(policy, str) else policy
    lane = open_lanes(model, tokens, [policy], **settings)[0]
    steps = []
    while not lane.done:
        steps.append(lane.read(chunk))
    assert [s.start for s in steps] == [1, *(s.stop for s in steps[:-1])]
    return Reading(*(np.concatenate([getattr(s, name) for s in steps], -1) for name in Reading._fields[:-1]), lane)
