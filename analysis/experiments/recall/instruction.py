"""An instruction at the beginning of a conversation that must still hold many turns later."""

from dataclasses import dataclass
from typing import ClassVar

from .bank import PAIRS
from .base import Exchange, Place, Sample, Task
from .encoding import Tokens
from .haystack import fill

FIRST = ("amber", "silver", "crimson", "quiet", "hollow", "northern", "velvet", "golden")
SECOND = ("falcon", "harbor", "lantern", "meadow", "otter", "winter", "anchor", "bridge")


@dataclass(frozen=True)
class Instruction(Task):
    """The system says which two words to answer to Status; then others are talked of, and the last turn says Status.

    The turns between are easy questions with their answers, as plain text and without a chat template.  Depth is of no
    use: the instruction stands first.
    """

    name: ClassVar[str] = "instruction"
    title: ClassVar[str] = "An instruction that holds"
    placed: ClassVar[bool] = False

    def sample(self, place: Place, seed: int, tokens: Tokens) -> Sample:
        """As many turns as there is room for."""
        dice = self.dice(place, seed)
        code = f"{dice.choice(FIRST)} {dice.choice(SECOND)}"
        said = f"System: When the user says Status, answer with the code words: {code}."
        question, answer = "User: Status\nAssistant:", f" {code}"
        order = dice.sample(PAIRS, len(PAIRS))

        def turn(number: int) -> str:
            asked, right, *_ = order[number % len(order)]
            return f"User: {asked}\nAssistant: {right}\n"

        if (bare := tokens.count(f"{said}\n{question}{answer}")) > place.length:
            raise ValueError(f"the instruction needs {bare} tokens, and not {place.length}: choose a larger length")
        turns = fill(turn, place.length, tokens, f"{said}\n{question}{answer}")
        return Sample((Exchange(f"{said}\n{''.join(turns)}", question, answer, (0, len(said))),))
