"""Costs: seconds and bytes of lanes while they read, and then of windows of growing size."""

from collections.abc import Generator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from analysis import files, texts
from analysis.experiments.costs import Cost, CountedLane, window_costs
from analysis.policies import Policy, parse
from analysis.runs.spec import Spec
from analysis.tables import as_csv, from_csv

from .base import TextJob
from .kept import ResultKeeper
from .loading import Models

TURN = 4
"""Chunks that a lane reads in one turn: the first of them finds the processor's caches cold."""
READINGS = 2
"""Times that the text is read; the first warms up."""
SIZES = [64, 128, 256, 512, 1024]
"""Tokens of the windows that are encoded from nothing."""
WINDOWS = "a window, encoded afresh"
"""What the table calls them, which has a policy for all else."""
HEADER = ("policy", *(f.name for f in fields(Cost)))


@dataclass(frozen=True)
class LaneCosts:
    """What a lane cost up to each chunk."""

    policy: Policy
    costs: tuple[Cost, ...]


@dataclass(frozen=True)
class CostsSnapshot:
    """What is known so far: costs of lanes, which reading this is, which share of it is done, and costs of windows."""

    lanes: tuple[LaneCosts, ...] = ()
    reading: int = 1
    share: float = 0.0
    windows: tuple[Cost, ...] = ()


def recorded(folder: Path) -> CostsSnapshot:
    """What a folder of the library has of costs.  Raises ValueError where it is damaged."""
    file, found = folder / "costs.csv", dict[str, list[Cost]]()
    try:
        for name, *cells in from_csv(files.contents(file), HEADER, str(file)):
            cost = Cost(int(cells[0]), float(cells[1]), float(cells[2]), int(cells[3]))
            found.setdefault(name, []).append(cost)
        windows = tuple(found.pop(WINDOWS, ()))
        lanes = tuple(LaneCosts(parse(name), tuple(costs)) for name, costs in found.items())
    except ValueError as e:
        raise ValueError(f"the costs in {folder.name} cannot be read: {e}") from e
    return CostsSnapshot(lanes, READINGS, 1.0, windows)


class CostsJob(TextJob):
    """Measures what each policy of a spec costs, in turns, to the end of the text."""

    noun = "costs"
    snapshot: CostsSnapshot

    def __init__(self, spec: Spec, text: texts.Text, models: Models) -> None:
        super().__init__(spec, models)
        self.text = text
        self.kept = self._result = ResultKeeper(self.id)
        self.snapshot = CostsSnapshot()
        self._lanes: list[CountedLane] = []
        self._reading, self._windows = 1, list[Cost]()

    @property
    def lanes(self) -> tuple[LaneCosts, ...]:
        """Costs of each lane."""
        return self.snapshot.lanes

    @property
    def reading(self) -> int:
        """Which reading of the text this is, from 1."""
        return self.snapshot.reading

    @property
    def share(self) -> float:
        """The share of this reading that is done, 0 to 1."""
        return self.snapshot.share

    @property
    def windows(self) -> tuple[Cost, ...]:
        """Costs of windows that are encoded from nothing."""
        return self.snapshot.windows

    def take_snapshot(self) -> CostsSnapshot:
        """What each lane has cost so far."""
        # A lane with recomputation would be the last by hours: it ends with the others.
        bounded = [lane for lane in self._lanes if lane.policy.name != "recompute"]
        # A chapter says how many tokens are read.
        assert self.spec.tokens is not None
        share = sum(lane.lane.position for lane in bounded) / max(1, len(bounded) * self.spec.tokens)
        lanes = tuple(LaneCosts(lane.policy, tuple(lane.costs)) for lane in self._lanes)
        return CostsSnapshot(lanes, self._reading, share, tuple(self._windows))

    def _steps(self) -> Generator[None, None, None]:
        model = self._load()
        read = self._tokenize(self.text, model)
        ids = read.ids
        self._lanes = [CountedLane(model, ids, policy) for policy in self.spec.policies]
        self._use(model)
        self._result.begin_result("costs", self.spec, model, self.text, read)
        self._set("running")
        for reading in range(READINGS):
            self._reading = reading + 1
            if reading:
                for lane in self._lanes:
                    lane.restart()
            bounded = [lane for lane in self._lanes if lane.policy.name != "recompute"]
            while not all(lane.lane.done for lane in bounded):
                turn = min((lane for lane in self._lanes if not lane.lane.done), key=lambda lane: lane.seconds)
                for _ in range(TURN):
                    if not turn.lane.done:
                        turn.read()
                    yield
            self._write()
        for cost in window_costs(model, ids, [s for s in SIZES if s + 8 < len(ids)]):
            self._windows.append(cost)
            self._write()
            yield

    def _let_go(self) -> None:
        super()._let_go()
        self._lanes = []

    def _write(self) -> None:
        """Let the library have what is known so far: lanes in this reading of the text, and windows."""
        of = [(str(lane.policy), lane.costs) for lane in self._lanes] + [("a window, recomputed", self._windows)]
        rows = [[name, *map(str, astuple(cost))] for name, costs in of for cost in costs]
        table = as_csv(["policy", *(f.name for f in fields(Cost))], rows)
        self._result.write(lambda folder: files.write(folder.path / "costs.csv", table))
