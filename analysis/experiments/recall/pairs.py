"""Questions and answers one behind the other, as a stream that never ends."""

from dataclasses import dataclass
from typing import ClassVar

from ...settings import setting
from .bank import PAIRS
from .base import Exchange, Place, Sample, Task
from .encoding import Tokens
from .haystack import streamed


@dataclass(frozen=True)
class Pairs(Task):
    """Easy questions about the world, each with four choices and its answer, one behind the other; every answer counts.

    In the manner of the concatenated ARC of Xiao et al. 2023 (Table 5).  Nothing in the text says the answer: what is
    seen is whether a policy keeps a model able to answer at all.  The answer is the chosen word itself, and not a
    letter.
    """

    name: ClassVar[str] = "arc"
    title: ClassVar[str] = "Questions and answers"
    placed: ClassVar[bool] = False

    answers: str = setting("stay", "Whether questions and answers stay in the text.", choices=("stay", "leave"))

    def sample(self, place: Place, seed: int, tokens: Tokens) -> Sample:
        """As many pairs as there is room for, in an order that the seed decides; after the last they begin anew."""
        dice, room, exchanges = self.dice(place, seed), place.length, list[Exchange]()
        order = dice.sample(PAIRS, len(PAIRS))
        while room > 0:
            asked, right, *wrong = order[len(exchanges) % len(order)]
            choices = ", ".join(dice.sample((right, *wrong), 1 + len(wrong)))
            question, answer = f"Question: {asked}\nChoices: {choices}\nAnswer:", f" {right}"
            exchanges.append(Exchange("\n\n" if exchanges else "Answer the questions.\n\n", question, answer))
            room -= tokens.each((question + answer,))[0]
        return streamed(exchanges, place.length, tokens, stays=self.answers == "stay")
