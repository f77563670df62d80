"""The folder of a training: written as the training goes, and read again without torch."""

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import files
from ..files import Kind
from ..runs.status import RUNNING, here
from ..tables import as_csv
from .recipe import Recipe

if TYPE_CHECKING:
    from .training import Measurement, Training

MAX_LOST, SHARE = 2.0, 20
"""Seconds of training that a kill may cost, and how many times as long as writing they are at least."""


def curves_as_csv(measurements: "Sequence[Measurement]") -> str:
    """CSV, a row for each: losses in nats, every head's weight on the first token and norm of its value."""
    heads = [f"{layer}.{head}" for layer, head in np.ndindex(measurements[0].weight.shape)]
    columns = ["step", "loss", "copied", *(f"weight {h}" for h in heads), *(f"norm {h}" for h in heads)]
    rows = [[m.step, m.loss, m.copied, *m.weight.ravel(), *m.norm.ravel()] for m in measurements]
    return as_csv(columns, [[f"{x:.6g}" for x in row] for row in rows])


def write(place: Path, recipe: Recipe, measurements: "Sequence[Measurement]", example: NDArray, status: str) -> None:
    """Put a training into a folder: `run.json`, `curves.csv`, and `maps.npz` with maps [measurements, queries, keys].

    What it wrote there before is replaced file by file.  Raises ValueError where the disk does not take it.
    """
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
    _write_about(place, recipe, status)


def _write_about(place: Path, recipe: Recipe, status: str) -> None:
    about = {"recipe": asdict(recipe), "status": status, "torch": version("torch")}
    about |= {"process": here()} if status == RUNNING else {}
    files.write(place / "run.json", json.dumps(about, indent=2) + "\n")


class TrainingWriter:
    """Writes a training into a new folder as it goes, so often that it takes a small share of the time.

    Raises ValueError where the folder holds something, or the disk has no room for all of it.  Where the disk fills up
    meanwhile, what was written stays, and `problem` says so; the training may go on, and is written when there is room.
    """

    def __init__(self, place: Path, training: "Training", every: int) -> None:
        self.place, self.problem = place, ""
        self._training, self._next = training, 0.0
        self._measurements: list[Measurement] = []
        recipe = training.recipe
        # As large as they can be; and once more, since they are written beside.
        files.check_room(place, 2 * (recipe.steps // every + 2) * 2 * recipe.length**2, "this training")
        files.new_folder(place)
        try:
            files.reserve(place)
        except OSError as e:
            raise files.unwritten(place, e) from e

    def add(self, measurement: "Measurement") -> None:
        """Take in what the model is like now."""
        self._measurements.append(measurement)
        if (began := time.monotonic()) < self._next:
            return
        self._write(RUNNING)
        now = time.monotonic()
        self._next = now + max(MAX_LOST, SHARE * (now - began))

    def _write(self, status: str) -> None:
        try:
            write(self.place, self._training.recipe, self._measurements, self._training.example, status)
            self.problem = ""
        except ValueError as e:
            self.problem = str(e)

    def finish(self, status: str) -> None:
        """Write all of it.  Raises ValueError where the disk does not take it: then it is as it was written last."""
        files.release(self.place)
        if not self._measurements:
            return
        self._write(status)
        if self.problem:
            with suppress(ValueError):
                _write_about(self.place, self._training.recipe, "failed")
            raise ValueError(self.problem)


@dataclass(frozen=True, eq=False)
class SavedTraining:
    """What a folder holds of a training."""

    recipe: Recipe
    curves: Mapping[str, NDArray[np.float64]]
    """Columns of `curves.csv`, [measurements]."""
    maps: NDArray[np.float16]
    """[measurements, queries, keys]."""
    heads: NDArray[np.int64]
    """Layer and head of each map, [measurements, 2]."""

    def of_head(self, what: str) -> NDArray[np.float64]:
        """Weight on the first token, or norm of its value (`weight`, `norm`), of each map's head, [measurements]."""
        return np.array([self.curves[f"{what} {layer}.{head}"][i] for i, (layer, head) in enumerate(self.heads)])


@dataclass
class _About:
    """What run.json must say."""

    recipe: Recipe
    status: str = ""


def read(place: Path) -> list[SavedTraining]:
    """The trainings in a folder, or in the folders in it.  Raises ValueError where there are none."""
    place = Path(place)
    whole = os.path.exists(place / "run.json")
    folders = [place] if whole else sorted(p.parent for p in place.glob("*/run.json"))
    if not folders:
        raise ValueError(f"{place} holds no training: python -m analysis emergence --out {place} makes one")
    return [_read(folder) for folder in folders]


def _read(place: Path) -> SavedTraining:
    about = files.record(place / "run.json", _About, "that of a training")
    recipe, file = about.recipe, place / "curves.csv"
    heads = [f"{layer}.{head}" for layer, head in np.ndindex(recipe.layers, recipe.heads)]
    wanted = ["step", "loss", "copied", *(f"{what} {h}" for what in ("weight", "norm") for h in heads)]
    try:
        names, *rows = csv.reader(files.contents(file).decode().splitlines(), strict=True)
        numbers = np.array(rows, np.float64).reshape(len(rows), len(wanted))
    except (csv.Error, ValueError) as e:
        raise ValueError(f"{file} is not the table of this training: it is damaged, or of another") from e
    if names != wanted or not len(numbers):
        raise ValueError(f"{file} is not the table of this training: it has other columns, or no rows")
    size = recipe.length
    kinds = {"maps": Kind("f", (None, size, size)), "heads": Kind("iu", (None, 2)), "steps": Kind("iu", (None,))}
    held = files.arrays(place / "maps.npz", kinds)
    # Maps are written first: of a training that was killed, or is under way, there may be one more.
    count = min(len(numbers), *map(len, held.values()))
    steps = numbers[:, 0]
    if about.status != RUNNING and count != max(len(numbers), *map(len, held.values())):
        raise ValueError(
            f"{place} has not as many maps as rows in curves.csv: a file is damaged, or of another training"
        )
    if not np.array_equal(steps[:count], held["steps"][:count]):
        raise ValueError(
            f"{place} has maps of other steps than curves.csv has: a file is damaged, or of another training"
        )
    if (held["heads"] < 0).any() or (held["heads"] >= (recipe.layers, recipe.heads)).any():
        raise ValueError(f"{place} has maps of heads that its recipe does not have: it is damaged")
    columns = dict(zip(names, numbers[:count].T, strict=True))
    maps, heads = held["maps"][:count].astype(np.float16), held["heads"][:count].astype(np.int64)
    return SavedTraining(recipe, columns, maps, heads)
