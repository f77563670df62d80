"""What was found in the cells of a comparison: a line for each policy and budget, and tests of pairs.

All policies read the same tokens and are asked the same questions, so they are compared pair by pair: means of blocks
of tokens by Student's t test, answers by McNemar's exact test (1947); p values of one budget and task are adjusted for
how many pairs there are (Benjamini & Hochberg 1995).
"""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations, groupby
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ... import files, metrics
from ...policies import parse
from ...runs.reader import load
from ..recall.cells import Row, rows_of, wilson
from .plan import DENSE, READING, SECONDS, Plan, ReadingCell

FILE = "verdict.json"
LEVEL = 0.05
"""p values below this are told as a difference."""


class Recall(msgspec.Struct, frozen=True):
    """What a policy recalled of a task, of those facts that dense recalls."""

    asked: int
    """0 where dense recalls none."""
    hits: int
    low: float
    high: float
    """The 95 % interval of its rate (Wilson 1927)."""
    older: int
    """Facts that were older, in tokens, than the cache is large."""
    older_hits: int
    farthest: int | None
    """Tokens back to the oldest fact that it recalled; None where it recalled none that stands anywhere."""


class Entry(msgspec.Struct, frozen=True):
    """A policy at a budget.  Numbers that were not measured are None."""

    policy: str
    budget: int | None
    """Tokens; None: dense, which has none."""
    tokens: int
    """Predicted, of all texts together."""
    perplexity: float | None
    excess: float | None
    """Mean NLL above that of dense, nats/token, and its standard error over blocks."""
    error: float | None
    kl: float | None
    """Mean KL(dense ‖ policy), nats/token, and its standard error over blocks."""
    kl_error: float | None
    agreement: float | None
    """Share of tokens before which both have the same most probable one."""
    milliseconds: float | None
    """Compute time of a token of the texts."""
    megabytes: float | None
    """Of keys and values, at most."""
    recall: dict[str, Recall]
    """By task."""

    @property
    def title(self) -> str:
        """The policy without its sizes, and what was changed about it."""
        policy = parse(self.policy)
        return ", ".join((policy.title, *policy.changes))

    @property
    def relative(self) -> float | None:
        """Perplexity over that of dense."""
        return None if self.excess is None else math.exp(self.excess)


class Pair(msgspec.Struct, frozen=True):
    """Two policies at one budget, by one task."""

    budget: int
    task: str
    one: str
    other: str
    difference: float
    """Of mean NLL in nats/token, or of the share recalled: the first less the second."""
    p: float | None
    """That a difference so large or larger comes by chance, adjusted for the number of pairs; None: too little was
    read."""


class Verdict(msgspec.Struct, frozen=True):
    """All entries, dense first, and all pairs."""

    model: str
    texts: list[str]
    """That were read; none where none was."""
    entries: list[Entry]
    pairs: list[Pair]
    blocks: int | None = None
    """Of the texts, whose means are tested; None where that was not written down."""

    def alike(self, entry: Entry, task: str = "perplexity") -> bool:
        """Whether an entry is the best of its budget by a task, or no significant distance from it."""
        of = [e for e in self.entries if e.budget == entry.budget and quality(e, task) is not None]
        if entry.budget is None or entry not in of:
            return False
        best = max(of, key=lambda e: quality(e, task) or 0.0)
        found = [
            p for p in self.pairs
            if (p.budget, p.task) == (entry.budget, task) and {p.one, p.other} == {best.policy, entry.policy}
        ]  # fmt: skip
        return entry == best or any(p.p is None or p.p >= LEVEL for p in found)


def quality(entry: Entry, task: str) -> float | None:
    """How good an entry is by a task: more is better.  None where it was not measured."""
    if task in READING:
        loss = entry.excess if task == "perplexity" else entry.kl
        return None if loss is None else -loss
    found = entry.recall.get(task)
    return None if found is None or not found.asked else found.hits / found.asked


class _Found:
    """What is finished of a plan, by policy.

    `rows` of each task and policy: the answer to a question, by the number of its text and its own in it, which are
    the same under all policies.
    """

    def __init__(self, plan: Plan, place: Path) -> None:
        self.plan, self.place = plan, place
        self.rows = {
            (task, policy): {
                (cell, question): row
                for cell, of in enumerate(plan.recall(task, policy))
                for question, row in enumerate(rows_of([of], place))
            }
            for task in plan.recalled
            for policy in plan.members
        }
        self.readings = {policy: self._readings(plan.readings(policy)) for policy in plan.members}

    def _readings(self, cells: Sequence[ReadingCell]) -> list["_Reading"]:
        """Those of all texts, or none: a number over some of them is not to be held against one over all."""
        if not all((self.place / cell.name / SECONDS).exists() for cell in cells):
            return []
        return [_Reading(self.place / cell.name, cell.spec.text) for cell in cells]

    def recalled_by_dense(self, task: str, policy: str) -> dict[tuple[int, int], Row]:
        """The answers of a policy to those questions that dense answers right."""
        dense = self.rows[task, DENSE]
        return {key: row for key, row in self.rows[task, policy].items() if key in dense and dense[key].hit}


class _Reading:
    """A finished reading: NLL of dense and of the policy, and what the policy took."""

    def __init__(self, folder: Path, text: str) -> None:
        run = load(folder)
        self.model = "" if run.model is None else run.model.name
        self.text = text
        self.dense, self.nll = (run.tracks[lane].nll.view().astype(np.float64) for lane in (0, -1))
        # Dense alone is what it would be measured against.
        alone = len(run.tracks) == 1
        self.kl = np.zeros(len(self.nll)) if alone else run.tracks[-1].kl.view().astype(np.float64)
        self.agree = np.ones(len(self.nll)) if alone else run.tracks[-1].agree.view().astype(np.float64)
        self.seconds = files.record(folder / SECONDS, list[float], "that of a reading")[-1]
        self.bytes = int(run.tracks[-1].cache_bytes.view()[: len(self.nll)].max())

    def of(self, task: str) -> NDArray[np.float64]:
        """What a task measures of each token: less is better; empty where it was not measured."""
        return self.nll - self.dense if task == "perplexity" else self.kl


def verdict(plan: Plan, place: Path) -> Verdict:
    """What the finished cells of a plan say.  Raises ValueError where one is damaged."""
    found = _Found(plan, place)
    readings = [reading for of in found.readings.values() for reading in of]
    return Verdict(
        readings[0].model if readings else plan.base.model,
        list(dict.fromkeys(reading.text for reading in readings)),
        [_entry(found, policy, budget) for policy, budget in plan.members.items()],
        [*_pairs(found)],
        max((sum(len(r.nll) // metrics.BLOCK for r in of) for of in found.readings.values()), default=0),
    )


def read_verdict(folder: Path) -> Verdict:
    """The verdict that lies in a folder.  Raises ValueError where there is none, or it is damaged."""
    return files.record(folder / FILE, Verdict, "that of a comparison of policies")


def _entry(found: _Found, policy: str, budget: int | None) -> Entry:
    readings = found.readings[policy]
    recall = {
        task: _recall([*found.recalled_by_dense(task, policy).values()], budget)
        for task in found.plan.recalled
        if found.rows[task, policy].keys() & found.rows[task, DENSE].keys()
    }  # fmt: skip
    if not readings:
        return Entry(policy, budget, 0, None, None, None, None, None, None, None, None, recall)
    nll = np.concatenate([r.nll for r in readings])
    excess, error = _mean(readings, "perplexity")
    kl, kl_error = _mean(readings, "kl")
    agree = np.concatenate([r.agree for r in readings])
    return Entry(
        policy,
        budget,
        len(nll),
        metrics.perplexity(nll),
        excess,
        error,
        kl,
        kl_error,
        float(agree.mean()) if len(agree) == len(nll) else None,
        1000 * sum(r.seconds for r in readings) / len(nll),
        max(r.bytes for r in readings) / 1e6,
        recall,
    )


def _mean(readings: Sequence[_Reading], task: str) -> tuple[float | None, float | None]:
    """Over all tokens of all texts, and its standard error over blocks."""
    each = [r.of(task) for r in readings]
    if any(len(values) != len(r.nll) for values, r in zip(each, readings, strict=True)):
        return None, None
    error = metrics.standard_error(np.concatenate([metrics.block_means(values) for values in each]))
    return float(np.concatenate(each).mean()), None if math.isnan(error) else error


def _recall(rows: Sequence[Row], budget: int | None) -> Recall:
    hits, placed = sum(row.hit for row in rows), [row for row in rows if row.distance is not None]
    older = [row for row in placed if budget is not None and (row.distance or 0) > budget]
    return Recall(
        len(rows),
        hits,
        *(wilson(hits, len(rows)) if rows else (0.0, 1.0)),
        len(older),
        sum(row.hit for row in older),
        max((row.distance or 0 for row in placed if row.hit), default=None),
    )


def _pairs(found: _Found) -> Iterable[Pair]:
    members = [(policy, budget) for policy, budget in found.plan.members.items() if budget is not None]
    for budget, of in groupby(sorted(members, key=lambda m: m[1]), key=lambda m: m[1]):
        policies = [policy for policy, _ in of]
        for task in (*READING, *found.plan.recalled):
            test = _paired_texts if task in READING else _paired_answers
            tested = [(a, b, *test(found, task, a, b)) for a, b in combinations(policies, 2)]
            adjusted = _adjusted([p for *_, p in tested])
            for (a, b, difference, _), p in zip(tested, adjusted, strict=True):
                if not math.isnan(difference):
                    yield Pair(budget, task, a, b, difference, None if math.isnan(p) else p)


def _adjusted(p: Sequence[float]) -> Sequence[float]:
    """p values of one family of tests; NaN where there was nothing to test."""
    from scipy.stats import false_discovery_control

    values = np.array(p, np.float64)
    known = ~np.isnan(values)
    if known.any():
        values[known] = false_discovery_control(values[known])
    return values.tolist()


def _paired_texts(found: _Found, task: str, one: str, other: str) -> tuple[float, float]:
    """Difference of what a task measures over the texts that both have read, and its p value."""
    from scipy.stats import ttest_1samp

    texts = {r.text: r for r in found.readings[other]}
    both = [(r.of(task), texts[r.text].of(task)) for r in found.readings[one] if r.text in texts]
    if not both or any(len(a) != len(b) or not len(a) for a, b in both):
        return math.nan, math.nan
    difference = np.concatenate([a - b for a, b in both])
    blocks = np.concatenate([metrics.block_means(a - b) for a, b in both])
    if len(blocks) < 2:
        return float(difference.mean()), math.nan
    # Policies that have evicted nothing are one: what rounding makes of them is no difference, however regular it is.
    longest = max(len(a) for a, _ in both)
    alike = np.ptp(blocks) == 0 == blocks[0] or all(parse(p).equals_dense(longest) for p in (one, other))
    return float(difference.mean()), 1.0 if alike else float(ttest_1samp(blocks, 0.0).pvalue)


def _paired_answers(found: _Found, task: str, one: str, other: str) -> tuple[float, float]:
    """Difference of the shares recalled, of what both were asked and dense recalls, and its p value."""
    from scipy.stats import binomtest

    a, b = (found.recalled_by_dense(task, policy) for policy in (one, other))
    both = [(row.hit, b[key].hit) for key, row in a.items() if key in b]
    if not both:
        return math.nan, math.nan
    gained, lost = sum(x and not y for x, y in both), sum(y and not x for x, y in both)
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return (gained - lost) / len(both), p
