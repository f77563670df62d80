"""One row of one head in full: the logits of a query and the values that they weigh, and how a row is read in parts.

Flash-decoding (Dao et al. 2023) reads a long cache in parts: each gives its own output, and the logarithm of its sum of
exponentials, which is all that is needed to merge them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..engine.stream import open_lanes
from ..models.language_model import LanguageModel
from ..policies import parse
from .recent import head_row


@dataclass(frozen=True, eq=False)
class AttentionRow:
    """What the last token of a text gave to itself and to those before it: logits, and values of one KV head."""

    logits: Float[Tensor, " keys"]
    values: Float[Tensor, "keys dim"]


class Passage:
    """A short text that was read whole, with what every head did in it.

    `tokens`: token ids, [tokens].  Raises ValueError where there are fewer than two.
    """

    def __init__(self, model: LanguageModel, tokens: NDArray[np.int32]) -> None:
        self.tokens = np.asarray(tokens, np.int32)
        # The engine predicts every token from those before it, and so reads all but the last: one more is put behind.
        more = np.append(self.tokens, self.tokens[-1:])
        self._lane = open_lanes(model, more, [parse("dense")], sink_tokens=1, history=len(tokens))[0]
        passes = []
        self._lane.context.watch = passes.append
        self.sink_weights: NDArray[np.float32] = self._lane.read(len(tokens)).sink_mass
        """Weight on token 0 of every query, [layers, heads, queries]."""
        (self.attended,) = passes
        """Queries and keys before rotation, and values, of every layer."""

    @property
    def sink_mass(self) -> NDArray[np.float32]:
        """Mean weight on token 0 of every query but the first, which sees nothing else: [layers, heads]."""
        return self.sink_weights[..., 1:].mean(-1)

    def row(self, layer: int, head: int) -> AttentionRow:
        """The last token's row.  Raises ValueError where there is no such head."""
        row = head_row(self._lane, layer, head, len(self.tokens) - 1)
        assert row is not None, "a lane that holds all of its text has all rows"
        values = self.attended.values[layer][0]
        group = head // (self.attended.queries[layer].shape[1] // values.shape[0])
        return AttentionRow(torch.from_numpy(row.logits), values[group].float().cpu())


@dataclass(frozen=True, eq=False)
class RowPart:
    """What keys begin … end − 1 of a row give alone."""

    begin: int
    end: int
    out: Float[Tensor, " dim"]
    largest: Float[Tensor, ""]
    """The largest logit."""
    total: Float[Tensor, ""]
    """Sum of the exponentials of logits, less the largest: kept apart from it, since the logarithm of a large sum has
    too few digits left behind its point."""

    @property
    def lse(self) -> Float[Tensor, ""]:
        """Logarithm of the sum of exponentials of the logits."""
        return self.largest + self.total.log()


def attend(row: AttentionRow) -> Float[Tensor, " dim"]:
    """The output of the whole row under one softmax."""
    return torch.softmax(row.logits, -1) @ row.values


def split(row: AttentionRow, cuts: Sequence[int]) -> list[RowPart]:
    """The row in parts that begin at 0 and at each cut.  Raises ValueError where a cut lies outside the row."""
    keys = len(row.logits)
    if any(not 0 < cut < keys for cut in cuts):
        raise ValueError(f"a row of {keys} keys can be cut before keys 1 to {keys - 1}, and not at {list(cuts)}")
    parts = []
    for begin, end in pairwise(sorted({0, keys, *cuts})):
        alone = AttentionRow(row.logits[begin:end], row.values[begin:end])
        largest = alone.logits.max()
        parts.append(RowPart(begin, end, attend(alone), largest, (alone.logits - largest).exp().sum()))
    return parts


def merge(parts: Sequence[RowPart]) -> Float[Tensor, " dim"]:
    """The output of the whole row from its parts: each counts as much as its sum."""
    largest, total, out = (torch.stack([getattr(p, name) for p in parts]) for name in ("largest", "total", "out"))
    sums = total * (largest - largest.max()).exp()
    return sums / sums.sum() @ out
