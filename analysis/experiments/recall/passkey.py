"""A number in a haystack: the pass key (Mohtashami and Jaggi 2023, arXiv:2305.16300)."""

from dataclasses import dataclass
from typing import ClassVar

from ...settings import setting
from .base import Place, Sample, Task
from .encoding import Tokens
from .haystack import HELP, PLAIN, hidden, parts_of

BEFORE = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about "
    "the important information there.\n"
)
QUESTION = "\nWhat is the pass key? The pass key is"


@dataclass(frozen=True)
class PassKey(Task):
    """A five-digit number, said twice in a row somewhere in a haystack, is asked for at the end."""

    name: ClassVar[str] = "passkey"
    title: ClassVar[str] = "Pass key"

    haystack: str = setting("filler", HELP, pattern=PLAIN)

    def sample(self, place: Place, seed: int, tokens: Tokens) -> Sample:
        """The key is uniform in 10,000 to 50,000, so that every key has five digits."""
        key = self.dice(place, seed).randint(10_000, 50_000)
        # One stretch of a play for all depths of a repeat.
        parts = parts_of(self.haystack, place.length, self.dice(Place(0, None, place.repeat), seed, "haystack"))
        needle = f"The pass key is {key}. Remember it. {key} is the pass key. "
        return hidden(
            place, tokens, parts, [(place.depth or 0, needle)], before=BEFORE, question=QUESTION, answer=f" {key}"
        )
