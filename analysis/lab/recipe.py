"""What a small transformer is trained on, and how: settings alone, without the machinery that follows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..settings import Settings, setting, told_apart
from ..texts.vocabulary import SMALLEST

ATTENTIONS = {
    "softmax": "Softmax",
    "learned": "Softmax + learned sink logit",
    "off-by-one": "Softmax off by one",
    "relu": "ReLU",
    "sigmoid": "Sigmoid",
}
"""Ways to turn logits into weights.  Those of the first three sum to one, less what an extra logit takes; the last two
look at every logit alone."""
TASKS = {"backcopy": "Bigrams and copies", "plays": "Shakespeare's plays"}


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
        """Raises ValueError where settings do not go together."""
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads: choose a multiple")
        if self.task == "plays" and self.vocabulary < SMALLEST:
            raise ValueError(f"the plays need a vocabulary of {SMALLEST} tokens or more, not {self.vocabulary}")


def names_of(recipes: Sequence[Recipe]) -> list[str]:
    """What trainings are called: their attention, and where several have the same, the settings that differ."""
    return told_apart([ATTENTIONS[recipe.attention] for recipe in recipes], recipes)
