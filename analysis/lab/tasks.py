"""What very small transformers are trained on, and by which recipe: bigrams and copies, or the bundled plays.

The task is bigram-backcopy (Guo et al. 2024, "Active-dormant attention heads"): tokens follow a table of bigrams, but
after a trigger the next one copies the token before the trigger.  Only at triggers has attention work; everywhere else
it must do nothing, and what it then does depends on whether its weights must sum to one.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from ..settings import Settings, setting
from ..texts.vocabulary import SMALLEST, plays_in
from .transformer import ATTENTIONS

TASKS = {"backcopy": "Bigrams and copies", "plays": "Shakespeare's plays"}
TRIGGERS = 4
"""Tokens of the vocabulary after which the one before is copied."""
SPREAD = 0.5
"""Concentration of the bigrams' Dirichlet distribution.  Where a token has very few followers (0.05), a head may look
at any of them and do no harm: the sink then stayed below 0.15."""
OFTEN = 0.1
"""How likely a trigger is after any token: seeds then differ in what is learned, not in how much there is to copy."""
HELD_OUT = 128
"""Sequences on which everything is measured: always the same."""


@dataclass(frozen=True)
class Recipe(Settings):
    """What is trained and how.  The same recipe gives the same curves, on the same kind of machine."""

    name: ClassVar[str] = "emergence"
    title: ClassVar[str] = "A sink that grows"

    attention: str = setting("softmax", "What turns logits into weights.", choices=tuple(ATTENTIONS))
    task: str = setting("backcopy", "What is learned: bigrams and copies, or the plays.", choices=tuple(TASKS))
    layers: int = setting(1, "Layers.", low=1, high=8)
    heads: int = setting(1, "Heads of a layer.", low=1, high=8)
    width: int = setting(64, "Width of the model.", low=16, high=512)
    vocabulary: int = setting(64, "Tokens, the one that begins a text among them.", low=16, high=4096)
    length: int = setting(128, "Tokens of a sequence.", low=16, high=512)
    batch: int = setting(64, "Sequences of a step.", low=1, high=512)
    steps: int = setting(800, "Steps of training.", low=1, high=100_000)
    rate: float = setting(0.005, "Learning rate of AdamW.", low=1e-5, high=0.1)
    decay: float = setting(0.01, "Weight decay.", low=0, high=1)
    bos: str = setting("yes", "Whether every sequence begins with the same token.", choices=("yes", "no"))
    seed: int = setting(0, "Another seed is another table, another start and other sequences.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads: choose a multiple")
        if self.task == "plays" and self.vocabulary < SMALLEST:
            raise ValueError(f"the plays need a vocabulary of {SMALLEST} tokens or more, not {self.vocabulary}")


class Task(Protocol):
    """Where sequences come from.  Token 0 begins a sequence where the recipe says so."""

    def draw(self, count: int, chance: np.random.Generator) -> NDArray[np.int64]:
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
        followers = np.random.default_rng(recipe.seed).dirichlet(np.full(others, SPREAD), recipe.vocabulary)
        triggers = followers[:, :TRIGGERS]
        triggers *= OFTEN / triggers.sum(1, keepdims=True)
        followers[:, TRIGGERS:] *= (1 - OFTEN) / followers[:, TRIGGERS:].sum(1, keepdims=True)
        # Cumulated, and every row one higher than the one before: one search then serves all rows.
        self._sums = (np.cumsum(followers, 1) + np.arange(recipe.vocabulary)[:, None]).ravel()

    def draw(self, count: int, chance: np.random.Generator) -> NDArray[np.int64]:
        length, others = self.recipe.length + 1, self.recipe.vocabulary - 1
        lots = chance.random((count, length))
        tokens = np.zeros((count, length), np.int64)
        if self.recipe.bos == "no":
            tokens[:, 0] = 1 + lots[:, 0] * others
        for t in range(1, length):
            before = tokens[:, t - 1]
            place = np.searchsorted(self._sums, before + lots[:, t]) - before * others
            tokens[:, t] = 1 + place.clip(0, others - 1)
            if t >= 3:
                # Behind two tokens or more: what begins a sequence is never copied.
                tokens[:, t] = np.where(is_trigger(before), tokens[:, t - 2], tokens[:, t])
        return tokens

    def held_out(self) -> NDArray[np.int64]:
        return self.draw(HELD_OUT, np.random.default_rng(self.recipe.seed + 2))

    def copies(self, ids: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
        found = is_trigger(ids)
        found[:, :2] = False
        return found


class Plays:
    """Stretches of the bundled plays; the last tenth is held out."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        ids = plays_in(recipe.vocabulary)
        self._read, self._held_out = np.split(ids, [len(ids) * 9 // 10])

    def draw(self, count: int, chance: np.random.Generator) -> NDArray[np.int64]:
        return self._stretches(self._read, count, chance)

    def held_out(self) -> NDArray[np.int64]:
        return self._stretches(self._held_out, HELD_OUT, np.random.default_rng(self.recipe.seed + 2))

    def copies(self, ids: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
        """None: nobody knows."""
        return torch.zeros_like(ids, dtype=torch.bool)

    def _stretches(self, ids: NDArray, count: int, chance: np.random.Generator) -> NDArray[np.int64]:
        length = self.recipe.length + 1
        begins = chance.integers(0, len(ids) - length, count)
        tokens = ids[begins[:, None] + np.arange(length)].astype(np.int64)
        if self.recipe.bos == "yes":
            tokens[:, 0] = 0
        return tokens


def is_trigger(tokens):
    return (tokens >= 1) & (tokens <= TRIGGERS)
