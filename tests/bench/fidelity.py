"""What it costs to measure lanes against one of them: the same chunks of the same lanes, with and without."""

import time

import numpy as np

from analysis import texts
from analysis.engine.lane import Lane
from analysis.engine.stream import open_lanes
from analysis.policies import Streaming, Window

from .model import load
from .report import head, line
from .sizes import size

ROUNDS = size(9, 2)
CHUNK = size(512, 16)
CACHE = size(256, 64)
MARK = 1.15


def main() -> None:
    head(f"Fidelity: three lanes of {CACHE} cached tokens, two of them measured against the first, chunks of {CHUNK}")
    for dtype in ("float32", "bfloat16"):
        model = load(dtype=dtype)
        tokens = texts.tokenize(texts.read("hamlet"), model.tokenizer, limit=CACHE + (ROUNDS + 1) * CHUNK + 1)
        sides = {fidelity: _lanes(model, tokens, fidelity) for fidelity in (False, True)}
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(ROUNDS):
            for fidelity in (False, True) if turn % 2 else (True, False):
                times[fidelity].append(_read(sides[fidelity], CHUNK))
        ratio = float(np.median(np.divide(times[True], times[False])))
        line(
            f"{dtype}: reading with fidelity over reading alone", ratio, f"at most {MARK}", unit="×", good=ratio <= MARK
        )


def _lanes(model, tokens, fidelity: bool) -> list[Lane]:
    lanes = open_lanes(
        model, tokens, [Streaming(4, CACHE - 4), Window(CACHE), Streaming(1, CACHE - 1)], fidelity=fidelity
    )
    _read(lanes, CACHE)
    return lanes


def _read(lanes: list[Lane], count: int) -> float:
    """Seconds in which all lanes read so many tokens more."""
    began = time.perf_counter()
    for lane in lanes:
        lane.read(count)
    return time.perf_counter() - began
