"""What reading costs: seconds and bytes of a lane as its text grows, in all and in attention alone, and how they grow.

The exponents of Xiao et al. 2023 (dense T², window TL, recomputation TL², sinks + window TL) speak of attention.  A
model spends time elsewhere too, the same for every token, so that part is measured apart.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .lane import Lane
from .models import LanguageModel
from .policies import Policy, parse
from .rotary import Adapted
from .stream import open_lanes

CHUNK = 128
RUNS = 3
"""Windows that are encoded for one size: their median counts."""


class Clock:
    """The model of a lane, which also tells how long its attention took."""

    def __init__(self, model: Adapted) -> None:
        self._model, self.attention = model, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, ids: Tensor, reader: Any, **settings) -> Tensor:
        return self._model.forward(ids, _Timed(reader, self), **settings)

    def _now(self) -> float:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return time.perf_counter()


@dataclass(eq=False)
class _Timed:
    reader: Any
    clock: Clock

    def attend(self, *tensors, **settings) -> Tensor:
        began = self.clock._now()
        out = self.reader.attend(*tensors, **settings)
        self.clock.attention += self.clock._now() - began
        return out


@dataclass(frozen=True)
class Cost:
    """What a lane has cost when it had read so many tokens."""

    tokens: int
    seconds: float
    attention: float
    """Seconds of these in attention: scores, softmax, weighted values, and what the cache needs."""
    cached: int
    """Bytes of the cache."""


class Counted:
    """A lane whose costs are counted chunk by chunk."""

    def __init__(self, model: LanguageModel, tokens: NDArray[np.int32], policy: str) -> None:
        self.policy: Policy = parse(policy)
        self.lane: Lane = open_lanes(model, tokens, [self.policy])[0]
        self.lane.source.model = self._clock = Clock(self.lane.source.model)
        self.costs: list[Cost] = []
        self.seconds = 0.0

    def read(self, chunk: int = CHUNK) -> Cost:
        """Read on, and count."""
        began = time.perf_counter()
        self.lane.read(chunk)
        self.seconds += time.perf_counter() - began
        self.costs.append(Cost(self.lane.position, self.seconds, self._clock.attention, self.lane.cache_bytes))
        return self.costs[-1]


def windows(model: LanguageModel, tokens: NDArray[np.int32], sizes: list[int]) -> Iterator[Cost]:
    """What it costs to encode a window afresh, for each size: seconds of one pass, attention's part, and its cache."""
    for size in sizes:
        counted = Counted(model, tokens[: size + RUNS + 2], f"recompute:window={size}")
        counted.read(size)
        passes = [counted.costs[-1]]
        while not counted.lane.done and len(passes) <= RUNS:
            passes.append(counted.read(1))
        took = np.diff([[p.seconds, p.attention] for p in passes], axis=0)
        yield Cost(size, *np.median(took, 0).tolist(), passes[-1].cached)


def exponent(size: NDArray, cost: NDArray) -> float:
    """The power with which a cost grows: slope of a straight line through its upper half on two logarithmic axes.

    The upper half: from a quarter of the largest size on, where what is small at first has been left behind.  NaN
    before there are three points.
    """
    size, cost = np.asarray(size, np.float64), np.asarray(cost, np.float64)
    upper = (size >= size.max(initial=0) / 4) & (size > 0) & (cost > 0)
    if upper.sum() < 3:
        return float("nan")
    return float(np.polyfit(np.log(size[upper]), np.log(cost[upper]), 1)[0])
