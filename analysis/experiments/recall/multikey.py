"""Several pass keys in a haystack, of which one is asked for (after RULER, Hsieh et al. 2024, arXiv:2404.06654)."""

from dataclasses import dataclass
from typing import ClassVar

from ...settings import setting
from .base import Place, Sample, Task
from .encoding import Tokens
from .haystack import HELP, PLAIN, hidden, parts_of

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "brown", "pink", "grey", "purple", "orange", "silver")


@dataclass(frozen=True)
class MultiKey(Task):
    """Several doors have a pass key each, said once, at random places; that of the door at the chosen depth is asked
    for."""

    name: ClassVar[str] = "multikey"
    title: ClassVar[str] = "Several pass keys"

    keys: int = setting(4, "How many doors have a key.", low=2, high=len(COLOURS))
    haystack: str = setting("filler", HELP, pattern=PLAIN)

    def sample(self, place: Place, seed: int, tokens: Tokens) -> Sample:
        """Keys are uniform in 10,000 to 50,000, and no two are alike."""
        dice = self.dice(place, seed)
        colours, keys = dice.sample(COLOURS, self.keys), dice.sample(range(10_000, 50_001), self.keys)
        depths = [place.depth or 0, *(100 * dice.random() for _ in keys[1:])]
        needles = [f"The pass key of the {c} door is {k}. " for c, k in zip(colours, keys, strict=True)]
        parts = parts_of(self.haystack, place.length, self.dice(Place(0, None, place.repeat), seed, "haystack"))
        return hidden(
            place,
            tokens,
            parts,
            list(zip(depths, needles, strict=True)),
            before="Each door has a pass key. Remember them all. I will ask you for one of them.\n",
            question=f"\nWhat is the pass key of the {colours[0]} door? The pass key of the {colours[0]} door is",
            answer=f" {keys[0]}",
        )
