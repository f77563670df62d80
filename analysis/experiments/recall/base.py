"""What a recall task is: settings, and texts made of a seed in which something is said, and later asked for.

A task writes text; how that becomes tokens is encoding.py's matter, and whether a model answers is scoring.py's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import ClassVar, NamedTuple

from ...settings import Settings
from .encoding import Tokens

ASKING = {
    "aware": "the question is read like all that comes before it, and takes part in what is evicted",
    "blind": "nothing is evicted from the question on: what was kept, was kept without knowing it",
}
"""How a question may be asked."""


class Place(NamedTuple):
    """Which text of a task: its tokens, the depth of the fact in % of the room (None: the task says), the repeat."""

    length: int
    depth: float | None
    repeat: int


@dataclass(frozen=True)
class Exchange:
    """Text that is read, a question, and the answer that is right.  They follow one another as they stand."""

    before: str
    question: str
    answer: str
    needle: tuple[int, int] | None = None
    """First and last character (exclusive) of what says the answer, counted from the beginning of the whole text; None:
    nothing does."""


@dataclass(frozen=True)
class Sample:
    """A text with questions in it."""

    exchanges: tuple[Exchange, ...]
    stays: bool = True
    """Whether a question and its answer stay in the text that is read on; else they are asked aside, and forgotten."""


@dataclass(frozen=True)
class Task(Settings):
    """Something to be recalled, in texts that a seed decides: the same on every machine."""

    placed: ClassVar[bool] = True
    """Whether the fact can stand at a chosen depth."""

    def places(self, lengths: Sequence[int], depths: Sequence[float], repeats: int) -> Iterator[Place]:
        """All texts that these lengths in tokens, depths in % and repeats make."""
        for length in lengths:
            for depth in depths if self.placed else (None,):
                for repeat in range(repeats):
                    yield Place(length, depth, repeat)

    def sample(self, place: Place, seed: int, tokens: Tokens) -> Sample:
        """The text of a place, with at most `place.length` tokens, and as many of them as there is something for.

        Raises ValueError where that is too short for the task.
        """
        raise NotImplementedError

    def dice(self, place: Place, seed: int, *also: str) -> Random:
        """The numbers that decide a text; `also`: what they are for, where a text has several sources of them."""
        # A string seeds alike in every process and on every machine.
        return Random("/".join((self.name, str(seed), *map(str, place), *also)))

    @property
    def source(self) -> str:
        """Digest of what the texts are made of, where that is a file; else empty."""
        return ""

    @property
    def short(self) -> str:
        """The task as a person would write it: with those settings only that are not as they are unless said."""
        said = ",".join(f"{f.name}={v}" for f in fields(self) if (v := getattr(self, f.name)) != f.default)
        return f"{self.name}:{said}" if said else self.name
