"""Costs: seconds and bytes of lanes while they read, and then of windows of growing size."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from analysis import files, texts
from analysis.experiments.costs import FILE, HEADER, READINGS, WINDOWS, Cost, KeptCosts
from analysis.policies import Policy, parse
from analysis.runs.spec import Spec
from analysis.tables import from_csv

from .loading import Models
from .result import ResultJob


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
    file, found = folder / FILE, dict[str, list[Cost]]()
    try:
        for name, *cells in from_csv(files.contents(file), HEADER, str(file)):
            cost = Cost(int(cells[0]), float(cells[1]), float(cells[2]), int(cells[3]))
            found.setdefault(name, []).append(cost)
        windows = tuple(found.pop(WINDOWS, ()))
        lanes = tuple(LaneCosts(parse(name), tuple(costs)) for name, costs in found.items())
    except ValueError as e:
        raise ValueError(f"the costs in {folder.name} cannot be read: {e}") from e
    return CostsSnapshot(lanes, READINGS, 1.0, windows)


class CostsJob(ResultJob):
    """Measures what each policy of a spec costs, in turns, to the end of the text."""

    noun = keeps = "costs"
    snapshot: CostsSnapshot

    def __init__(self, spec: Spec, text: texts.Text, models: Models, resumes: str = "") -> None:
        super().__init__(spec, text, models, resumes)
        self.snapshot = CostsSnapshot()
        self._costs: KeptCosts | None = None

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
        if (costs := self._costs) is None:
            return self.snapshot
        lanes = tuple(LaneCosts(lane.policy, tuple(lane.costs)) for lane in costs.lanes)
        return CostsSnapshot(lanes, min(costs.readings + 1, READINGS), costs.share, tuple(costs.windows))

    def _steps(self) -> Generator[None, None, None]:
        model = self._load()
        read = self._tokenize(self.text, model)
        known = self._open(model, read)
        self._costs = KeptCosts(model, read.ids, self.spec.policies, known)
        self._set("running")
        yield from self._costs.steps(self._result.write)

    def _let_go(self) -> None:
        super()._let_go()
        self._costs = None
