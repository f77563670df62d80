"""One row of one head in full: the logits of a query and the values that they weigh; and how a row is read in pieces.

Flash-decoding (Dao et al. 2023) reads a long cache in pieces: each gives what it alone would give, and the logarithm of
its sum, which is all that is needed to join them.
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
class Row:
    """What the last token of a text gave to itself and to those before it."""

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
        self._lane = open_lanes(model, more, [parse("dense")], sink_tokens=1, hold=len(tokens))[0]
        readings = []
        self._lane.source.watch = readings.append
        self.given: NDArray[np.float32] = self._lane.read(len(tokens)).sink_mass
        """Weight on token 0 of every query, [layers, heads, queries]."""
        (self._reading,) = readings

    @property
    def mass(self) -> NDArray[np.float32]:
        """Mean weight on token 0 of every query but the first, which sees nothing else: [layers, heads]."""
        return self.given[..., 1:].mean(-1)

    def row(self, layer: int, head: int) -> Row:
        """The last token's row."""
        row = head_row(self._lane, layer, head, len(self.tokens) - 1)
        values = self._reading.values[layer][0]
        group = head // (self._reading.queries[layer].shape[1] // values.shape[0])
        return Row(torch.from_numpy(row.logits), values[group].float().cpu())


@dataclass(frozen=True, eq=False)
class Part:
    """What keys begin … end − 1 of a row give alone."""

    begin: int
    end: int
    out: Float[Tensor, " dim"]
    most: Float[Tensor, ""]
    """The largest logit."""
    total: Float[Tensor, ""]
    """Sum of the exponentials of logits, less the largest: kept apart from it, since the logarithm of a large sum has
    too few digits left behind its point."""

    @property
    def lse(self) -> Float[Tensor, ""]:
        """Logarithm of the sum of exponentials."""
        return self.most + self.total.log()


def attend(row: Row) -> Float[Tensor, " dim"]:
    """The output of the whole row under one softmax."""
    return torch.softmax(row.logits, -1) @ row.values


def parts(row: Row, cuts: Sequence[int]) -> list[Part]:
    """The row read in pieces that begin at 0 and at each cut.  Raises ValueError where a cut lies outside the row."""
    keys = len(row.logits)
    if any(not 0 < cut < keys for cut in cuts):
        raise ValueError(f"a row of {keys} keys can be cut before keys 1 to {keys - 1}, and not at {list(cuts)}")
    ends = sorted({0, keys, *cuts})
    found = []
    for begin, end in pairwise(ends):
        piece = Row(row.logits[begin:end], row.values[begin:end])
        most = piece.logits.max()
        found.append(Part(begin, end, attend(piece), most, (piece.logits - most).exp().sum()))
    return found


def join(found: Sequence[Part]) -> Float[Tensor, " dim"]:
    """The output of the whole row from its pieces: each counts as much as its sum."""
    most, total, out = (torch.stack([getattr(p, name) for p in found]) for name in ("most", "total", "out"))
    sums = total * (most - most.max()).exp()
    return sums / sums.sum() @ out
