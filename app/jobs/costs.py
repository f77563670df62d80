"""Costs: seconds and bytes of lanes while they read, and then of windows of growing size."""

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import files, texts
from analysis.experiments.growth import FILE, FORMERLY, HEADER, READINGS, WINDOWS, Cost, Costs, LaneCosts
from analysis.policies import parse
from analysis.runs.spec import Spec
from analysis.tables import from_csv

from .loading import Models
from .result import ResultJob

if TYPE_CHECKING:
    # The job's thread imports what needs torch: the lesson is on screen before torch is loaded.
    from analysis.experiments.costs import KeptCosts


def recorded(folder: Path) -> Costs:
    """What a folder of the library has of costs.  Raises ValueError where it is damaged."""
    file, found = folder / FILE, dict[str, list[Cost]]()
    try:
        for name, *cells in from_csv(files.contents(file), HEADER, str(file)):
            cost = Cost(int(cells[0]), float(cells[1]), float(cells[2]), int(cells[3]))
            found.setdefault(WINDOWS if name == FORMERLY else name, []).append(cost)
        windows = tuple(found.pop(WINDOWS, ()))
        lanes = tuple(LaneCosts(parse(name), tuple(costs)) for name, costs in found.items())
    except ValueError as e:
        raise ValueError(f"the costs in {folder.name} cannot be read: {e}") from e
    return Costs(lanes, READINGS, 1.0, windows)


class CostsJob(ResultJob):
    """Measures what each policy of a spec costs, in turns, to the end of the text."""

    noun = keeps = "costs"
    snapshot: Costs

    def __init__(self, spec: Spec, text: texts.Text, models: Models, resumes: str = "") -> None:
        super().__init__(spec, text, models, resumes)
        self.snapshot = Costs()
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

    def take_snapshot(self) -> Costs:
        """What each lane has cost so far."""
        if (costs := self._costs) is None:
            return self.snapshot
        lanes = tuple(LaneCosts(lane.policy, tuple(lane.costs)) for lane in costs.lanes)
        return Costs(lanes, min(costs.readings + 1, READINGS), costs.share, tuple(costs.windows))

    def _steps(self) -> Generator[None, None, None]:
        from analysis.experiments.costs import KeptCosts

        model = self._load()
        read = self._tokenize(self.text, model)
        known = self._open(model, read)
        self._costs = KeptCosts(model, read.ids, self.spec.policies, known)
        self._set("running")
        yield from self._costs.steps(self._result.write)

    def _let_go(self) -> None:
        super()._let_go()
        self._costs = None
