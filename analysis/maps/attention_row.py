"""One row of one head in full: the logits of a query and the values that they weigh, and how a row is read in parts.

Flash-decoding (Dao et al. 2023) reads a long cache in parts: each gives its own output, and the logarithm of its sum of
exponentials, which is all that is needed to merge them.  All in float32, without torch: a page reads rows in parts
before torch is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class AttentionRow:
    """What the last token of a text gave to itself and to those before it: logits, and values of one KV head."""

    logits: Float[np.ndarray, " keys"]
    values: Float[np.ndarray, "keys dim"]


@dataclass(frozen=True, eq=False)
class RowPart:
    """What keys begin … end − 1 of a row give alone."""

    begin: int
    end: int
    out: Float[np.ndarray, " dim"]
    largest: np.float32
    """The largest logit."""
    total: np.float32
    """Sum of the exponentials of logits, less the largest: kept apart from it, since the logarithm of a large sum has
    too few digits left behind its point."""

    @property
    def lse(self) -> np.float32:
        """Logarithm of the sum of exponentials of the logits."""
        return self.largest + np.log(self.total)


def attend(row: AttentionRow) -> Float[np.ndarray, " dim"]:
    """The output of the whole row under one softmax."""
    sizes = np.exp(row.logits - row.logits.max())
    return sizes / sizes.sum() @ row.values


def split(row: AttentionRow, cuts: Sequence[int]) -> list[RowPart]:
    """The row in parts that begin at 0 and at each cut.  Raises ValueError where a cut lies outside the row."""
    keys = len(row.logits)
    if any(not 0 < cut < keys for cut in cuts):
        raise ValueError(f"a row of {keys} keys can be cut before keys 1 to {keys - 1}, and not at {list(cuts)}")
    parts = []
    for begin, end in pairwise(sorted({0, keys, *cuts})):
        alone = AttentionRow(row.logits[begin:end], row.values[begin:end])
        largest = alone.logits.max()
        parts.append(RowPart(begin, end, attend(alone), largest, np.exp(alone.logits - largest).sum()))
    return parts


def merge(parts: Sequence[RowPart]) -> Float[np.ndarray, " dim"]:
    """The output of the whole row from its parts: each counts as much as its sum."""
    largest, total, out = (np.stack([getattr(p, name) for p in parts]) for name in ("largest", "total", "out"))
    sums = total * np.exp(largest - largest.max())
    return sums / sums.sum() @ out
