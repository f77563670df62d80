"""Text of other people on a figure: made visible, and set in fonts that are there.

matplotlib shapes text with HarfBuzz and takes every character from the first font of a list that has it; what no font
has it draws as a box.  Here is said which fonts are in that list, and what none of them has.  What is drawn where is
not known here.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

SANS, MONO = ("DejaVu Sans",), ("DejaVu Sans Mono", "DejaVu Sans")
"""They come with matplotlib, so they are on every machine."""
SHAPERS = {0x200C, 0x200D, *range(0xFE00, 0xFE10), *range(0xE0020, 0xE0080)}
"""Joiners, variation selectors and tags: they choose the shape of their neighbours, and have none."""
HIDDEN = re.compile(
    # Controls, what changes the direction of what follows, separators of lines, and what no XML file may hold.
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufdd0-\ufdef\ufeff\ud800-\udfff\ufffe\uffff"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000))
    + "]"
)
SIGNS = {"\n": "⏎", "\t": "⇥"}


def visible(text: str) -> str:
    """The same text on one line: signs for newlines and tabs, and escapes such as \\x1b for all that nobody sees."""
    return HIDDEN.sub(lambda found: SIGNS.get(found[0]) or _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def families(text: str, first: tuple[str, ...] = SANS) -> list[str]:
    """Names of fonts for a text: the first ones, and as many others of this machine as it needs."""
    return [*first, *_chosen(_open_to(text, first), _tongue(text))[0]]


def absent(texts: Iterable[str]) -> str:
    """A sentence on what no font of this machine has; empty where all is there."""
    text = visible("".join(set("".join(texts))))
    _, missing = _chosen(_open_to(text, MONO), _tongue(text))
    if not missing:
        return ""
    scripts: dict[str, list[str]] = {}
    for character in missing:
        scripts.setdefault(_script(character), []).append(character)
    named = [f"{name} ({' '.join(found[:3])}{' …' if len(found) > 3 else ''})" for name, found in scripts.items()]
    return (
        f"No font on this machine has {', '.join(named[:4])}{' and more' if len(named) > 4 else ''}, so boxes stand in "
        "their place: install a font such as Noto Sans that has them, and draw again."
    )


def _script(character: str) -> str:
    """The first word of its name in Unicode, which for letters is their script."""
    if not (unicodedata.category(character).startswith(("L", "M"))):
        return "signs"
    return {"CJK": "Chinese characters"}.get(
        word := unicodedata.name(character, "unnamed letters").split(" ")[0], word.capitalize()
    )


def _tongue(text: str) -> str:
    """Of East Asian fonts, the ending of the one that has the shapes of this text."""
    if re.search("[\u3040-\u30ff]", text):
        return "JP"
    return "KR" if re.search("[\uac00-\ud7af]", text) else "SC"


def _open_to(text: str, first: tuple[str, ...]) -> frozenset[str]:
    """Characters that the first fonts do not have."""
    return frozenset(c for c in set(text) - set(" ") if ord(c) not in SHAPERS and not _first(first, ord(c)))


@cache
def _first(first: tuple[str, ...], code: int) -> bool:
    return any(_font(_path(name)).get_char_index(code) for name in first)


@lru_cache(256)
def _chosen(characters: frozenset[str], tongue: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fonts of this machine that have these characters between them, and the characters that none has.

    Each is the one that has most of what is missing; of equals the plainest, and that of the language.
    """
    missing, found = np.array(sorted(map(ord, characters)), np.uint32), []
    while len(missing):
        has = {name: np.isin(missing, codes) for name, codes in installed_fonts().items()}
        name = max(has, key=lambda n: (has[n].sum(), n.endswith(tongue), n.startswith("Noto Sans"), "Sans" in n, n))
        if not has[name].any():
            break
        found.append(name)
        missing = missing[~has[name]]
    return tuple(found), tuple(map(chr, missing.tolist()))


@cache
def installed_fonts() -> dict[str, NDArray[np.uint32]]:
    """Code points of each upright font of ordinary weight on this machine, by the name of its family.

    matplotlib draws outlines alone, so fonts of coloured signs are none.
    """
    from matplotlib.font_manager import fontManager

    upright = [f for f in fontManager.ttflist if f.style == "normal" and f.weight in (400, "normal", "regular")]
    found = {}
    for entry in upright:
        if entry.name in found or "Color" in entry.name or entry.name.startswith("."):
            continue
        try:
            found[entry.name] = np.array(sorted(_font(_path(entry.name)).get_charmap()), np.uint32)
        except (OSError, RuntimeError, ValueError):
            # It has been uninstalled, or cannot be read: then it has nothing.
            continue
    return found


def _font(path: str | tuple[str, ...]) -> "FT2Font":
    from matplotlib.font_manager import get_font

    return get_font(path)


def _path(name: str) -> str:
    from matplotlib.font_manager import findfont

    return findfont(name)


@lru_cache(8192)
def shaped(text: str, names: tuple[str, ...], size: float) -> tuple[tuple[tuple[str, float], ...], float]:
    """Clusters of a text of one direction from left to right, each with its left edge, and the width of all.

    In points, in fonts of these names and this size.  A cluster is what is shaped together: most often a character.
    """
    from matplotlib.ft2font import LoadFlags

    font = _font(_paths(names))
    font.set_size(size, 72)
    items = font._layout(text, LoadFlags.NO_HINTING)
    if not items:
        return (), 0.0
    last = items[-1].ft_object.load_glyph(items[-1].glyph_index, flags=LoadFlags.NO_HINTING)
    # Signs that only shape their neighbours take no room, whatever their glyph says.
    advance = 0 if not last.width and ord(items[-1].char[-1]) in SHAPERS else last.linearHoriAdvance / 65536
    return tuple((item.char, item.x) for item in items), items[-1].x + advance


@cache
def _paths(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_path(name) for name in names)
