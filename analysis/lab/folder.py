"""The folder of a training: written as the training goes, and read again without torch.

How a training goes on from its folder is resume.py's matter.
"""

import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import COMMAND, files
from ..files import Kind
from ..runs.claim import claimed_new
from ..runs.status import RUNNING, here, status_of
from ..tables import as_csv, from_csv
from .measurement import Measurement
from .recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from .training import Training

MAX_LOST, SHARE = 2.0, 20
"""Seconds of training that a kill may cost, and how many times as long as writing they are at least."""


def curves_as_csv(measurements: Sequence[Measurement]) -> str:
    """CSV, a row for each: losses in nats, every head's weight on the first token and norm of its value."""
    heads = [f"{layer}.{head}" for layer, head in np.ndindex(measurements[0].weight.shape)]
    columns = ["step", "loss", "copied", *(f"weight {h}" for h in heads), *(f"norm {h}" for h in heads)]
    rows = [[m.step, m.loss, m.copied, *m.weight.ravel(), *m.norm.ravel()] for m in measurements]
    return as_csv(columns, [[f"{x:.6g}" for x in row] for row in rows])


def write(place: Path, recipe: Recipe, measurements: Sequence[Measurement], example: NDArray, status: str) -> None:
    """Put a training into a folder: `run.json`, `curves.csv`, and `maps.npz` with maps [measurements, queries, keys].

    What it wrote there before is replaced file by file.  Raises ValueError where the disk does not take it.
    """
    _write_numbers(place, measurements, example)
    write_about(place, About(recipe, status))


def _write_numbers(place: Path, measurements: Sequence[Measurement], example: NDArray) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise files.unwritten(place, e) from e
    with files.written(place / "maps.npz") as f:
        np.savez_compressed(
            f,
            maps=np.stack([m.map for m in measurements]),
            heads=np.array([m.head for m in measurements]),
            steps=np.array([m.step for m in measurements]),
            tokens=example,
        )
    files.write(place / "curves.csv", curves_as_csv(measurements))


@dataclass(frozen=True)
class About:
    """What run.json says of a training."""

    recipe: Recipe
    status: str = ""
    every: int = 20
    """Steps between two measurements."""
    device: str = "cpu"
    process: dict[str, Any] | None = None
    """Who writes it, while somebody does."""
    started: str = ""
    """When it began (ISO 8601)."""


def write_about(place: Path, about: About) -> None:
    """Write run.json.  Raises ValueError where the disk does not take it."""
    said = {"kind": "training", **asdict(about), "torch": version("torch")}
    if about.process is None:
        del said["process"]
    files.write(place / "run.json", json.dumps(said, indent=2) + "\n")


def about_of(place: Path) -> About:
    """What a folder says of its training, with the status that it really has.  Raises ValueError where it is none."""
    about = files.record(place / "run.json", About, "that of a training")
    return replace(about, status=status_of(asdict(about), place))


def folders_of(place: Path) -> list[Path]:
    """The folder of a training, or those of several that lie in it; none where there are none, or other runs too."""
    folders = _in(place)
    abouts = [files.record(folder / "run.json", dict[str, Any], "that of a run") for folder in folders]
    return folders if all("recipe" in about for about in abouts) else []


def _in(place: Path) -> list[Path]:
    """The folder itself, if it is one of a run, or those in it, in the order of the numbers that their names begin
    with."""
    if os.path.exists(place / "run.json"):
        return [place]
    folders = (file.parent for file in place.glob("*/run.json"))
    return sorted(folders, key=lambda folder: (folder.name.partition("-")[0].zfill(9), folder.name))


class TrainingWriter:
    """Writes a training into a folder as it goes, so often that it takes a small share of the time.

    `measurements`: what the folder holds already, of a training that goes on; None: it is a new one.  Raises ValueError
    where a new one holds something, or the disk has no room for all of it.  Where the disk fills up meanwhile, what was
    written stays, and `problem` says so; the training may go on, and is written when there is room.
    """

    def __init__(
        self, place: Path, training: "Training", every: int, measurements: Sequence[Measurement] | None = None
    ) -> None:
        # Here, since all that torch is needed for is to train.
        from ..runs.checkpoint import Checkpoints, Saver

        self.place, self.training, self.problem = place, training, ""
        self.warnings: list[str] = []
        """Sentences on checkpoints that could not be written."""
        self._next, self.measurements = 0.0, list(measurements or [])
        started = datetime.now(UTC).isoformat(timespec="seconds") if measurements is None else about_of(place).started
        self._about = About(training.recipe, RUNNING, every, str(training.device), here(), started)
        self._saver = Saver(Checkpoints(place), self.warnings.append)
        recipe = training.recipe
        # As large as they can be; and once more, since they are written beside.
        files.check_room(place, 2 * (recipe.steps // every + 2) * 2 * recipe.length**2, "this training")
        # Whoever goes on with one has claimed it since before its record was looked up.
        with claimed_new(place) if measurements is None else nullcontext():
            try:
                files.reserve(place)
                write_about(place, self._about)
            except OSError as e:
                files.release(place)
                raise files.unwritten(place, e) from e

    @property
    def every(self) -> int:
        """Steps between two measurements."""
        return self._about.every

    def add(self, measurement: "Measurement") -> None:
        """Take in what the model is like now, unless the folder has that step already."""
        if self.measurements and measurement.step <= self.measurements[-1].step:
            return
        self.measurements.append(measurement)
        if (began := time.monotonic()) < self._next:
            return
        self._write(self._about)
        now = time.monotonic()
        self._next = now + max(MAX_LOST, SHARE * (now - began))

    def save(self) -> None:
        """Write a checkpoint beside the training, if the last one is long enough ago; the record first, since a
        checkpoint of a moment that it has not is of no use."""
        self._saver.save(self._checkpoint)

    def _checkpoint(self) -> "tuple[dict[str, Any], dict[str, Tensor]]":
        if self.measurements:
            self._write(self._about)
        return self.training.state()

    def _write(self, about: About) -> None:
        try:
            _write_numbers(self.place, self.measurements, self.training.example)
            write_about(self.place, about)
            self.problem = ""
        except ValueError as e:
            self.problem = str(e)

    def finish(self, status: str, *, whole: bool = True) -> None:
        """Write all of it; of what was interrupted a checkpoint, too, unless it was in the midst of a step (not
        `whole`).  Raises ValueError where the disk does not take it: then it is as it was written last."""
        files.release(self.place)
        about = replace(self._about, status=status, process=None)
        if self.measurements:
            # Before the checkpoint, which is of no use of a moment that the record has not.
            self._write(self._about)
        again = status == "interrupted" and whole and self.measurements and not self.problem
        # Before the folder says that nobody writes it: whoever goes on with it would write beside it.
        if warning := self._saver.close(self.training.state if again else None):
            self.warnings.append(warning)
        try:
            write_about(self.place, replace(about, status="failed") if self.problem else about)
        except ValueError as e:
            self.problem = self.problem or str(e)
        if self.problem:
            raise ValueError(self.problem)
        if status == "finished":
            # Nothing is left to be done.
            self._saver.checkpoints.remove()

    def discard(self) -> None:
        """Leave nothing of a folder whose training could not begin."""
        files.release(self.place)
        with suppress(OSError):
            (self.place / "run.json").unlink()
            # Whatever else is in it stays.
            self.place.rmdir()


@dataclass(frozen=True, eq=False)
class SavedTraining:
    """What a folder holds of a training."""

    about: About
    curves: Mapping[str, NDArray[np.float64]]
    """Columns of `curves.csv`, [measurements]."""
    maps: NDArray[np.float16]
    """[measurements, queries, keys]."""
    heads: NDArray[np.int64]
    """Layer and head of each map, [measurements, 2]."""

    @property
    def recipe(self) -> Recipe:
        """What was trained, and how."""
        return self.about.recipe

    def of_head(self, what: str) -> NDArray[np.float64]:
        """Weight on the first token, or norm of its value (`weight`, `norm`), of each map's head, [measurements]."""
        return np.array([self.curves[f"{what} {layer}.{head}"][i] for i, (layer, head) in enumerate(self.heads)])


def command_of(trainings: Sequence[SavedTraining]) -> str | None:
    """The command line that trains all of these again, quoted for a shell; None where no single one does."""
    how = {(training.about.every, training.about.device) for training in trainings}
    if len(how) != 1:
        return None
    ((every, device),) = how
    recipes = [str(training.recipe).partition(":")[2] for training in trainings]
    return shlex.join([*COMMAND.split(), "emergence", *recipes, f"--every={every}", f"--device={device}"])


def read(place: Path) -> list[SavedTraining]:
    """The trainings in a folder, or in the folders in it, but for those of which nothing was measured yet.

    Raises ValueError where there are none.
    """
    place = Path(place)
    folders = _in(place)
    if not folders:
        raise ValueError(f"{place} holds no training: {COMMAND} emergence --out {place} makes one")
    for inside in [] if folders == [place] else sorted(place.glob("*/curves.csv")):
        if inside.parent not in folders:
            # The others would look like all.
            raise ValueError(f"{inside.parent} lacks run.json, which says what was trained: copy all files of it")
    abouts = [(folder, about_of(folder)) for folder in folders]
    # What was ended before its first measurement, or has still to begin, is no less sound for it.
    begun = [(f, a) for f, a in abouts if a.status == "finished" or os.path.exists(f / "curves.csv")]
    if not begun:
        raise ValueError(f"{place} holds a training that has measured nothing yet: {COMMAND} resume {place}")
    return [_read(folder, about) for folder, about in begun]


def _read(place: Path, about: About) -> SavedTraining:
    recipe, file = about.recipe, place / "curves.csv"
    heads = [f"{layer}.{head}" for layer, head in np.ndindex(recipe.layers, recipe.heads)]
    wanted = ["step", "loss", "copied", *(f"{what} {h}" for what in ("weight", "norm") for h in heads)]
    rows = from_csv(files.contents(file), wanted, str(file))
    try:
        numbers = np.array(rows, np.float64).reshape(len(rows), len(wanted))
    except ValueError as e:
        raise ValueError(f"{file} has a cell that is no number: it is damaged") from e
    if not len(numbers):
        raise ValueError(f"{file} is not the table of this training: it has no rows")
    size = recipe.length
    kinds = {"maps": Kind("f", (None, size, size)), "heads": Kind("iu", (None, 2)), "steps": Kind("iu", (None,))}
    held = files.arrays(place / "maps.npz", kinds)
    # Maps are written first: of a training that was killed, had no more room on disk, or is under way, there may be
    # more of them.
    count = min(len(numbers), *map(len, held.values()))
    steps = numbers[:, 0]
    if about.status not in (RUNNING, "killed", "failed") and count != max(len(numbers), *map(len, held.values())):
        raise ValueError(
            f"{place} has not as many maps as rows in curves.csv: a file is damaged, or of another training"
        )
    if not np.array_equal(steps[:count], held["steps"][:count]):
        raise ValueError(
            f"{place} has maps of other steps than curves.csv has: a file is damaged, or of another training"
        )
    if (held["heads"] < 0).any() or (held["heads"] >= (recipe.layers, recipe.heads)).any():
        raise ValueError(f"{place} has maps of heads that its recipe does not have: it is damaged")
    columns = dict(zip(wanted, numbers[:count].T, strict=True))
    maps, heads = held["maps"][:count].astype(np.float16), held["heads"][:count].astype(np.int64)
    return SavedTraining(about, columns, maps, heads)
