"""What a cache of few bits costs in time: the same chunks and the same single tokens, with it and without."""

import time
from functools import partial

import numpy as np

from analysis import texts
from analysis.engine.stream import open_lanes
from analysis.policies import parse

from .chat import alternate, greedy, talking
from .model import load
from .report import compared, head
from .sizes import size

ROUNDS = size(12, 2)
CHUNKS = size((128, 512), (64,))
LENGTH = size(400, 100)
"""Tokens read before single ones are measured."""
ANSWERED = size(60, 3)
POLICIES = size(
    ("streaming:sinks=4,window=252", "h2o:budget=256,interval=16"),
    ("streaming:sinks=4,window=60", "h2o:budget=64,recent=32,interval=16"),
)
READING, ANSWERING = 0.8, 0.9
"""What int4 should reach of the same lane without, in chunks and in single tokens."""


def main() -> None:
    model = load()
    limit = max(LENGTH, (ROUNDS + 2) * max(CHUNKS)) + 1
    tokens = texts.tokenize(texts.read("hamlet"), model.tokenizer, limit=limit)
    for policy in POLICIES:
        head(f"A cache of few bits, {parse(policy).label}, float32")
        of = policy.split(":")[0]
        sides = {bits: parse(f"{policy},cache={bits},exact=4") for bits in ("int8", "int4")} | {"": parse(policy)}
        for chunk in CHUNKS:
            lanes = open_lanes(model, tokens, list(sides.values()))
            times: dict[str, list[float]] = {bits: [] for bits in sides}
            # The first two chunks fill the caches and are not measured.
            for _ in range(ROUNDS + 2):
                for (bits, _policy), lane in zip(sides.items(), lanes, strict=True):
                    began = time.perf_counter()
                    lane.read(chunk)
                    times[bits].append(time.perf_counter() - began)
            spent = {bits: np.array(t[2:]) for bits, t in times.items()}
            told(f"{of}, reading, chunks of {chunk}", spent, READING, chunk)
        steps = {bits: partial(greedy, talking(model, tokens[:LENGTH], kept)) for bits, kept in sides.items()}
        told(f"{of}, answering", alternate(steps, ANSWERED), ANSWERING, 1)


def told(what: str, times: dict[str, np.ndarray], asked: float, count: int) -> None:
    """Print the speed of each cache beside the one without; `times`: seconds of each turn, for `count` tokens each."""
    plain = times.pop("")
    for bits, spent in times.items():
        compared(
            f"{what}, {bits}",
            "the same lane without",
            theirs=count / np.median(plain),
            ours=count / np.median(spent),
            unit="tokens/s",
            asked=asked if bits == "int4" else None,
            ratio=float(np.median(plain / spent)),
        )
