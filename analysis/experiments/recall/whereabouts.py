"""Where a fact is when it is asked for: which heads look at it from the question, and which can still reach it.

Exact, from the queries and keys of a lane that has read up to the question: what a head gave to the fact's tokens is
the sum of its weights there, and what had been evicted got none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from ... import texts
from ...engine.lane import Lane
from ...engine.stream import Loaded, open_lanes
from ...maps.recent import head_row
from ...policies import Policy, parse
from .cells import RecallCell
from .encoding import Asked, Encoded, Tokens

HISTORY = 8
"""Newest tokens whose queries are kept: that of the question's last token is all that is looked at."""


@dataclass(frozen=True, eq=False)
class Look:
    """What the last token of a question gave to the tokens that say its answer, under one policy."""

    policy: str
    mass: Float[np.ndarray, "layers heads"]
    """Attention on the fact's tokens, 0 to 1."""
    reached: Float[np.ndarray, "layers heads"]
    """Share of the fact's tokens that the head could reach: they had not been evicted."""
    shares: Float[np.ndarray, " tokens"]
    """Share of all heads that could reach each token of the text."""

    @property
    def holding(self) -> int:
        """Heads that can reach all of the fact."""
        return int((self.reached == 1).sum())

    def ranked(self, most: int) -> list[tuple[int, int]]:
        """Layer and head of those that look most at the fact, at most so many."""
        order = np.argsort(-self.mass, axis=None, kind="stable")[:most]
        return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, self.mass.shape), strict=True)]


@dataclass(frozen=True, eq=False)
class Whereabouts:
    """The text of a cell, and what was looked at when its question had been read."""

    content: str
    """Up to the end of the answer."""
    ids: Int[np.ndarray, " tokens"]
    pieces: tuple[str, ...]
    """The text of each token."""
    asked: Asked
    looks: tuple[Look, ...]
    """Dense first, and the cell's own policy, where that is another."""

    @cached_property
    def needle(self) -> tuple[int, int]:
        """First and last token (exclusive) of what says the answer."""
        assert self.asked.needle is not None, "a cell without a fact has no whereabouts"
        return self.asked.needle


def text_of(cell: RecallCell, tokens: Tokens) -> tuple[str, Encoded]:
    """The text of a cell up to the end of its first answer, and its tokens.

    Raises ValueError where nothing in it says the answer.
    """
    sample = cell.of_task.sample(cell.place, cell.seed, tokens)
    first = sample.exchanges[0]
    text = tokens.encode(sample)
    if text.asked[0].needle is None:
        raise ValueError("nothing in this text says the answer, so there is nothing to look for: choose another task")
    return first.before + first.question + first.answer, Encoded(text.ids[: text.asked[0].stop], text.asked[:1])


def whereabouts(
    model: "Loaded", cell: RecallCell, tokenizer, told: Callable[[int], object] = lambda tokens: None
) -> Whereabouts:
    """Read the text of a cell up to its question, under dense and under its policy, and look.

    `told`: hears of every chunk how many tokens it had, and may raise to end the reading.  Raises ValueError where
    nothing in the text says the answer.
    """
    spec = cell.spec
    content, text = text_of(cell, Tokens(tokenizer, str(spec.bos), spec.special))
    (asked,) = text.asked
    policies = dict.fromkeys(("dense", spec.policies[0]))
    looks = tuple(_look(model, cell, text.ids, asked, parse(policy), told) for policy in policies)
    return Whereabouts(content, text.ids, tuple(texts.token_texts(tokenizer, text.ids)), asked, looks)


def _look(
    model: Loaded,
    cell: RecallCell,
    ids: NDArray[np.int32],
    asked: Asked,
    policy: Policy,
    told: Callable[[int], object],
) -> Look:
    # The first token of the answer is predicted from the question's last one, which is the newest that was read.
    lane = open_lanes(model, ids[: asked.answer + 1], [policy], history=HISTORY)[0]
    # The last chunk is small, so that its queries are kept.
    for stop in (asked.question, asked.answer - HISTORY, None):
        while not lane.done and (stop is None or lane.position < stop):
            told(len(lane.read(cell.spec.chunk, stop).nll))
        if stop == asked.question and cell.asking == "blind":
            lane.switch(policy.with_room(asked.stop - asked.question))
    return Look(str(policy), *_rows(lane, asked))


def _rows(lane: Lane, asked: Asked) -> tuple[NDArray, NDArray, NDArray]:
    """Mass on the fact, the share of it that is reached, and the share of heads that reach each token."""
    model, (begin, end) = lane.context.model, asked.needle or (0, 0)
    mass, reached = np.zeros((2, model.layers, model.heads), np.float32)
    counts = np.zeros(asked.answer, np.float32)
    for layer in range(model.layers):
        for head in range(model.heads):
            row = head_row(lane, layer, head, asked.answer - 1)
            if row is None:
                continue
            at = (row.positions >= begin) & (row.positions < end)
            mass[layer, head] = row.weights[at].sum()
            reached[layer, head] = at.sum() / (end - begin)
            counts[row.positions] += 1
    return mass, reached, counts / (model.layers * model.heads)
