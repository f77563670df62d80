"""Training: small transformers that are trained side by side."""

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.errors import error_message, log
from analysis.lab.recipe import Recipe
from analysis.lab.training import Measurement, Training

from .base import Job
from .loading import Models

EVERY = 20
"""Steps between two measurements."""
MAX_TRAININGS = 3
"""Trainings side by side, at most."""


class TrainingJob(Job):
    """Trains each recipe in turns, and keeps every moment of each.  One that fails does not end the others.

    Raises ValueError for no recipe, or too many.
    """

    noun = "training"
    snapshot: tuple[tuple[Measurement, ...], ...]

    def __init__(self, recipes: Sequence[Recipe], models: Models) -> None:
        if not 1 <= len(recipes) <= MAX_TRAININGS:
            raise ValueError(
                f"choose 1 to {MAX_TRAININGS} kinds of attention to train side by side, not {len(recipes)}"
            )
        super().__init__(models)
        self.recipes = tuple(recipes)
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
        trainings = [Training(recipe) for recipe in self.recipes]
        self.examples = tuple(t.example for t in trainings)
        going = {i: t.measurements(EVERY) for i, t in enumerate(trainings)}
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
                    self.note = f"{self.recipes[i].attention}: {error_message(e, name)}"
                    moment = None
                if moment is None:
                    del going[i]
                else:
                    self._moments[i].append(moment)
            yield
