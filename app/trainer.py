"""Small transformers that are trained side by side while people look at them."""

from collections.abc import Sequence
from itertools import zip_longest

from analysis.emergence import Moment, Recipe, Training

from .runner import Live, Models

EVERY = 20
"""Steps between two measurements."""
MOST = 3
"""Trainings side by side."""


class Emergence(Live):
    """Trains each recipe in turns, and keeps every moment of each."""

    def __init__(self, recipes: Sequence[Recipe], models: Models) -> None:
        if not 1 <= len(recipes) <= MOST:
            raise ValueError(f"choose 1 to {MOST} kinds of attention to train side by side, not {len(recipes)}")
        super().__init__(None, models)
        self.trainings: list[Training] = []
        self.moments: list[list[Moment]] = [[] for _ in recipes]
        self.recipes = tuple(recipes)

    @property
    def share(self) -> float:
        """How much of all training is done."""
        done = sum(m[-1].step for m in self.moments if m)
        return done / sum(r.steps for r in self.recipes)

    def _run(self) -> None:
        self.trainings = [Training(recipe) for recipe in self.recipes]
        self._set("running")
        for together in zip_longest(*(t.moments(EVERY) for t in self.trainings)):
            for moments, moment in zip(self.moments, together, strict=True):
                if moment is not None:
                    moments.append(moment)
            self._publish()
            self._stand_still()
            if self._wanted != "running":
                self._set("stopped")
                return
        self._set("finished")
