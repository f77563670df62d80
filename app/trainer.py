"""Small transformers that are trained side by side while people look at them."""

from collections.abc import Sequence

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
        for recipe, moments in zip(self.recipes, self.moments, strict=True):
            self.trainings.append(Training(recipe))
            moments.append(self.trainings[-1].measure())
        self._set("running")
        while not all(t.done for t in self.trainings):
            turn = min((t for t in self.trainings if not t.done), key=lambda t: t.step)
            turn.advance(EVERY)
            self.moments[self.trainings.index(turn)].append(turn.measure())
            self._publish()
            self._stand_still()
            if self._wanted != "running":
                self._set("stopped")
                return
        self._set("finished")
