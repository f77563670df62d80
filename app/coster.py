"""Live costs: lanes whose seconds and bytes are counted while they read, and then windows of growing size."""

from analysis import texts
from analysis.costs import Cost, Counted, windows
from analysis.record import Spec

from .runner import Live, Models

TURN = 4
"""Chunks that a lane reads before another has its turn: the first of them finds the processor's caches cold."""
READINGS = 2
SIZES = [64, 128, 256, 512, 1024]
"""Windows that are encoded afresh."""


class Costing(Live):
    """Counts what each policy of a spec costs, in turns, to the end of the text."""

    def __init__(self, spec: Spec, text: texts.Text, models: Models) -> None:
        super().__init__(spec, models)
        self.text = text
        self.lanes: list[Counted] = []
        self.reading = 1
        """Which of the readings this is."""
        self.windows: list[Cost] = []

    @property
    def share(self) -> float:
        """How much of this reading is done."""
        bounded = [lane for lane in self.lanes if lane.policy.name != "recompute"]
        return sum(lane.lane.position for lane in bounded) / max(1, len(bounded) * self.spec.tokens)

    def _run(self) -> None:
        model = self._models.get(self.spec, self.tell)
        ids = self._tokens(self.text, model)
        self.lanes = [Counted(model, ids, policy) for policy in self.spec.policies]
        self.model = model
        self._set("running")
        for reading in range(READINGS):
            self.reading = reading + 1
            if reading:
                for lane in self.lanes:
                    lane.again()
            # A lane that reads afresh would be the last by hours: it ends with the others.
            bounded = [lane for lane in self.lanes if lane.policy.name != "recompute"]
            while not all(lane.lane.done for lane in bounded):
                turn = min((lane for lane in self.lanes if not lane.lane.done), key=lambda lane: lane.seconds)
                for _ in range(TURN):
                    if not turn.lane.done:
                        turn.read()
                    if self._ended():
                        return
        for cost in windows(model, ids, [s for s in SIZES if s + 8 < len(ids)]):
            self.windows.append(cost)
            if self._ended():
                return
        self._set("finished")

    def _ended(self) -> bool:
        self._publish()
        self._stand_still()
        if self._wanted == "running":
            return False
        self._set("stopped")
        return True
