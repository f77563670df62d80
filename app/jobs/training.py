"""Training: small transformers that are trained side by side."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.errors import error_message, log
from analysis.lab.folder import TrainingWriter
from analysis.lab.measurement import Measurement
from analysis.lab.recipe import Recipe

from .base import Job
from .kept import Keeper
from .loading import Models

if TYPE_CHECKING:
    # The job's thread imports what needs torch: the lesson is on screen before torch is loaded.
    from analysis.lab.training import Training

EVERY = 20
"""Steps between two measurements."""
MAX_TRAININGS = 3
"""Trainings side by side, at most."""


class _Folders:
    """A folder with one for each training in it.  Raises ValueError where they cannot be written."""

    def __init__(self, path: Path, trainings: "Sequence[Training]") -> None:
        self._writers = dict[int, TrainingWriter]()
        try:
            for i, training in enumerate(trainings):
                self._writers[i] = TrainingWriter(path / f"{i + 1}-{training.recipe.attention}", training, EVERY)
        except ValueError:
            # Nobody writes those that were begun.
            self.finish("failed")
            raise

    def add(self, index: int, moment: Measurement) -> None:
        """Take in a moment of a training.  Raises ValueError where the disk does not take it."""
        writer = self._writers[index]
        writer.add(moment)
        writer.save()
        if writer.problem:
            raise ValueError(writer.problem)

    def end(self, index: int, status: str) -> None:
        """Finish one training.  Raises ValueError where the disk does not take it."""
        self._writers.pop(index).finish(status)

    def finish(self, status: str) -> None:
        """Finish those that are not.  Raises ValueError where the disk does not take one; the others are finished."""
        wrong = list[ValueError]()
        for index in list(self._writers):
            try:
                self.end(index, status)
            except ValueError as e:
                wrong.append(e)
        if wrong:
            raise wrong[0]


class TrainingJob(Job):
    """Trains each recipe in turns, and keeps every moment of each.  One that fails does not end the others.

    Raises ValueError for no recipe, or too many.
    """

    noun = keeps = "training"
    snapshot: tuple[tuple[Measurement, ...], ...]

    def __init__(self, recipes: Sequence[Recipe], models: Models) -> None:
        if not 1 <= len(recipes) <= MAX_TRAININGS:
            raise ValueError(
                f"choose 1 to {MAX_TRAININGS} kinds of attention to train side by side, not {len(recipes)}"
            )
        super().__init__(models)
        self.recipes = tuple(recipes)
        self.kept = self._trainings = Keeper[_Folders](self.id)
        self.examples: tuple[NDArray[np.int64], ...] = ()
        """The sequence whose map the moments of a training hold, one for each training."""
        self._moments: list[list[Measurement]] = [[] for _ in recipes]
        self.snapshot = self.take_snapshot()

    @property
    def about(self) -> str:
        """What is trained, in a few words."""
        return f"training of {', '.join(r.attention for r in self.recipes)}"

    @property
    def moments(self) -> tuple[tuple[Measurement, ...], ...]:
        """What was measured, a tuple for each training."""
        return self.snapshot

    @property
    def share(self) -> float:
        """The share of all steps that is done, 0 to 1."""
        done = sum(m[-1].step for m in self.snapshot if m)
        return done / sum(r.steps for r in self.recipes)

    def take_snapshot(self) -> tuple[tuple[Measurement, ...], ...]:
        """The moments so far, a tuple for each training."""
        return tuple(map(tuple, self._moments))

    def _steps(self) -> Generator[None, None, None]:
        from analysis.lab.training import Training

        trainings = [Training(recipe) for recipe in self.recipes]
        self.examples = tuple(t.example for t in trainings)
        going = {i: t.measurements(EVERY) for i, t in enumerate(trainings)}
        self._trainings.open(lambda path: _Folders(path, trainings))
        self._set("running")
        failed = []
        while going:
            for i, moments in list(going.items()):
                try:
                    moment = next(moments, None)
                except Exception as e:
                    log(e, name := f"job {self.id}")
                    failed.append(e)
                    if len(failed) == len(trainings):
                        raise
                    said = f"{self.recipes[i].attention}: {error_message(e, name)}"
                    # Of each that failed, whatever came after it.
                    self.note = " ".join(filter(None, (self.note, said)))
                    moment = None
                    self._trainings.write(lambda folder, i=i: folder.end(i, "failed"))
                if moment is None:
                    del going[i]
                else:
                    self._moments[i].append(moment)
                    self._trainings.write(lambda folder, i=i, moment=moment: folder.add(i, moment))
            yield
