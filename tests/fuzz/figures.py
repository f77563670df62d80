"""Draws figures with texts that nobody would think of, at any venue and size, and looks where every word stands."""

import random
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np

from analysis.figures import FIGURES, parse
from analysis.figures.sheet import WIDTHS, Layout, drawn, saved

from .. import nasty
from .parsers import Row

RANGES = (
    (0x00, 0x7F), (0x80, 0x24F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F),
    (0x1100, 0x11FF), (0x2000, 0x206F), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7FF), (0xD800, 0xDFFF),
    (0xE000, 0xFFFF), (0x1F300, 0x1FAFF),
)  # fmt: skip


def rows(seed: int, tries: int) -> Iterator[Row]:
    """A row for each figure: `tries` drawings of random numbers, texts, venues and sizes."""
    for name in FIGURES:
        chance, refused, failures = random.Random(f"{seed} {name}"), 0, []
        for _ in range(tries):
            layout = Layout(chance.choice(list(WIDTHS)), chance.uniform(5, 13), chance.choice((50, 72, 150)))
            number = chance.randrange(10**6)
            data = nasty.numbers(name, number)
            if "text" in data:
                data["text"] = np.array([_word(chance) for _ in data["text"]])
            told = f"{layout}, numbers({name!r}, {number})"
            try:
                with drawn(parse(name), data, layout) as sheet:
                    # Letters thrown together at random may pile up marks that reach into the line above.
                    found = [w for w in nasty.misplaced(sheet) if "text" not in data or "leaves the page" in w]
                    failures += [f"{told}: {wrong}" for wrong in found]
                    ElementTree.fromstring(saved(sheet, name, "svg", {}))
            except ValueError as e:
                refused += 1
                if "choose fewer points" not in str(e):
                    failures.append(f"{told}: {e!r}")
            except Exception as e:
                failures.append(f"{told}: {e!r}")
        yield Row(name, tries, refused, failures)


def _word(chance: random.Random) -> str:
    low, high = chance.choice(RANGES)
    return "".join(chr(chance.randint(low, high)) for _ in range(chance.choice((1, 1, 2, 3, 5, 9))))
