"""What small transformers are trained on: bigrams and copies, or the bundled plays.

The first is bigram-backcopy (Guo et al. 2024, "Active-dormant attention heads"): tokens follow a table of bigrams, but
after a trigger the next one copies the token before the trigger.  Only at triggers has attention work; everywhere else
it must do nothing, and what it then does depends on whether its weights must sum to one.
"""

from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from ..texts.vocabulary import plays_in
from .recipe import Recipe

TRIGGERS = 4
"""Tokens of the vocabulary after which the one before is copied."""
SPREAD = 0.5
"""Concentration of the bigrams' Dirichlet distribution.  Where a token has very few followers (0.05), a head may look
at any of them and do no harm: the sink then stayed below 0.15."""
OFTEN = 0.1
"""How likely a trigger is after any token: seeds then differ in what is learned, not in how much there is to copy."""
HELD_OUT = 128
"""Sequences on which everything is measured: always the same."""


class Task(Protocol):
    """Where sequences come from.  Token 0 begins a sequence where the recipe says so."""

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Sequences [count, length + 1]: the last token is only predicted."""

    def held_out(self) -> NDArray[np.int64]:
        """The sequences on which is measured, [HELD_OUT, length + 1]."""

    def copies(self, ids: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
        """At which tokens attention has something to do."""


class Backcopy:
    """Bigrams, and copies behind triggers, which are tokens 1 … TRIGGERS."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        others = recipe.vocabulary - 1
        self.followers = np.random.default_rng(recipe.seed).dirichlet(np.full(others, SPREAD), recipe.vocabulary)
        """How likely each token is to be followed by tokens 1, 2, 3 …, [vocabulary, vocabulary − 1]."""
        for part, share in ((self.followers[:, :TRIGGERS], OFTEN), (self.followers[:, TRIGGERS:], 1 - OFTEN)):
            part *= share / part.sum(1, keepdims=True)
        # Cumulated, and every row one higher than the one before: one search then serves all rows.
        self._sums = (np.cumsum(self.followers, 1) + np.arange(recipe.vocabulary)[:, None]).ravel()

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Sequences [count, length + 1]."""
        length, others = self.recipe.length + 1, self.recipe.vocabulary - 1
        lots = rng.random((count, length))
        tokens = np.zeros((count, length), np.int64)
        if self.recipe.bos == "no":
            tokens[:, 0] = 1 + lots[:, 0] * others
        for t in range(1, length):
            before = tokens[:, t - 1]
            follower = np.searchsorted(self._sums, before + lots[:, t]) - before * others
            tokens[:, t] = 1 + follower.clip(0, others - 1)
            if t >= 3:
                # Behind two tokens or more: what begins a sequence is never copied.
                tokens[:, t] = np.where(is_trigger(before), tokens[:, t - 2], tokens[:, t])
        return tokens

    def held_out(self) -> NDArray[np.int64]:
        """The sequences on which is measured, [HELD_OUT, length + 1]."""
        return self.draw(HELD_OUT, np.random.default_rng(self.recipe.seed + 2))

    def copies(self, ids: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
        """Behind triggers, but for those that begin a sequence."""
        found = is_trigger(ids)
        found[:, :2] = False
        return found


class Plays:
    """Stretches of the bundled plays; the last tenth is held out."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        ids = plays_in(recipe.vocabulary)
        self._read, self._held_out = np.split(ids, [len(ids) * 9 // 10])

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Stretches of what is trained on, [count, length + 1]."""
        return self._stretches(self._read, count, rng)

    def held_out(self) -> NDArray[np.int64]:
        """Stretches of what is held out, [HELD_OUT, length + 1]."""
        return self._stretches(self._held_out, HELD_OUT, np.random.default_rng(self.recipe.seed + 2))

    def copies(self, ids: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
        """None: nobody knows."""
        return torch.zeros_like(ids, dtype=torch.bool)

    def _stretches(self, ids: NDArray, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        length = self.recipe.length + 1
        begins = rng.integers(0, len(ids) - length, count)
        tokens = ids[begins[:, None] + np.arange(length)].astype(np.int64)
        if self.recipe.bos == "yes":
            tokens[:, 0] = 0
        return tokens


def is_trigger(tokens: Any) -> Any:
    """Which tokens are triggers: bools of the same shape, for a number, an array or a tensor."""
    return (tokens >= 1) & (tokens <= TRIGGERS)
