"""What the address of a page may ask for: each parameter is checked by the setting that it belongs to.

An address may come from anybody, so the names in it never reach the file system or the network: what they stand for is
bundled, or in memory already.  What is wrong is a ValueError, and becomes one sentence on the page beside what is set
instead (`wrong`).  No Streamlit in here.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import texts
from analysis.models import gemma
from analysis.models.kinds import installed
from analysis.policies import Policy, parse
from analysis.settings import quoted

HASH = re.compile(r"sha256:[0-9a-f]{16}")
"""How an address names a text that was pasted or uploaded: by the first digits of its SHA-256."""

FITS = 300
"""Characters of what somebody typed that an address takes: links are shortened where they are passed on."""


@dataclass(frozen=True)
class Parameter:
    """One thing that an address says: `read` turns what is written into its value, or raises ValueError; `write` is the
    way back."""

    read: Callable[[str], Any]
    write: Callable[[Any], str] = str


Parameters = Mapping[str, Parameter]
YES, NO = ("1", "on", "true", "yes"), ("0", "off", "false", "no")
"""How a person writes whether something is so."""


def values(of: Parameters, asked: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """What an address asks of these parameters, and what is wrong with the others, each as a sentence's part."""
    found, problems = {}, []
    for name, parameter in of.items():
        if name in asked:
            try:
                found[name] = parameter.read(one(asked, name))
            except ValueError as e:
                problems.append(str(e))
    return found, problems


def one(asked: Mapping[str, str], name: str) -> str:
    """The one value that an address has for a name.  Raises ValueError where it has several."""
    # Streamlit's mapping of an address gives the last of them.
    several = dict.fromkeys(getattr(asked, "get_all", lambda _: ())(name))
    if len(several) > 1:
        raise ValueError(f"{name} has {len(several)} values")
    return asked[name]


def said(of: Parameters, now: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, str]:
    """What an address says of the values now: only those that are not as usual."""
    return {name: of[name].write(now[name]) for name in of if now.get(name) is not None and now[name] != usual[name]}


def one_of(name: str, choices: Collection[Any]) -> Parameter:
    """One of several choices, written as text."""
    written = {str(choice): choice for choice in choices}
    return Parameter(lambda asked: written[texts.checked(name, asked, written)])


def switch(name: str, off: str = NO[0], on: str = YES[0]) -> Parameter:
    """Whether something is so, as 1 or 0; `off`, `on`: how an address that a page makes says it."""
    return Parameter(
        lambda asked: int(texts.checked(name, asked.casefold(), (*YES, *NO)) in YES), lambda value: on if value else off
    )


def some_of(name: str, choices: Collection[Any]) -> Parameter:
    """Any of several choices, in their order, with commas between them; none of them is an empty text."""

    def read(asked: str) -> list[Any]:
        """Those choices that are named, in their order."""
        parts = [texts.checked(name, part, [*map(str, choices)]) for part in asked.split(",") if part]
        return [choice for choice in choices if str(choice) in parts]

    return Parameter(read, lambda chosen: ",".join(map(str, chosen)))


def whole(name: str, low: int, high: int) -> Parameter:
    """A whole number in digits."""
    return Parameter(lambda asked: number(name, asked, low, high))


def real(name: str, low: float, high: float) -> Parameter:
    """A number with or without a point."""

    def read(asked: str) -> float:
        """A number in the range."""
        try:
            # Longer than any float is written, and Python reads letters of other scripts as digits.
            found = float(asked) if asked.isascii() and len(asked) <= 32 and "_" not in asked else math.nan
        except ValueError:
            found = math.nan
        if not low <= found <= high:
            raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {quoted(asked)}")
        return found

    return Parameter(read, repr)


def several(name: str, parts: int, high: int, example: str) -> Parameter:
    """So many whole numbers up to `high` with points between them, as a tuple."""

    def read(asked: str) -> tuple[int, ...]:
        """Whole numbers in the range."""
        found = asked.split(".") if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})*", asked) else []
        if len(found) != parts or any(int(n) > high for n in found):
            raise ValueError(f"{name} must be written {example}, not {quoted(asked)}")
        return tuple(map(int, found))

    return Parameter(read, lambda numbers: ".".join(map(str, numbers)))


def line(name: str, longest: int) -> Parameter:
    """One line that a person typed."""

    def read(asked: str) -> str:
        """The line, as it was typed."""
        if len(asked) > longest or not asked.isprintable():
            raise ValueError(f"{name} must be one line of at most {longest:,} characters")
        return asked

    return Parameter(read)


def typed(name: str, longest: int) -> Parameter:
    """A line of a person's own, of at most so many characters; a long one travels as its hash."""

    def read(asked: str) -> str:
        """The line, as it was typed."""
        if len(asked) > longest or any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in asked):
            raise ValueError(f"{name} must be one line of at most {longest:,} characters")
        return asked

    return Parameter(read, lambda line: line if len(line) <= FITS and not HASH.fullmatch(line) else hashed(line))


def hashed(words: str) -> str:
    """How an address names what somebody typed, where it does not fit."""
    return named_text("", hashlib.sha256(words.encode()).hexdigest())


def wholes(name: str, most: int, low: int, high: int) -> Parameter:
    """At most so many whole numbers with commas between them, none of them twice."""

    def read(asked: str) -> tuple[int, ...]:
        """Whole numbers in the range."""
        parts = asked.split(",", most)
        if len(parts) > most:
            raise ValueError(f"{name} are at most {most} whole numbers with commas between them")
        return tuple(dict.fromkeys(number(name, part.strip(), low, high) for part in parts))

    return Parameter(read, lambda numbers: ",".join(map(str, numbers)))


def reals(name: str, most: int, low: float, high: float) -> Parameter:
    """At most so many numbers with commas between them, to four decimals."""
    one = real(name, low, high)

    def read(asked: str) -> tuple[float, ...]:
        """Numbers in the range."""
        parts = asked.split(",", most)
        if len(parts) > most:
            raise ValueError(f"{name} are at most {most} numbers with commas between them")
        return tuple(map(one.read, parts))

    def write(numbers: tuple[float, ...]) -> str:
        """To four decimals, without zeros at the end."""
        return ",".join(f"{round(n, 4) + 0.0:.4f}".rstrip("0").rstrip(".") for n in numbers)

    return Parameter(read, write)


def policy(written: str) -> Policy:
    """A policy that an address or a press on a page names.  Raises ValueError where it is none, or reads a file."""
    found = parse(written)
    if found.file:
        raise ValueError(
            f"{found.name} would read the file {quoted(found.file)}, and pages read no files by name: upload it beside "
            "the lane's settings, or use the command line"
        )
    if found.first not in ("own", "newlines", "bos"):
        text(found.first)
    return found


def lanes(written: Sequence[str], most: int, verb: str) -> list[str]:
    """Policies as they are written, at most so many; `verb`: what lanes do."""
    if len(written) > most:
        raise ValueError(f"at most {most} lanes {verb} at a time, not {len(written)}")
    return [str(policy(p)) for p in written]


def text(name: str) -> str:
    """The name of a bundled text."""
    if name not in texts.plays():
        raise ValueError(f"there is no bundled text {quoted(name)}")
    return name


def given_text(name: str) -> str:
    """The same, or the hash of a text that was pasted or uploaded."""
    return name if HASH.fullmatch(name) else text(name)


def named_text(name: str, sha256: str = "") -> str:
    """How an address names a text that is bundled, or has this SHA-256; empty where it cannot."""
    if name in texts.plays() or HASH.fullmatch(name):
        return name
    return f"sha256:{sha256[:16]}" if sha256 else ""


def model(name: str, known: Collection[str]) -> str:
    """The name of a model that is in use here already, or installed."""
    if name not in installed() | set(known):
        if name == gemma.NAME:
            raise ValueError(gemma.MISSING)
        raise ValueError(
            f"the model {quoted(name)} is not in use here, and an address fetches none: write its name under Model "
            "yourself, if you trust it"
        )
    return name


def known_model(known: Collection[str]) -> Parameter:
    """A model that is in use here already, or installed."""
    return Parameter(lambda name: model(name, known))


def number(name: str, written: str, low: int, high: int) -> int:
    """A whole number in digits."""
    if not (written.isascii() and written.isdecimal() and len(written) <= 12 and low <= int(written) <= high):
        raise ValueError(f"{name} must be a whole number from {low:,} to {high:,}, not {quoted(written)}")
    return int(written)


def wrong(problems: Sequence[str], instead: str = "That is left out.") -> str:
    """What to say on the page of what its address asks wrongly, if anything."""
    if not problems:
        return ""
    return f"The address of this page asks for something that cannot be: {'; '.join(problems)}. {instead}"
