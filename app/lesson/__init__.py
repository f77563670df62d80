"""The lesson's texts: chapters in two languages, read from assets.  No Streamlit in here.

A chapter is a markdown file: a title and text, then a question, its answer, and the words of what is played with, each
under a heading of its own.  Placeholders in words are filled in by whoever shows them.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from analysis import resource

FOLDER = resource("assets/lesson")
LANGUAGES = {"en": "English", "zh": "中文"}


@dataclass(frozen=True)
class Chapter:
    """One chapter as a student reads it."""

    number: int
    name: str
    title: str
    text: str
    question: str
    answer: str
    words: Mapping[str, str]
    """What widgets and charts say, by what they are."""

    def say(self, word: str, **values: object) -> str:
        """A word, with its placeholders filled in."""
        return self.words[word].format(**values) if values else self.words[word]


@cache
def lesson(language: str) -> dict[str, Chapter]:
    """The chapters of a language in their order, by name; the first, `page`, has the words around them all.

    A chapter that nobody translated is told in English.  Raises ValueError where a file does not have the form of a
    chapter.
    """
    chapters = []
    for english in sorted((FOLDER / "en").glob("*.md"), key=lambda path: int(path.stem.partition("-")[0])):
        translation = FOLDER / language / english.name
        chapters.append(_chapter(translation if translation.exists() else english))
    return {chapter.name: chapter for chapter in chapters}


def _chapter(path: Path) -> Chapter:
    number, _, name = path.stem.partition("-")
    parts = re.split(r"^## (.*)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = re.fullmatch(r"# ([^\n]+)\n\n(.*)", parts[0].strip(), re.DOTALL)
    if found is None:
        raise ValueError(f"{path.name} begins with no title and text")
    sections = dict(zip(parts[1::2], (p.strip() for p in parts[2::2]), strict=True))
    lines = [line for line in sections.get("Words", "").splitlines() if line.strip()]
    words = {}
    for line in lines:
        pair = re.fullmatch(r"- ([a-z0-9-]+): (.+)", line)
        if pair is None:
            raise ValueError(f"{path.name}: {line!r} is no word; write - name: what it says")
        words[pair[1]] = pair[2]
    return Chapter(
        int(number), name, found[1], found[2], sections.get("Question", ""), sections.get("Answer", ""), words
    )


def translated(said: str, language: str) -> str:
    """What is wrong, as the language of a lesson says it; a sentence that nobody translated follows as it is."""
    if not said:
        return ""
    sayings = _sayings(language)
    known = _known(said.strip().rstrip("."), sayings)
    if known is not None:
        return known
    return sayings[-1][1].format(said=said) if sayings else said


def _known(said: str, sayings: list[tuple[re.Pattern[str], str]]) -> str | None:
    """A translation, and that of what stands in its gaps where it has one; None where there is none."""
    for pattern, there in sayings[:-1]:
        if found := pattern.fullmatch(said):
            return there.format(**{gap: _listed(what, sayings) for gap, what in found.groupdict().items()})
    return None


def _listed(said: str, sayings: list[tuple[re.Pattern[str], str]]) -> str:
    """What stands in a gap: one thing or a list of them, without the full stop of a sentence."""
    reasons = [_known(part, sayings) or "" for part in said.split("; ")]
    if not all(reasons):
        reasons = [_known(said, sayings) or ""]
    if all(reasons):
        return "；".join(reason.rstrip("。") for reason in reasons)
    parts = [_known(part, sayings) or part for part in said.split(", ")]
    return ("、" if parts != said.split(", ") else ", ").join(parts)


@cache
def _sayings(language: str) -> list[tuple[re.Pattern[str], str]]:
    """Sentences of the library with gaps, and how a language says them; the last is for all others."""
    path = FOLDER / language / "errors.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as f:
        rows = [(row["english"], row["there"]) for row in csv.DictReader(f)]
    # A sentence begins with a large letter, and what follows a colon with a small one.
    return [
        (re.compile(re.sub(r"\\\{([a-z]+)\\\}", r"(?P<\1>.+?)", re.escape(english)), re.IGNORECASE | re.DOTALL), there)
        for english, there in rows
    ]
