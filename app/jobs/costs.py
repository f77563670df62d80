"""Live costs: lanes whose seconds and bytes are counted while they read, and then windows of growing size."""

from collections.abc import Iterator
from dataclasses import dataclass

from analysis import texts
from analysis.experiments.costs import Cost, Counted, windows
from analysis.policies import Policy
from analysis.runs.folder import Spec

from .runner import Job, Models

TURN = 4
"""Chunks that a lane reads before another has its turn: the first of them finds the processor's caches cold."""
READINGS = 2
SIZES = [64, 128, 256, 512, 1024]
"""Windows that are encoded afresh."""


@dataclass(frozen=True)
class LaneCosts:
    """What a lane had cost after each chunk."""

    policy: Policy
    costs: tuple[Cost, ...]


@dataclass(frozen=True)
class Costs:
    """What is known so far: of lanes, in which of the readings, how much of it is done, and of windows."""

    lanes: tuple[LaneCosts, ...] = ()
    reading: int = 1
    share: float = 0.0
    windows: tuple[Cost, ...] = ()


class Costing(Job):
    """Counts what each policy of a spec costs, in turns, to the end of the text."""

    called = "costs"
    shown: Costs

    def __init__(self, spec: Spec, text: texts.Text, models: Models) -> None:
        super().__init__(spec, models)
        self.text = text
        self.shown = Costs()
        self._lanes: list[Counted] = []
        self._reading, self._windows = 1, list[Cost]()

    @property
    def lanes(self) -> tuple[LaneCosts, ...]:
        return self.shown.lanes

    @property
    def reading(self) -> int:
        """Which of the readings this is."""
        return self.shown.reading

    @property
    def share(self) -> float:
        """How much of this reading is done."""
        return self.shown.share

    @property
    def windows(self) -> tuple[Cost, ...]:
        return self.shown.windows

    def _snapshot(self) -> Costs:
        # A lane that reads afresh would be the last by hours: it ends with the others.
        bounded = [lane for lane in self._lanes if lane.policy.name != "recompute"]
        share = sum(lane.lane.position for lane in bounded) / max(1, len(bounded) * self.spec.tokens)
        lanes = tuple(LaneCosts(lane.policy, tuple(lane.costs)) for lane in self._lanes)
        return Costs(lanes, self._reading, share, tuple(self._windows))

    def _steps(self) -> Iterator[None]:
        model = self._load()
        ids = self._tokens(self.text, model)
        self._lanes = [Counted(model, ids, policy) for policy in self.spec.policies]
        self.model = model
        self._set("running")
        for reading in range(READINGS):
            self._reading = reading + 1
            if reading:
                for lane in self._lanes:
                    lane.again()
            bounded = [lane for lane in self._lanes if lane.policy.name != "recompute"]
            while not all(lane.lane.done for lane in bounded):
                turn = min((lane for lane in self._lanes if not lane.lane.done), key=lambda lane: lane.seconds)
                for _ in range(TURN):
                    if not turn.lane.done:
                        turn.read()
                    yield
        for cost in windows(model, ids, [s for s in SIZES if s + 8 < len(ids)]):
            self._windows.append(cost)
            yield
