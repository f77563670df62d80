"""What each token of a conversation's answers cost, and the newest sink masses."""

import copy
from collections import deque

import numpy as np
from numpy.typing import NDArray

from analysis import metrics
from analysis.engine.step import Step
from analysis.runs.run import ROLES, Column, Track
from analysis.runs.screen import RECENT


class TokenCosts:
    """What each token of a lane's answers cost: position, seconds, cache bytes, each [tokens]."""

    def __init__(self) -> None:
        self.positions, self.seconds, self.bytes = Column(np.int64), Column(np.float64), Column(np.int64)
        self._masses: deque[tuple[int, int, NDArray[np.float32]]] = deque(maxlen=RECENT)
        """Of each of the newest chunks the first position, the one after its last, and the mass [layers, heads]."""

    @classmethod
    def of(cls, track: Track) -> "TokenCosts":
        """What is known of a lane's answers from its record: the first token of each chunk has no time of its own."""
        costs, count = cls(), len(track.nll)
        if not count:
            return costs
        newest = zip(track.spans[-RECENT:], track.sink_mass[-RECENT:], strict=True)
        costs._masses.extend((start, stop, mass) for (start, stop), mass in newest)
        timed = track.roles.view()[:count] == ROLES.index("assistant")
        timed[[start - 1 for start, _ in track.spans]] = False
        costs.positions.append(np.flatnonzero(timed) + 1)
        costs.seconds.append(np.diff(track.seconds.view()[:count], prepend=0)[timed])
        costs.bytes.append(track.cache_bytes.view()[:count][timed])
        return costs

    @property
    def sink_mass(self) -> NDArray[np.floating] | None:
        """Mean of the newest tokens, [layers, heads], in whole chunks, as a replay shows it; None before the first."""
        masses, weights = [], []
        for start, stop, mass in reversed(self._masses):
            if sum(weights) >= RECENT:
                break
            masses.append(mass)
            weights.append(stop - start)
        return metrics.mean_of_chunks(masses, weights) if masses else None

    def snapshot(self) -> "TokenCosts":
        """A copy that nothing that comes later changes."""
        twin = copy.copy(self)
        for name, known in vars(self).items():
            setattr(twin, name, copy.copy(known))
        return twin

    def truncate(self, tokens: int) -> None:
        """Forget what comes after the first tokens."""
        count = int(np.searchsorted(self.positions.view(), tokens))
        while self._masses and self._masses[-1][0] >= tokens:
            self._masses.pop()
        for column in (self.positions, self.seconds, self.bytes):
            column.truncate(count)

    def append(self, step: Step) -> None:
        """Take in one step of the lane."""
        mass = step.sink_mass.mean(-1, dtype=np.float32)
        self._masses.append((step.start, step.start + len(step.nll), mass))
        # A prompt is read as a whole: its time per token says nothing about an answer's.
        if step.roles is not None and (step.roles == ROLES.index("assistant")).all():
            self.positions.append(np.array([step.start]))
            self.seconds.append(np.array([step.seconds]))
            self.bytes.append(step.cache_bytes)
