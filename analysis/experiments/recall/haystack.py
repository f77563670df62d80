"""What a fact is hidden in: sentences that say nothing, again and again, or the lines of a bundled play."""

from collections.abc import Callable, Sequence
from random import Random

from ... import texts
from .base import Exchange, Place, Sample
from .encoding import Tokens

FILLER = "filler"
SENTENCES = (
    "The grass is green. ",
    "The sky is blue. ",
    "The sun is yellow. ",
    "Here we go. ",
    "There and back again. ",
)
"""The filler of Mohtashami and Jaggi 2023."""
LETTERS = 12
"""Characters of a token, at most on average: so much of a play is taken for a text."""
PLAIN = r"filler|[\w.\-]{1,80}"
HELP = "What it is hidden in: filler (five sentences, again and again), or a bundled play such as hamlet."


def parts_of(haystack: str, length: int, dice: Random) -> tuple[str, ...]:
    """Sentences or lines, of more tokens than `length`; of a play they begin at a line that the dice choose.

    Raises ValueError where there is no such play.
    """
    if haystack == FILLER:
        # Each has three tokens or more.
        return SENTENCES * (length // (3 * len(SENTENCES)) + 1)
    lines = [f"{line.strip()}\n" for line in (texts.play(haystack).content or "").split("\n") if line.strip()]
    begin, found, size = dice.randrange(len(lines)), [], 0
    while size <= LETTERS * length:
        found.append(lines[(begin + len(found)) % len(lines)])
        size += len(found[-1])
    return tuple(found)


def hidden(
    place: Place,
    tokens: Tokens,
    parts: tuple[str, ...],
    needles: Sequence[tuple[float, str]],
    *,
    before: str,
    question: str,
    answer: str,
) -> Sample:
    """A text of at most `place.length` tokens: parts of a haystack, with needles at depths in % of these parts' tokens.

    The first needle says the answer.  Raises ValueError where there is no room for the needles and the question.
    """
    bare = tokens.count("".join((before, *(text for _, text in needles), question, answer)))
    if bare > place.length:
        raise ValueError(
            f"the fact and the question need {bare} tokens, more than {place.length}: choose a larger length"
        )
    counts = tokens.each(parts)
    many, taken = 0, bare
    while many < len(parts) and taken + counts[many] <= place.length:
        taken += counts[many]
        many += 1
    while True:
        exchange = _put(parts[:many], counts[:many], needles, before, question, answer)
        # Where two pieces meet, there may be a token more than in each alone.
        if not many or tokens.count(exchange.before + question + answer) <= place.length:
            return Sample((exchange,))
        many -= 1


def _put(
    parts: Sequence[str], counts: Sequence[int], needles: Sequence[tuple[float, str]], before: str, question: str,
    answer: str,
) -> Exchange:  # fmt: skip
    """The needles between the parts, each where its share of the tokens is nearest."""
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count)

    def gap(depth: float) -> int:
        return min(range(len(ends)), key=lambda i: abs(ends[i] - depth / 100 * ends[-1]))

    text, at, begin = before, 0, 0
    for number, (depth, needle) in sorted(enumerate(needles), key=lambda n: n[1][0]):
        text += "".join(parts[at : gap(depth)])
        at = gap(depth)
        if number == 0:
            begin = len(text)
        text += needle
    text += "".join(parts[at:])
    return Exchange(text, question, answer, (begin, begin + len(needles[0][1].rstrip())))


def fill(one: Callable[[int], str], length: int, tokens: Tokens, fixed: str) -> list[str]:
    """As many texts `one(0)`, `one(1)` … as fit into `length` tokens beside `fixed`."""
    found, room = [], length - tokens.count(fixed)
    while (room := room - tokens.each((one(len(found)),))[0]) >= 0:
        found.append(one(len(found)))
    return found


def streamed(exchanges: list[Exchange], length: int, tokens: Tokens, *, stays: bool) -> Sample:
    """As many of the exchanges, from the first on, as `length` tokens have room for.  Raises ValueError where that is
    none."""
    text, ends = "", []
    for e in exchanges:
        ends.append(len(text := text + e.before + e.question + e.answer))
    while ends and tokens.count(text[: ends[-1]]) > length:
        ends.pop()
    if not ends:
        raise ValueError(f"{length} tokens have no room for one question: choose a larger length")
    return Sample(tuple(exchanges[: len(ends)]), stays)
