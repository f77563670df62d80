"""A verdict as a person reads it: one sentence, and tables."""

import re
from collections.abc import Callable, Sequence

import msgspec

from ... import metrics
from ...models.kinds import named
from ...palette import labels
from ...policies import parse
from ...tables import as_csv, as_markdown, ungrouped
from ...texts import titled
from .entries import FILE, LEVEL, Entry, Recall, Verdict
from .plan import READING

FEW = 5
"""Blocks of which fewer tell little apart: with two of them a difference must be 13 standard errors."""
WITHIN = 0.02
"""How far above dense's a perplexity may be."""


def caption(found: Verdict) -> str:
    """What columns and marks mean, and how much was tested, without its full stop."""
    on = ""
    if found.texts and found.blocks is not None:
        counted = f"{found.blocks} block{'s' * (found.blocks != 1)} of {metrics.BLOCK} tokens"
        on = f"; {counted} are tested" if found.blocks > 1 else f"; {counted} is too little for a test"
        on += ", which tell little apart" if 1 < found.blocks < FEW else ""
    of = ["Of recall: facts that dense recalls"] if any(e.recall for e in found.entries) else []
    of += ["Excess NLL and KL: nats/token", "ms/token: compute time of reading, on this machine"] if found.texts else []
    return ". ".join((f"≈: the best of its budget, or not told from it by a paired test (p ≥ {LEVEL:g}){on}", *of))


def written(found: Verdict) -> dict[str, str]:
    """All files that keep a verdict, by name: for programs, for spreadsheets, and for people."""
    header, rows = table(found)
    pairs = [
        [str(p.budget), p.task, p.one, p.other, f"{p.difference:.6f}", "" if p.p is None else f"{p.p:.6g}"]
        for p in found.pairs
    ]
    words = ["# Policies at budgets", about(found), sentence(found), as_markdown(header, rows), f"{caption(found)}."]
    return {
        FILE: msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n",
        "table.csv": as_csv(header, ([name, *map(_alone, cells)] for name, *cells in rows)),
        "pairs.csv": as_csv(["Budget", "Task", "Policy", "Other policy", "Difference", "p"], pairs),
        "table.md": "\n\n".join(w.strip() for w in words) + "\n",
    }


def _alone(cell: str) -> str:
    """A cell of the table as one of CSV: 3/4 is the third of April to a spreadsheet."""
    return ungrouped(re.sub(r"\A(\d+)/(\d+)", r"\1 of \2", cell))


def about(found: Verdict) -> str:
    """Which model was compared on which texts, and on how many of their tokens."""
    said = named(found.model)
    if count := max((e.tokens for e in found.entries), default=0):
        # Nobody predicts the first one of a text.
        said += f" on {_texts(found)} ({count + len(found.texts):,} tokens)"
    return f"{said}."


def sentence(found: Verdict) -> str:
    """Which cache is the smallest that is as good as dense, and what it forgets.

    Of policies with the same budget the better is named; where nothing was read, that which recalls most.
    """
    rivals = [e for e in found.entries if e.budget is not None]
    read = [e for e in rivals if e.relative is not None]
    if read:
        on, close = _texts(found), [e for e in read if _above(e) <= WITHIN]
        if close:
            chosen = min(close, key=lambda e: (e.budget or 0, e.excess or 0.0))
            said = f"The smallest cache within {100 * WITHIN:g} % of dense on {on} is {_named(found, chosen)}"
        else:
            chosen, most = min(read, key=lambda e: e.excess or 0.0), max(e.budget or 0 for e in read)
            said = f"No cache of up to {most:,} tokens comes within {100 * WITHIN:g} % of dense on {on}: nearest is "
            said += _named(found, chosen)
        said += f" ({_percent(chosen)})" + _alike(found, chosen, close or read, READING[:1])
    else:
        asked = [(e, hits, of) for e in rivals for hits, of in [_in_all(e)] if of]
        if not asked and not any(e.recall for e in rivals):
            return "No policy but dense has been measured yet."
        if not asked:
            return "Dense has recalled nothing that was asked, so nothing can be said of what a policy forgets."
        chosen, hits, of = max(asked, key=lambda found: (found[1] / found[2], -(found[0].budget or 0)))
        said = f"Most is recalled by {_named(found, chosen)}: {hits} of {of}"
        said += _alike(found, chosen, [e for e, *_ in asked], [task for task, r in chosen.recall.items() if r.asked])
    forgotten = [f"{_forgets(r)} ({task}: {_of(r)})" for task, r in chosen.recall.items() if r.older]
    if forgotten:
        said += f"; at {chosen.budget:,} tokens {_and(forgotten, 'it ')}"
    if beyond := [task for task, r in chosen.recall.items() if not r.asked]:
        said += f"; dense itself recalls nothing of {_listed(beyond)}"
    return f"{said}."


def _alike(found: Verdict, chosen: Entry, among: Sequence[Entry], tasks: Sequence[str]) -> str:
    """Those of the same budget that no test of these tasks tells from the one that is named."""
    of = {
        (frozenset((p.one, p.other)), p.task): p.p is None or p.p >= LEVEL
        for p in found.pairs if p.budget == chosen.budget
    }  # fmt: skip
    others = [
        names(found)[found.entries.index(e)] for e in among if e.budget == chosen.budget and e is not chosen
        and all(of.get((frozenset((chosen.policy, e.policy)), task), False) for task in tasks)
    ]  # fmt: skip
    return f", and no test tells it from {_listed(others)}" if others else ""


def _forgets(recall: Recall) -> str:
    """What a cache does with facts that are older than it is large."""
    if not recall.older_hits:
        oldest = "its cache is large" if recall.farthest is None else f"{recall.farthest:,} tokens"
        return f"forgets everything older than {oldest}"
    if recall.older_hits == recall.older:
        return "forgets nothing of what was asked that is older than its cache is large"
    return "forgets some of what is older than its cache is large"


def _in_all(entry: Entry) -> tuple[int, int]:
    """How many facts of all tasks an entry recalls, and how many it was asked for."""
    return sum(r.hits for r in entry.recall.values()), sum(r.asked for r in entry.recall.values())


def _of(recall: Recall) -> str:
    return f"{recall.older_hits} of {recall.older} recalled"


def _and(parts: Sequence[str], before: str) -> str:
    return " and ".join(before + part if i == 0 else part for i, part in enumerate(parts))


def _named(found: Verdict, entry: Entry) -> str:
    return f"{names(found)[found.entries.index(entry)]} at {entry.budget:,} tokens"


def names(found: Verdict) -> list[str]:
    """Of each entry, in their order: the policy without its sizes, where its budget tells it from all others."""
    whole = labels([parse(e.policy) for e in found.entries])
    titles = [(e.title, e.budget) for e in found.entries]
    plain = {title for title, _ in titles if all(titles.count((title, e.budget)) < 2 for e in found.entries)}
    return [e.title if e.title in plain else label for e, label in zip(found.entries, whole, strict=True)]


def _above(entry: Entry) -> float:
    return (entry.relative or 1.0) - 1.0


def _percent(entry: Entry) -> str:
    """How far the perplexity is from dense's, with its standard error."""
    error = "" if entry.error is None else f" ± {100 * entry.error * (entry.relative or 1.0):.1f}"
    return f"perplexity {100 * _above(entry):+z.1f}{error} %".replace("-", "−")


def _texts(found: Verdict) -> str:
    return _listed([titled(text) for text in found.texts])


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:-1]) + (" and " if texts[1:] else "") + texts[-1]


def table(found: Verdict, *, narrow: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a line for each policy and budget; ≈ marks what no test tells from the best of its budget.

    `narrow`: without what other columns say, too.
    """
    tasks = list(dict.fromkeys(task for e in found.entries for task in e.recall))
    left_out = {"Perplexity", "Excess NLL"} if narrow else set()
    if all(e.budget is None or e.kl is None for e in found.entries):
        left_out |= {"KL", "Top-1"}
    read = {title: say for title, say in READ.items() if any(e.tokens for e in found.entries) and title not in left_out}
    header, rows = ["Policy", "Budget", *read, *tasks], []
    for name, e in zip(names(found), found.entries, strict=True):
        numbers = [say(found, e) if e.tokens else "–" for say in read.values()]
        budget = "–" if e.budget is None else f"{e.budget:,}"
        rows.append([name, budget, *numbers, *(_recalled(found, e, task) for task in tasks)])
    return header, rows


def _excess(found: Verdict, entry: Entry) -> str:
    if entry.budget is None:
        return "reference"
    return f"{entry.excess:+z.4f}" + ("" if entry.error is None else f" ± {entry.error:.4f}")


def _relative(found: Verdict, entry: Entry) -> str:
    return "1" if entry.budget is None else f"{entry.relative:.4f}{_mark(found, entry, 'perplexity')}"


def _kl(found: Verdict, entry: Entry) -> str:
    if entry.kl is None or entry.budget is None:
        return "–" if entry.kl is None else "0"
    error = "" if entry.kl_error is None else f" ± {entry.kl_error:.4f}"
    return f"{entry.kl:.4f}{error}{_mark(found, entry, 'kl')}"


def _recalled(found: Verdict, entry: Entry, task: str) -> str:
    recall = entry.recall.get(task)
    return "–" if recall is None else f"{recall.hits}/{recall.asked}{_mark(found, entry, task)}"


def _mark(found: Verdict, entry: Entry, task: str) -> str:
    return " ≈" if found.alike(entry, task) else ""


READ: dict[str, Callable[[Verdict, Entry], str]] = {
    "Perplexity": lambda _, e: f"{e.perplexity:.3f}",
    "÷ dense": _relative,
    "Excess NLL": _excess,
    "KL": _kl,
    "Top-1": lambda _, e: "–" if e.agreement is None else f"{100 * e.agreement:.1f} %",
    "ms/token": lambda _, e: f"{e.milliseconds:.2f}",
    "MB": lambda _, e: f"{e.megabytes:.2f}",
}
"""Columns of what was read, and what stands in them."""
