"""Small transformers that are trained side by side while people look at them."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.errors import log, told
from analysis.lab.training import Moment, Recipe, Training

from .runner import Job, Models

EVERY = 20
"""Steps between two measurements."""
MOST = 3
"""Trainings side by side."""


class Emergence(Job):
    """Trains each recipe in turns, and keeps every moment of each; one that fails does not end the others."""

    called = "training"
    shown: tuple[tuple[Moment, ...], ...]

    def __init__(self, recipes: Sequence[Recipe], models: Models) -> None:
        if not 1 <= len(recipes) <= MOST:
            raise ValueError(f"choose 1 to {MOST} kinds of attention to train side by side, not {len(recipes)}")
        super().__init__(None, models)
        self.recipes = tuple(recipes)
        self.examples: tuple[NDArray[np.int64], ...] = ()
        """The sequence whose map each training's moments hold."""
        self._moments: list[list[Moment]] = [[] for _ in recipes]
        self.shown = self._snapshot()

    @property
    def about(self) -> str:
        return f"training of {', '.join(r.attention for r in self.recipes)}"

    @property
    def moments(self) -> tuple[tuple[Moment, ...], ...]:
        return self.shown

    @property
    def share(self) -> float:
        """How much of all training is done."""
        done = sum(m[-1].step for m in self.shown if m)
        return done / sum(r.steps for r in self.recipes)

    def _snapshot(self) -> tuple[tuple[Moment, ...], ...]:
        return tuple(map(tuple, self._moments))

    def _steps(self) -> Iterator[None]:
        trainings = [Training(recipe) for recipe in self.recipes]
        self.examples = tuple(t.example for t in trainings)
        going = {i: t.moments(EVERY) for i, t in enumerate(trainings)}
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
                    self.note = f"{self.recipes[i].attention}: {told(e, name)}"
                    moment = None
                if moment is None:
                    del going[i]
                else:
                    self._moments[i].append(moment)
            yield
