"""How faithful lanes are to one of them: what each predicts of the same tokens, over the whole vocabulary.

The reference reads a chunk, and its logits live until it reads the next one; meanwhile the other lanes read the same
chunk.  Perplexity only knows how probable the text's own token was; here every token of the vocabulary counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from .logits import Logits

if TYPE_CHECKING:
    from .lane import Lane, Snapshot


class Measured(NamedTuple):
    """How faithful a lane is to the reference; NaN where the reference has not read the same tokens beside it."""

    kl: NDArray[np.float32]
    """KL(reference ‖ lane) of each token in nats, [tokens]."""
    agree: NDArray[np.float32]
    """1 where both have the same most probable token, else 0, [tokens]."""


@dataclass(frozen=True, eq=False)
class _Chunk:
    """The newest chunk of the reference."""

    begin: int
    end: int
    """Text positions of its first predicted token, and of the one behind its last."""
    logits: Logits
    top: Int[Tensor, " tokens"]
    before: "Snapshot"
    """What the reference held when the chunk began."""


class Fidelity:
    """Measures the lanes that share a text against one of them, the reference, which reads every chunk first."""

    def __init__(self, reference: int = 0) -> None:
        self.reference = reference
        """Which lane the others are measured against."""
        self._chunk: _Chunk | None = None
        self._before: Snapshot | None = None

    def begin(self, lane: "Lane", stop: int) -> int:
        """Let a lane read on; gives the position, `stop` or less, from which on it may predict nothing yet.

        No lane reads over an end of the reference's chunk.
        """
        if lane.index == self.reference:
            # Its old logits go first: two chunks of them never live at a time.
            self._chunk, self._before = None, lane.snapshot()
            return stop
        if (chunk := self._chunk) is None or lane.position >= chunk.end:
            return stop
        return min(stop, chunk.begin if lane.position < chunk.begin else chunk.end)

    def measure(self, lane: "Lane", parts: Sequence[Logits]) -> Measured:
        """How faithful a lane is in the tokens from its position on, which it has just predicted in passes."""
        logits, begin = Logits.joined(parts), lane.position
        end = begin + len(logits.totals)
        if lane.index == self.reference:
            assert self._before is not None, "it has begun"
            self._chunk = _Chunk(begin, end, logits, logits.top, self._before)
            return Measured(np.zeros(end - begin, np.float32), np.ones(end - begin, np.float32))
        chunk = self._chunk
        if chunk is None or not chunk.begin <= begin < chunk.end:
            return Measured(*(np.full(end - begin, np.nan, np.float32) for _ in Measured._fields))
        cut = begin - chunk.begin, end - chunk.begin
        kl, agree = chunk.logits.cut(*cut).divergence(logits), logits.top == chunk.top[slice(*cut)]
        return Measured(kl.cpu().numpy(), agree.cpu().numpy().astype(np.float32))

    def went_on_from(self, lane: "Lane") -> "Snapshot | None":
        """What the reference held when its newest chunk began: from there it must be read again by whoever goes on
        with a lane in that chunk.  None for other lanes."""
        return self._chunk.before if self._chunk is not None and lane.index == self.reference else None
