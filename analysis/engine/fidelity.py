"""How faithful lanes are to one of them: what each predicts of the same tokens, over the whole vocabulary, and what
each head's attention gives.

The reference reads a chunk, and its logits live until it reads the next one; meanwhile the other lanes read the same
chunk.  Perplexity only knows how probable the text's own token was; here every token of the vocabulary counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from .logits import Logits

if TYPE_CHECKING:
    from .lane import Lane, Snapshot

REFERENCE = 0
"""Which lane the others are measured against."""


class Outputs(NamedTuple):
    """What a pass over some tokens gives, as far as lanes are compared by it."""

    logits: Logits
    attention: list[Float[Tensor, "tokens heads dim"]]
    """Outputs of each layer's attention, before they are projected; empty where a store does not tell them."""

    @classmethod
    def joined(cls, parts: "Sequence[Outputs]") -> "Outputs":
        """Of passes that follow one another, as one."""
        if len(parts) == 1:
            return parts[0]
        layers = zip(*(part.attention for part in parts), strict=True)
        return cls(Logits.joined([part.logits for part in parts]), [torch.cat(of) for of in layers])

    def cut(self, begin: int, end: int) -> "Outputs":
        """Those of tokens begin … end − 1."""
        return Outputs(self.logits.cut(begin, end), [of[begin:end] for of in self.attention])


class Measured(NamedTuple):
    """How faithful a lane is to the reference; NaN where the reference has not read the same tokens beside it."""

    kl: NDArray[np.float32]
    """KL(reference ‖ lane) of each token in nats, [tokens]."""
    agree: NDArray[np.float32]
    """1 where both have the same most probable token, else 0, [tokens]."""
    output_error: NDArray[np.float32]
    """‖o − o_reference‖ / ‖o_reference‖ of each head [layers, heads]: o are the outputs of its attention before they
    are projected, and the norm is over all these tokens and the head's dimensions.  NaN, too, where the reference's are
    zero."""


@dataclass(frozen=True, eq=False)
class _Chunk:
    """The newest chunk of the reference."""

    begin: int
    end: int
    """Text positions of its first predicted token, and of the one behind its last."""
    outputs: Outputs
    top: Int[Tensor, " tokens"]
    before: "Snapshot"
    """What the reference held when the chunk began."""


class Fidelity:
    """Measures the lanes that share a text against the first of them, the reference, which reads every chunk first."""

    def __init__(self) -> None:
        self._chunk: _Chunk | None = None
        self._before: Snapshot | None = None

    def begin(self, lane: "Lane", stop: int) -> int:
        """Let a lane read on; gives the position, `stop` or less, from which on it may predict nothing yet.

        No lane reads over an end of the reference's chunk.
        """
        if lane.index == REFERENCE:
            # Its old logits go first: two chunks of them never live at a time.
            self._chunk, self._before = None, lane.snapshot()
            return stop
        if (chunk := self._chunk) is None or lane.position >= chunk.end:
            return stop
        return min(stop, chunk.begin if lane.position < chunk.begin else chunk.end)

    def measure(self, lane: "Lane", parts: Sequence[Outputs]) -> Measured:
        """How faithful a lane is in the tokens from its position on, which it has just predicted in passes."""
        outputs, begin, model = Outputs.joined(parts), lane.position, lane.context.model
        end = begin + len(outputs.logits.totals)

        def all_of(kl: float, agree: float) -> Measured:
            """The same for every token and head."""
            tokens, heads = (end - begin,), (model.layers, model.heads)
            return Measured(*(np.full(*of, np.float32) for of in ((tokens, kl), (tokens, agree), (heads, kl))))

        if lane.index == REFERENCE:
            assert self._before is not None, "it has begun"
            self._chunk = _Chunk(begin, end, outputs, outputs.logits.top, self._before)
            return all_of(0, 1)
        chunk = self._chunk
        if chunk is None or not chunk.begin <= begin < chunk.end:
            return all_of(np.nan, np.nan)
        reference, top = chunk.outputs.cut(begin - chunk.begin, end - chunk.begin), outputs.logits.top
        kl = reference.logits.divergence(outputs.logits).cpu().numpy()
        agree = (top == chunk.top[begin - chunk.begin : end - chunk.begin]).cpu().numpy().astype(np.float32)
        if not (reference.attention and outputs.attention):
            return all_of(np.nan, np.nan)._replace(kl=kl, agree=agree)
        return Measured(kl, agree, _errors(reference.attention, outputs.attention).cpu().numpy())

    def went_on_from(self, lane: "Lane") -> "Snapshot | None":
        """What the reference held when its newest chunk began: from there it must be read again by whoever goes on
        with a lane in that chunk.  None for other lanes."""
        return self._chunk.before if self._chunk is not None and lane.index == REFERENCE else None


def _errors(
    reference: Sequence[Float[Tensor, "tokens heads dim"]], others: Sequence[Float[Tensor, "tokens heads dim"]]
) -> Float[Tensor, "layers heads"]:
    """Relative distances of outputs; layers may lie on several devices."""
    found = []
    for own, other in zip(reference, others, strict=True):
        own = own.float()
        size, distance = (torch.linalg.vector_norm(x, dim=(0, 2)) for x in (own, other.float() - own))
        found.append((distance / size).masked_fill(size == 0, torch.nan).to(reference[0].device))
    return torch.stack(found)
