"""A sentence that no book has, in a book (after Kamradt 2023, Needle in a haystack)."""

from dataclasses import dataclass
from typing import ClassVar

from ...settings import setting
from .base import Place, Sample, Task
from .encoding import Tokens
from .haystack import HELP, PLAIN, hidden, parts_of

PEOPLE = ("Mirela", "Oskar", "Tamsin", "Bertil", "Ruvena", "Quill", "Zoltan", "Ilka", "Dagny", "Fenwick")
TOWNS = ("Tarvin", "Ostrel", "Kessby", "Lundmoor", "Varnow", "Pellwick", "Dorrim", "Ashgrove")
PLACES = ("under the bed", "in the attic", "behind the stove", "in the boat", "on the roof", "in the cellar")
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "golden")
STUFFS = ("wooden", "paper", "silver", "glass", "stone", "leather", "copper", "woollen")
THINGS = ("spoon", "lantern", "horse", "crown", "drum", "basket", "mask", "clock", "ladder", "kettle")


@dataclass(frozen=True)
class Needle(Task):
    """What a person of no book keeps somewhere, said in one sentence inside a play, is asked for at the end; the answer
    has three words."""

    name: ClassVar[str] = "needle"
    title: ClassVar[str] = "Needle in a play"

    haystack: str = setting("hamlet", HELP, pattern=PLAIN)

    def sample(self, place: Place, seed: int, tokens: Tokens) -> Sample:
        """Every word of the fact is chosen by the seed."""
        who, town, where, *what = map(
            self.dice(place, seed).choice, (PEOPLE, TOWNS, PLACES, COLOURS, STUFFS, THINGS)
        )  # fmt: skip
        answer = " ".join(what)
        parts = parts_of(self.haystack, place.length, self.dice(Place(0, None, place.repeat), seed, "haystack"))
        return hidden(
            place,
            tokens,
            parts,
            [(place.depth or 0, f"{who} of {town} keeps a {answer} {where}.\n")],
            before="",
            question=f"\nQuestion: What does {who} of {town} keep {where}?\nAnswer: {who} of {town} keeps a",
            answer=f" {answer}",
        )
