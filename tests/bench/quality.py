"""Policies that rank slots: the perplexity that each leaves the model, and that of chance."""

import numpy as np

from analysis import texts
from analysis.engine.stream import open_lanes
from analysis.policies import Random, Ranked, Streaming, Window, parse

from .model import load
from .ranked import BUDGET, names
from .report import head, line
from .sizes import size

TEXT = size(2_000, 168)
BLOCK = size(100, 2)
"""Tokens over which a difference is averaged before its standard error is taken."""


def main() -> None:
    model = load()
    tokens = texts.tokenize(texts.read("hamlet"), model.tokenizer, limit=TEXT)
    head(f"ranked slots, budget {BUDGET}: perplexity over {len(tokens):,} tokens of Hamlet, and against chance")
    # Where layers kept everything, chance would need the same.
    chosen = [parse(f"{name}:budget={BUDGET}" + (",skip=0" if name == "knorm" else "")) for name in names()]
    for policy in (Streaming(4, BUDGET - 4), Window(BUDGET), *chosen):
        nll = read(model, tokens, policy)
        line(policy.label, float(np.exp(nll.mean())), "", digits=2)
        if isinstance(policy, Ranked) and not isinstance(policy, Random):
            # Chance with the same tokens protected, so that only the choice differs.
            protected = {"budget": BUDGET, "sinks": policy.sinks, "recent": max(1, policy.recent)}
            protected |= {"interval": policy.interval, "positions": policy.positions}
            apart = (nll - read(model, tokens, Random(**protected)))[BUDGET:]
            blocks = apart[: len(apart) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(1)
            error = blocks.std(ddof=1) / np.sqrt(len(blocks))
            line(
                f"  against random, {policy.sinks} sinks and {policy.recent} newest protected",
                apart.mean(),
                f"± {error:.3f}",
            )


def read(model, tokens, policy) -> np.ndarray:
    lane = open_lanes(model, tokens, [policy])[0]
    lane.context.trace(model.one_token)
    parts = []
    while not lane.done:
        parts.append(lane.read(512).nll)
    return np.concatenate(parts)
