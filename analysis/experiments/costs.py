"""What reading costs: seconds and bytes of a lane as its text grows, in all and in attention alone.

The exponents of Xiao et al. 2023 (dense T², window TL, recomputation TL², sinks + window TL) speak of attention.  A
model spends time elsewhere too, the same for every token, so that part is measured apart.  How costs grow is the
matter of growth.py.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import files
from ..engine.lane import Lane
from ..engine.stream import open_lanes
from ..engine.tracing import Traced
from ..families.rotary import Adapted
from ..models.language_model import LanguageModel
from ..policies import Policy, parse
from ..runs.checkpoint import Checkpoints
from ..runs.result import Keep, ResultFolder
from ..tables import as_csv
from .growth import FILE, HEADER, READINGS, SIZES, WINDOWS, Cost

CHUNK = 256
"""Tokens that are read at a time."""
TURN = 4
"""Chunks that a lane reads in one turn: the first of them finds the processor's caches cold."""
RUNS = 3
"""Windows that are encoded for one size: the fastest counts."""


class TimedModel:
    """The model of a lane, which also measures how long its attention takes."""

    def __init__(self, model: Adapted) -> None:
        self._model, self.attention = model, 0.0
        """Seconds in attention so far."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, ids: Tensor, reader: Any, **settings: Any) -> Tensor:
        """What the model itself returns."""
        return self._model.forward(ids, _TimedPass(reader, self), **settings)

    def traced(self, traced: Traced | None) -> Traced | None:
        """A trace that is timed as well, since it does not go through `forward`."""
        return traced and (lambda ids, one, begin: traced(ids, _TimedPass(one, self), begin))

    def now(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return time.perf_counter()


@dataclass(eq=False)
class _TimedPass:
    reader: Any
    model: TimedModel

    def attend(self, *tensors: Any, **settings: Any) -> Tensor:
        began = self.model.now()
        out = self.reader.attend(*tensors, **settings)
        self.model.attention += self.model.now() - began
        return out


class CountedLane:
    """A lane whose costs are counted chunk by chunk.  It may read its text more than once.

    Raises ValueError as `open_lanes` does.
    """

    def __init__(self, model: LanguageModel, tokens: NDArray[np.int32], policy: str) -> None:
        self.policy: Policy = parse(policy)
        self._model, self._tokens = model, tokens
        self.seconds = 0.0
        """Of all readings."""
        self._took: list[tuple[int, float, float, int]] = []
        self.restart()

    def restart(self) -> None:
        """Read from the beginning: of two readings of a chunk the faster one counts, since noise makes one slower."""
        self.lane: Lane = open_lanes(self._model, self._tokens, [self.policy])[0]
        self._timed = TimedModel(self.lane.context.model)
        # It does what the model does, and counts.
        self.lane.context.model = self._timed  # ty: ignore[invalid-assignment]
        self.lane.context.tracer = lambda: self._timed.traced(self._model.one_token)
        self._next = 0

    def read(self, chunk: int = CHUNK) -> None:
        """Read the next chunk, and count what it costs."""
        began, before = time.perf_counter(), self._timed.attention
        self.lane.read(chunk)
        seconds, attention = time.perf_counter() - began, self._timed.attention - before
        self.seconds += seconds
        if self._next < len(self._took):
            _, *other, _ = self._took[self._next]
            seconds, attention = min(seconds, other[0]), min(attention, other[1])
        self._took[self._next : self._next + 1] = [(self.lane.position, seconds, attention, self.lane.cache_bytes)]
        self._next += 1

    @property
    def took(self) -> list[tuple[int, float, float, int]]:
        """Tokens, seconds, seconds in attention of each chunk in its fastest reading, and bytes after it."""
        return list(self._took)

    def take_in(self, took: list[tuple[int, float, float, int]]) -> None:
        """What an earlier lane of the same policy and text took."""
        self._took, self.seconds = took, sum(seconds for _, seconds, *_ in took)

    @property
    def costs(self) -> list[Cost]:
        """What had been spent after each chunk, from the beginning."""
        took = list(self._took)
        seconds, attention = np.cumsum([t[1:3] for t in took], 0).T.tolist() if took else ([], [])
        return [Cost(t[0], s, a, t[3]) for t, s, a in zip(took, seconds, attention, strict=True)]


def window_costs(model: LanguageModel, tokens: NDArray[np.int32], sizes: Sequence[int]) -> Iterator[Cost]:
    """What it costs to encode a window of each size from nothing: seconds, those of attention, and bytes cached."""
    for size in sizes:
        lane = CountedLane(model, tokens[: size + RUNS + 2], f"recompute:window={size}")
        lane.read(size)
        for _ in range(RUNS):
            lane.read(1)
        costs = lane.costs
        took = np.diff([[c.seconds, c.attention] for c in costs], axis=0)
        yield Cost(size, *took.min(0).tolist(), costs[-1].cache_bytes)


class KeptCosts:
    """What lanes cost that read a text twice, in turns, and then windows of growing size; put into a folder.

    `known`: a folder with what is known already; of a reading that was cut off, nothing counts.  Raises ValueError as
    `open_lanes` does, and where what is known is damaged.
    """

    def __init__(
        self, model: LanguageModel, tokens: NDArray[np.int32], policies: Sequence[str], known: Path | None = None
    ) -> None:
        self._model, self._tokens = model, tokens
        self.lanes = [CountedLane(model, tokens, policy) for policy in policies]
        self.windows: list[Cost] = []
        self.readings = 0
        """Whole readings of the text."""
        if known is not None and (checkpoint := Checkpoints(known).newest()) is not None:
            try:
                self._load(**checkpoint.about)
            except (TypeError, ValueError) as e:
                raise ValueError(f"the checkpoint of {known} is not of these lanes: delete it, and begin anew") from e

    def _load(self, readings: int, took: list[list], windows: list[list]) -> None:
        for lane, chunks in zip(self.lanes, took, strict=True):
            lane.take_in([(int(t), float(s), float(a), int(b)) for t, s, a, b in chunks])
        self.readings, self.windows = int(readings), [Cost(*window) for window in windows]

    @property
    def share(self) -> float:
        """The share of this reading that is done, 0 to 1."""
        if self.readings >= READINGS:
            return 1.0
        bounded = self._bounded
        return sum(lane.lane.position for lane in bounded) / max(1, len(bounded) * len(self._tokens))

    @property
    def _bounded(self) -> list[CountedLane]:
        # A lane with recomputation would be the last by hours: it ends with the others.
        return [lane for lane in self.lanes if lane.policy.name != "recompute"]

    def steps(self, keep: Keep) -> Iterator[None]:
        """Count what is missing, piece by piece."""
        for reading in range(self.readings, READINGS):
            if reading:
                for lane in self.lanes:
                    lane.restart()
            while not all(lane.lane.done for lane in self._bounded):
                turn = min((lane for lane in self.lanes if not lane.lane.done), key=lambda lane: lane.seconds)
                for _ in range(TURN):
                    if not turn.lane.done:
                        turn.read()
                    yield
            self.readings = reading + 1
            keep(self._write)
        counted = {window.tokens for window in self.windows}
        sizes = [s for s in SIZES if s + 8 < len(self._tokens) and s not in counted]
        for cost in window_costs(self._model, self._tokens, sizes):
            self.windows.append(cost)
            keep(self._write)
            yield

    def _write(self, folder: ResultFolder) -> None:
        of = [(str(lane.policy), lane.costs) for lane in self.lanes] + [(WINDOWS, self.windows)]
        rows = [[name, *map(str, astuple(cost))] for name, costs in of for cost in costs]
        files.write(folder.path / FILE, as_csv(HEADER, rows))
        took, windows = [lane.took for lane in self.lanes], [astuple(window) for window in self.windows]
        folder.checkpoints.write({"readings": self.readings, "took": took, "windows": windows}, {})
