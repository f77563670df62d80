"""A random list, to be repeated."""

from dataclasses import dataclass
from typing import ClassVar

from ...settings import setting
from .base import Place, Sample, Task
from .encoding import Tokens
from .haystack import HELP, PLAIN, hidden, parts_of

WORDS = (
    "apple", "river", "stone", "cloud", "horse", "table", "bread", "light", "house", "water", "paper", "music",
    "plant", "glass", "night", "field", "chair", "sugar", "train", "beach", "heart", "snow", "ship", "bird",
)  # fmt: skip


@dataclass(frozen=True)
class Copy(Task):
    """A list of random words stands somewhere in a haystack, and is to be repeated at the end, in its order."""

    name: ClassVar[str] = "copy"
    title: ClassVar[str] = "Copy a list"

    items: int = setting(8, "Words of the list.", low=1, high=len(WORDS))
    haystack: str = setting("filler", HELP, pattern=PLAIN)

    def sample(self, place: Place, seed: int, tokens: Tokens) -> Sample:
        """No word stands in the list twice, so that each says which is the next."""
        listed = ", ".join(self.dice(place, seed).sample(WORDS, self.items))
        parts = parts_of(self.haystack, place.length, self.dice(Place(0, None, place.repeat), seed, "haystack"))
        return hidden(
            place,
            tokens,
            parts,
            [(place.depth or 0, f"The list is {listed}. ")],
            before="Remember the list. I will ask you to repeat it.\n",
            question="\nRepeat the list. The list is",
            answer=f" {listed}",
        )
