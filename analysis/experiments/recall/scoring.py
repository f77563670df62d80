"""Whether a model under a policy gives the answers: read from the text itself, in one pass over it.

A greedy decoder gives an answer exactly when every token of it is the most probable one where the tokens before it are
the answer's, so nothing needs to be generated: the text is read with its right answers in it, and the most probable
tokens are told beside the NLL.  Of a wrong answer the tokens from the first wrong one on are what the model would say
if it were put right before each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...engine.lane import Lane
from ...engine.stream import CHUNK, Loaded, open_lanes
from ...metrics import check_finite
from ...policies import Policy
from .base import ASKING
from .encoding import Encoded


@dataclass(frozen=True)
class Answer:
    """How a question was answered."""

    right: tuple[int, ...]
    """Token ids of the right answer."""
    said: tuple[int, ...]
    """Token ids of what the model says, as many."""
    nll: float
    """Mean NLL of the right answer's tokens, in nats."""
    distance: int | None
    """Tokens from the end of what says the answer to the answer; None where nothing does."""
    kept: float | None
    """Share of what says the answer, over its tokens and all KV heads, that was held when the answer had been read."""

    @property
    def wrong(self) -> int | None:
        """The first token of the answer that is not the most probable one; None where all are."""
        pairs = enumerate(zip(self.said, self.right, strict=True))
        return next((i for i, (said, right) in pairs if said != right), None)

    @property
    def hit(self) -> bool:
        """Whether the model gives the answer."""
        return self.wrong is None


def answers(
    model: Loaded,
    text: Encoded,
    policy: Policy,
    *,
    stays: bool = True,
    asking: str = "aware",
    decode: bool = False,
    chunk: int = CHUNK,
    told: Callable[[int], object] = lambda tokens: None,
) -> Iterator[Answer]:
    """The answer to each question of a text, in their order, by one lane that reads it under a policy.

    `stays`: whether questions and answers stay in what is read on; `asking`: see ASKING; `decode`: say what is really
    generated, token by token and greedily; `told`: hears of every chunk how many tokens it had, and may raise to end
    the reading.  Raises ValueError where the model cannot be read under the policy, or what it says of an answer is not
    finite.
    """
    if asking not in ASKING:
        raise ValueError(f"question must be asked {' or '.join(ASKING)}, not {asking!r}")
    reader, begin, aside = _Reader(model, policy, chunk, told), 0, list[tuple[int, int]]()
    for asked in text.asked:
        borders = (begin, asked.question, asked.answer, asked.stop)
        before, question, right = (text.ids[a:b] for a, b in pairwise(borders))
        begin = asked.stop
        if apart := asking == "blind" or not stays:
            reader.read(before)
            moment = reader.lane.snapshot()
            if asking == "blind":
                reader.lane.switch(policy.with_room(len(question) + len(right)))
        unread = question if apart else np.concatenate((before, question))
        said = None
        if decode:
            reader.read(unread)
            said, unread = reader.generate(len(right)), unread[:0]
        nll, top = (told[-len(right) :] for told in reader.read(np.concatenate((unread, right))))
        check_finite(nll)
        where = None if asked.needle is None else tuple(n - _skipped(aside, n) for n in asked.needle)
        yield Answer(
            tuple(right.tolist()),
            tuple(top.tolist()) if said is None else said,
            float(nll.mean()),
            None if where is None else asked.answer - _skipped(aside, asked.answer) - where[1],
            None if where is None else reader.kept(*where),
        )
        if not stays:
            reader.lane.restore(moment)
            aside.append((asked.question, asked.stop))
        elif asking == "blind":
            reader.lane.switch(policy)


class _Reader:
    """A lane whose text comes in pieces, each of which is read when it comes."""

    def __init__(self, model: Loaded, policy: Policy, chunk: int, told: Callable[[int], object]) -> None:
        self._model, self._policy, self._chunk, self._told = model, policy, chunk, told
        self._lane: Lane | None = None

    @property
    def lane(self) -> Lane:
        """The lane that reads, once something was read."""
        assert self._lane is not None, "something has been read"
        return self._lane

    def read(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """NLL and most probable tokens of a piece, each [tokens]; of the first piece but for its first token."""
        if self._lane is None:
            self._lane = open_lanes(self._model, ids, [self._policy], top=True)[0]
        else:
            self.lane.context.extend(ids)
        nll, tops = [np.zeros(0, np.float32)], [np.zeros(0, np.int32)]
        while not self.lane.done:
            step = self.lane.read(self._chunk)
            assert step.top is not None, "they were asked for"
            nll.append(step.nll)
            tops.append(step.top)
            self._told(len(step.nll))
        return np.concatenate(nll), np.concatenate(tops)

    def generate(self, count: int) -> tuple[int, ...]:
        """The next tokens as a greedy decoder says them; the lane is then as it was."""
        moment = self.lane.snapshot()
        steps = [self.lane.next(lambda logits: int(logits.argmax())) for _ in range(count)]
        self.lane.restore(moment)
        check_finite([step.nll for step in steps])
        return tuple(int(step.token_ids[0]) for step in steps)

    def kept(self, begin: int, end: int) -> float:
        """Share of the tokens from `begin` to before `end` that is held now, over all KV heads."""
        if (shares := self.lane.shares) is not None:
            return float(shares[begin:end].mean())
        at = np.arange(begin, end)
        return float(((at < self.lane.sinks) | (at >= self.lane.first)).mean())


def _skipped(aside: list[tuple[int, int]], position: int) -> int:
    """How many tokens before a position of a text were asked aside, and are not in what a lane has read."""
    return sum(stop - question for question, stop in aside if stop <= position)
