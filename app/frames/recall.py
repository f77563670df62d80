"""The map of recall as its component draws it: a block of cells for each policy, dense first.

Lengths go across and depths down.  Where dense itself fails, the cells of the others say nothing of them, and are
marked so.  No Streamlit in here.
"""

from collections.abc import Sequence
from typing import Any

from plotly.colors import sample_colorscale, unlabel_rgb

from analysis.experiments.recall.asked import Asked
from analysis.experiments.recall.cells import Row
from analysis.experiments.recall.maps import Spot, failing, spots
from analysis.palette import labels
from analysis.policies import parse

SCALE = "Cividis"
"""Even to all eyes; the brighter the better, as in the figure."""
DARK = 0.179
"""Luminance below which white is easier to read on a colour than black (WCAG 2)."""
TOLD = 3
"""Answers that a cell tells at most."""


def ordered(policies: Sequence[str]) -> list[str]:
    """Policies as the blocks of a map stand: dense first."""
    return sorted(policies, key=lambda policy: policy != "dense")


def frame(
    rows: Sequence[Row],
    asked: Asked,
    policies: Sequence[str],
    measured: str,
    chosen: tuple[int, int, float] | None = None,
    now: tuple[str, int, float | None] | None = None,
) -> dict[str, Any]:
    """A frame of what was answered so far.

    `measured`: what cells show, `recalled` or `nll`; `chosen`: the cell that is looked at, as lane, length and depth;
    `now`: the policy, length and depth that are asked just now.
    """
    policies, found = ordered(policies), spots(rows)
    at = {(spot.policy, *spot.place): spot for spot in found}
    fails, top = failing(found), max([spot.nll for spot in found], default=1.0) or 1.0
    lengths, depths = sorted(set(asked.lengths)), sorted(set(asked.depths))
    blocks = []
    for policy, label in zip(policies, labels([parse(p) for p in policies]), strict=True):
        lines = []
        for depth in depths:
            line = []
            for length in lengths:
                spot, place = at.get((policy, length, round(depth, 1))), (length, round(depth, 1))
                words = [label, f"{length:,} tokens, depth {depth:g} %"]
                if spot is None:
                    state = "now" if now == (policy, length, depth) else "none"
                    words.append("asked just now" if state == "now" else "not asked yet")
                    line.append({"state": state, "text": "", "tip": "\n".join(words)})
                    continue
                failed = policy != "dense" and place in fails
                state = "fails" if failed else "done" if len(spot.rows) == asked.repeats else "part"
                line.append(
                    {"state": state, "tip": "\n".join([*words, *told(spot, failed)]), **look(spot, measured, top)}
                )
            lines.append(line)
        blocks.append({"label": label, "cells": lines})
    lane, length, depth = chosen or (-1, 0, 0.0)
    known = chosen is not None and lane < len(policies) and length in lengths and depth in depths
    return {
        "lengths": lengths,
        "depths": depths,
        "maps": blocks,
        "dense": "dense" in policies,
        "chosen": [lane, depths.index(depth), lengths.index(length)] if known else None,
        "colours": sample_colorscale(SCALE, [n / 8 for n in range(9)]),
        "scale": ["0 %", "100 % recalled"] if measured == "recalled" else [f"{top:.1f}", "0 nats per token"],
    }


def look(spot: Spot, measured: str, top: float) -> dict[str, str]:
    """Text, colour and colour of the text of a cell."""
    share = spot.recalled if measured == "recalled" else 1 - spot.nll / top
    share = min(1.0, max(0.0, share))
    hits, colour = sum(row.hit for row in spot.rows), sample_colorscale(SCALE, [share])[0]
    return {
        "text": f"{hits}/{len(spot.rows)}" if measured == "recalled" else f"{spot.nll:.1f}",
        "colour": colour,
        "ink": "#ffffff" if luminance(colour) < DARK else "#000000",
    }


def luminance(colour: str) -> float:
    """Of a colour as plotly writes it, rgb(r, g, b): relative luminance, 0 to 1 (WCAG 2)."""
    parts = [value / 255 for value in unlabel_rgb(colour)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def told(spot: Spot, failed: bool) -> list[str]:
    """What a cell says of itself, line by line."""
    kept = [row.kept for row in spot.rows if row.kept is not None]
    hits = sum(row.hit for row in spot.rows)
    lines = [f"{hits} of {len(spot.rows)} recalled, {spot.nll:.2f} nats per token"]
    lines += [f"{100 * sum(kept) / len(kept):.0f} % of the fact still in the cache"] if kept else []
    lines += ["dense fails here: this says nothing of the policy"] if failed else []
    for row in spot.rows[:TOLD]:
        said = "recalled" if row.hit else f"said {' '.join(row.said.split()) or 'nothing'}"
        lines.append(f"key {row.answer}: {said}, {row.nll:.2f} nats")
    if len(spot.rows) > TOLD:
        lines.append(f"and {len(spot.rows) - TOLD} more")
    return lines
