"""A verdict whose numbers are round: a window that forgets, and sinks that come close to dense."""

from analysis.experiments.verdict import Entry, Pair, Verdict
from analysis.experiments.verdict.entries import Recall


def entry(policy: str, budget: int | None, excess: float, hits: int, older: tuple[int, int] = (0, 0)) -> Entry:
    """Of an entry that read 1,000 tokens, and was asked for two facts, of which some were older than its cache."""
    recall = {"passkey": Recall(2, hits, 0.1, 0.9, *older, 40 if hits else None)}
    megabytes = 8.0 if budget is None else budget / 32
    kl = excess / 2, 0.001
    return Entry(policy, budget, 1000, 10.0, excess, 0.001, *kl, 0.5, 2.0, megabytes, recall)


VERDICT = Verdict(
    "tiny",
    ["hamlet", "macbeth"],
    [
        entry("dense", None, 0.0, 2),
        entry("window:window=64", 64, 3.0, 0, (2, 0)),
        entry("window:window=128", 128, 2.0, 1, (1, 0)),
        entry("streaming:sinks=4,window=60,positions=cache", 64, 0.5, 0, (2, 0)),
        entry("streaming:sinks=4,window=124,positions=cache", 128, 0.01, 1, (1, 0)),
    ],
    [
        Pair(64, "perplexity", "window:window=64", "streaming:sinks=4,window=60,positions=cache", 2.5, 0.001),
        Pair(128, "perplexity", "window:window=128", "streaming:sinks=4,window=124,positions=cache", 1.99, 0.2),
        Pair(128, "passkey", "window:window=128", "streaming:sinks=4,window=124,positions=cache", 0.0, 1.0),
    ],
)
