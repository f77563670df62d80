"""How the text of a task becomes tokens, and which of them are a question, an answer, or what says it.

A text is turned into tokens as the one text that it is: a model reads it as it would read any other.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ... import texts
from ...texts import control

if TYPE_CHECKING:
    from .base import Sample


@dataclass(frozen=True)
class Asked:
    """Where a question stands in the tokens of a text: it begins at `question`, its answer at `answer`, and ends before
    `stop`."""

    question: int
    answer: int
    stop: int
    needle: tuple[int, int] | None
    """First and last token (exclusive) of what says the answer."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text as a model reads it: token ids [tokens], and its questions in their order."""

    ids: NDArray[np.int32]
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Tokens:
    """A tokenizer, and what is decided on the way to tokens (texts/options.py)."""

    tokenizer: Any
    bos: str = "auto"
    special: str = "text"

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise ValueError(
                "this model has no tokenizer that says where its tokens stand in a text, which recall needs to find an "
                "answer: choose another model"
            )

    @property
    def opening(self) -> list[int]:
        """Token ids that are put before a text."""
        return texts.opening(self.tokenizer, self.bos)

    def offsets(self, content: str) -> tuple[list[int], NDArray[np.int64]]:
        """Token ids of a text without BOS, and the first and last character (exclusive) of each, [tokens, 2]."""
        coded = self.tokenizer(content, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = coded["input_ids"], coded["offset_mapping"]
        if self.special == "text" and control.found(self.tokenizer, ids, content):
            ids, offsets = control.partly_as_text(self.tokenizer, [(False, content)])
        return list(ids), np.array(offsets, np.int64).reshape(-1, 2)

    def count(self, content: str) -> int:
        """Tokens of a text, BOS included."""
        return len(texts.begun(self.opening, self.offsets(content)[0]))

    def each(self, parts: tuple[str, ...]) -> list[int]:
        """Tokens of every part of a text that is made of them: those that end in it."""
        return list(_each(self, parts))

    def encode(self, sample: "Sample") -> Encoded:
        """The text of a sample.  Raises ValueError where an answer has no tokens of its own."""
        parts = [part for e in sample.exchanges for part in (e.before, e.question, e.answer)]
        ids, offsets = self.offsets("".join(parts))
        whole = texts.begun(self.opening, ids)
        more = len(whole) - len(ids)
        ends = offsets[:, 1]

        def token(character: int) -> int:
            """The first token that reaches beyond a character; BOS comes before."""
            return int(np.searchsorted(ends, character, side="right")) + more

        asked, at = [], 0
        for e in sample.exchanges:
            borders = [at := at + len(part) for part in (e.before, e.question, e.answer)]
            question, answer, stop = map(token, borders)
            needle = None if e.needle is None else (token(e.needle[0]), token(e.needle[1] - 1) + 1)
            asked.append(Asked(question, answer, stop, needle))
        if any(a.answer >= a.stop or a.answer < 2 for a in asked):
            raise ValueError("an answer, or what comes before it, has no tokens of its own: write more of it")
        return Encoded(whole, tuple(asked))


@lru_cache(maxsize=8)
def _each(tokens: Tokens, parts: tuple[str, ...]) -> tuple[int, ...]:
    _, offsets = tokens.offsets("".join(parts))
    borders = np.cumsum([0, *map(len, parts)])
    last = np.searchsorted(offsets[:, 1], borders, side="right")
    return tuple(int(b - a) for a, b in pairwise(last))
