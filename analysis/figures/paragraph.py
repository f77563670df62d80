"""Tokens as lines of text: broken where a line is full, shaped as whole runs, each script in its own direction.

A token may be part of a word, of a joined letter or of a syllable, so what is shaped is never a token but the run that
it stands in; the token then gets its part of the run.  What is drawn behind or under it is not known here.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import bidi.algorithm as bidi

from .fonts import shaped, visible


@dataclass(frozen=True)
class Run:
    """Text of one direction, in points from the left edge of its line."""

    text: str
    """As it is read; where it has no letters and runs from right to left, as it is seen."""
    left: float
    width: float
    backwards: bool
    """Whether it is read from right to left."""
    parts: tuple[tuple[int, float, float], ...]
    """Token, left and right edge of what each token has of it."""


Line = tuple[Run, ...]


def lines(texts: Sequence[str], width: float, names: tuple[str, ...], size: float) -> list[Line]:
    """Tokens in lines of at most so many points, in fonts of these names; a newline ends its line.

    Lines of a paragraph that begins with a letter of Hebrew or Arabic begin at the right.
    """
    paragraphs: list[list[tuple[int, str]]] = [[]]
    for token, text in enumerate(texts):
        for part in re.findall("[^\n]*\n|[^\n]+", text):
            paragraphs[-1].append((token, visible(part)))
            if part.endswith("\n"):
                paragraphs.append([])
    found = []
    for paragraph in filter(None, paragraphs):
        base = bidi.get_base_level("".join(text for _, text in paragraph))
        found += [_line(row, base, width, names, size) for row in _broken(paragraph, width, names, size)]
    return found


def _broken(
    paragraph: Sequence[tuple[int, str]], width: float, names: tuple[str, ...], size: float
) -> Iterator[list[tuple[int, str]]]:
    def wide(text: str) -> float:
        return shaped(text, names, size)[1]

    row, about = [], 0.0
    for token, text in paragraph:
        about += wide(text)
        # Tokens that join take less room, so a line is measured as a whole where it may be full.
        if row and about > 0.8 * width and (about := wide("".join(t for _, t in row) + text)) > width:
            yield row
            row, about = [], wide(text)
        while len(text) > 1 and wide(text) > width:
            # Wider than a line: as much of it as goes in.
            fits = max(1, bisect_right(range(1, len(text)), width, key=lambda n: wide(text[:n])))
            yield [(token, text[:fits])]
            text = text[fits:]
            about = wide(text)
        row.append((token, text))
    yield row


def _line(row: Sequence[tuple[int, str]], base: int, width: float, names: tuple[str, ...], size: float) -> Line:
    owners = [token for token, text in row for _ in text]
    runs, left = [], 0.0
    for text, positions, backwards in directed("".join(text for _, text in row), base):
        edges, wide = _edges(text, names, size, backwards)
        parts = []
        for token, group in groupby(zip(positions, edges, strict=True), key=lambda p: owners[p[0]]):
            sides = [side for _, edge in group for side in edge]
            parts.append((token, left + min(sides), left + max(sides)))
        runs.append((text, left, wide, backwards, parts))
        left += wide
    shift = max(0.0, width - left) if base else 0.0
    return tuple(
        Run(text, x + shift, wide, backwards, tuple((t, a + shift, b + shift) for t, a, b in parts))
        for text, x, wide, backwards, parts in runs
    )


def directed(text: str, base: int) -> Iterator[tuple[str, list[int], bool]]:
    """Runs of one direction, from left to right: text, position of each character, whether it runs leftwards.

    By the Unicode bidirectional algorithm; `base` 1: the paragraph runs from right to left.
    """
    storage = bidi.get_empty_storage()
    storage |= {"base_level": base, "base_dir": "LR"[base]}
    bidi.get_embedding_levels(text, storage)
    for position, character in enumerate(storage["chars"]):
        character["position"] = position
        # What Unicode has not yet given to anyone has no type, and stands as it is read.
        character["type"] = character["type"] or "L"
    bidi.explicit_embed_and_overrides(storage, False)
    kept = [c["position"] for c in storage["chars"]]
    bidi.resolve_weak_types(storage, False)
    _pair(storage["chars"], "LR"[base])
    bidi.resolve_neutral_types(storage, False)
    bidi.resolve_implicit_levels(storage, False)
    level = {c["position"]: c["level"] for c in storage["chars"]}
    # What the algorithm leaves out, such as joiners, goes with what stands before it.
    levels, before = [], level[kept[0]] if kept else base
    for position in range(len(text)):
        before = level.get(position, before)
        levels.append(before)
    runs = [list(group) for _, group in groupby(range(len(text)), key=levels.__getitem__)]
    # Rule L2: from the highest level down, whatever has at least this level is reversed.
    for lowest in range(max(levels, default=0), 0, -1):
        order: list[list[int]] = []
        for high, group in groupby(runs, key=lambda run: levels[run[0]] >= lowest):
            order += [*group][:: -1 if high else 1]
        runs = order
    for run in runs:
        written, backwards = "".join(text[p] for p in run), bool(levels[run[0]] % 2)
        if backwards and not any(bidi.bidirectional(c) in ("R", "AL") for c in written):
            # Nothing in it says that it runs leftwards, so it is written as it is seen.
            yield "".join(bidi.MIRRORED.get(c, c) for c in reversed(written)), run[::-1], False
        else:
            yield written, run, backwards


def _pair(characters: Sequence[dict], base: str) -> None:
    """Brackets that belong together have one direction: rule N0, which the library does not have."""
    strong = ["L" if c["type"] == "L" else "R" if c["type"] in ("R", "AL", "EN", "AN") else "" for c in characters]
    opened, pairs = [], []
    for at, character in enumerate(characters):
        sign = character["ch"]
        if unicodedata.category(sign) == "Ps" and sign in bidi.MIRRORED:
            opened.append((at, bidi.MIRRORED[sign]))
            continue
        closed = next((i for i in range(len(opened) - 1, -1, -1) if opened[i][1] == sign), None)
        if closed is not None:
            pairs.append((opened[closed][0], at))
            del opened[closed:]
    for first, last in sorted(pairs):
        inside = set(strong[first + 1 : last]) - {""}
        if not inside:
            continue
        before = next((s for s in reversed(strong[:first]) if s), base)
        kind = base if base in inside or before == base else "LR"[base == "L"]
        for at in (first, last):
            characters[at]["type"] = strong[at] = kind


def _edges(text: str, names: tuple[str, ...], size: float, backwards: bool) -> tuple[list[tuple[float, float]], float]:
    """Left and right edge of every character of a run, and its width; a cluster's characters have equal parts."""
    glyphs, width = shaped(text, names, size)
    clusters: list[tuple[str, float, float]] = []
    blocks = [(cluster, [x for _, x in group]) for cluster, group in groupby(glyphs, key=lambda g: g[0])]
    rest = text
    for i, (cluster, xs) in enumerate(blocks):
        # A cluster may have several glyphs, and stand there several times.
        end, times = blocks[i + 1][1][0] if i + 1 < len(blocks) else width, 0
        while cluster and (rest.endswith(cluster) if backwards else rest.startswith(cluster)):
            rest, times = rest[: len(rest) - len(cluster)] if backwards else rest[len(cluster) :], times + 1
        lefts = xs[:: max(1, len(xs) // max(1, times))][:times]
        clusters += [(cluster, a, b) for a, b in zip(lefts, [*lefts[1:], end], strict=False)]
    if rest or sum(len(c) for c, _, _ in clusters) != len(text):
        # The shaper joined what cannot be told apart: equal parts for all.
        clusters = [(text, 0.0, width)]
    edges = []
    for cluster, a, b in clusters[::-1] if backwards else clusters:
        step = (b - a) / len(cluster)
        for n in range(len(cluster)):
            edges.append((b - (n + 1) * step, b - n * step) if backwards else (a + n * step, a + (n + 1) * step))
    return edges, width
