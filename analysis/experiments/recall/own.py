"""A task of one's own: contexts, questions and answers from a file."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import msgspec
from typing_extensions import override

from ... import files, texts
from ...settings import quoted, setting
from .base import Exchange, Place, Sample, Task
from .encoding import Tokens

QUESTIONS = "questions.jsonl"
"""A file that was uploaded: it lies in the folder of its cells."""


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """What a line of the file must say."""

    context: str
    question: str
    answer: str


@dataclass(frozen=True)
class Own(Task):
    """A line of a JSONL file for each text: an object with `context`, `question` and `answer`, each some words.

    They are read one behind the other, with a newline before the question and a space before the answer where there is
    no white space.  Lengths, depths and repeats are the file's: each line is one text, as it stands.  What says the
    answer is where it last stands in the context, if it does.
    """

    name: ClassVar[str] = "jsonl"
    title: ClassVar[str] = "A file of one's own"
    placed: ClassVar[bool] = False

    file: str = setting("", "The path of the file.", pattern=r".{0,4096}", file=True)

    def places(self, lengths: Sequence[int], depths: Sequence[float], repeats: int) -> Iterator[Place]:
        """One for each line of the file, numbered from 0; their lengths are not known before they are tokens."""
        for number in range(len(lines_of(self.file))):
            yield Place(0, None, number)

    @property
    @override
    def source(self) -> str:
        return hashlib.sha256(files.contents(Path(self.file))).hexdigest()

    def sample(self, place: Place, seed: int, tokens: Tokens) -> Sample:
        """The line of that number."""
        line = lines_of(self.file)[place.repeat]
        question, answer = _behind(line.context, "\n", line.question), _behind(line.question, " ", line.answer)
        at = line.context.rfind(line.answer.strip())
        needle = None if at < 0 else (at, at + len(line.answer.strip()))
        return Sample((Exchange(line.context, question, answer, needle),))


def _behind(before: str, gap: str, text: str) -> str:
    """A text with a gap in front, where there is no white space."""
    return text if text[:1].isspace() or before[-1:].isspace() else gap + text


@lru_cache(maxsize=4)
def lines_in(data: bytes, path: str) -> list[Line]:
    """The lines of a file with these contents.  Raises ValueError with the number of the line where something is
    wrong."""
    found = []
    # Newlines alone end a line: U+2028 and NEL are characters of a text.
    for number, line in enumerate(texts.utf8(data, path).split("\n"), 1):
        if not line.strip():
            continue
        found.append(files.decoded(line, Line, f"line {number} of {path} is no question with its context and answer"))
        if empty := [name for name, words in msgspec.structs.asdict(found[-1]).items() if not words.strip()]:
            raise ValueError(f"line {number} of {path} has an empty {empty[0]}: write some words there")
    if not found:
        raise ValueError(f"{path} has no lines: write an object with context, question and answer into each")
    return found


def lines_of(file: str) -> list[Line]:
    """The lines of a task's file.  Raises ValueError with the number of the line where something is wrong."""
    if not file:
        raise ValueError("say which file: jsonl:file=PATH")
    if "\0" in file:
        raise ValueError(f"there is no file {quoted(file)}")
    return lines_in(files.contents(Path(file)), file)
