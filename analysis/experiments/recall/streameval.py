"""StreamEval: a stream of numbered lines, and again and again a question about one of them (Xiao et al. 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from ...settings import setting
from .base import Exchange, Place, Sample, Task
from .encoding import Tokens
from .haystack import streamed

BEFORE = "Below is a record of lines I want you to remember.\n"


@dataclass(frozen=True)
class StreamEval(Task):
    """Every few lines the value of a line that was read a while ago is asked for, and the stream goes on.  The embedded
    model hardly manages it even dense: fewer digits and fewer lines back make it easier.

    After section 4.3 of Xiao et al. 2023 (arXiv:2309.17453), whose data and script were never released.  The paper
    shows the form of a line and of a question, asks every 10 lines about 20 lines back, and scores the exact answer.
    It leaves open how values are drawn (here: uniform), whether the answer that stays in the cache is the right one or
    the model's own (here: the right one, or none), and how an answer ends (here: with its closing bracket, which
    counts).
    """

    name: ClassVar[str] = "streameval"
    title: ClassVar[str] = "StreamEval"
    placed: ClassVar[bool] = False

    back: int = setting(20, "How many lines back the line is that is asked for.", low=1, high=10_000)
    every: int = setting(10, "Lines between two questions.", low=1, high=10_000)
    digits: int = setting(5, "Digits of a value at most; at least one less.", low=1, high=9)
    answers: str = setting("stay", "Whether questions and answers stay in the text.", choices=("stay", "leave"))

    def sample(self, place: Place, seed: int, tokens: Tokens) -> Sample:
        """As many lines and questions as there is room for; `back` lines are read before the first question."""
        dice, room = self.dice(place, seed), place.length
        exchanges, fresh, at, spans, values = [], BEFORE, len(BEFORE), [], []
        while room > 0:
            number = len(values)
            values.append(dice.randrange(10 ** max(0, self.digits - 2), 10**self.digits))
            line = f"{_line(number)} <{values[-1]}>\n"
            spans.append((at, at + len(line) - 1))
            fresh, at, room = fresh + line, at + len(line), room - tokens.each((line,))[0]
            if (asked := number - self.back) < 0 or asked % self.every:
                continue
            question, answer = f"Query: {_line(asked)}", f" <{values[asked]}>"
            exchanges.append(Exchange(fresh, question, answer, spans[asked]))
            # The answer's line ends before the next one.
            fresh, at = "\n", at + len(question) + len(answer) + 1
            room -= tokens.each((question + answer,))[0]
        return streamed(exchanges, place.length, tokens, stays=self.answers == "stay")


def _line(number: int) -> str:
    return f"The REGISTER_CONTENT in line {number} is"
