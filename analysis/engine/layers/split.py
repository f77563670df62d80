"""What one layer keeps whose heads are of two kinds: some keep everything, the others a band."""

import copy
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..state import State
from .banded import BandedLayer
from .quantized import Quantization
from .slots import Span


class SplitLayer:
    """What one layer keeps: `parts`, and which KV heads each of them has: `names` in ascending order, and `heads`, the
    same as tensors on the layer's device."""

    def __init__(self, layer: BandedLayer, full: Sequence[int]) -> None:
        """What a layer holds, dealt out: the KV heads that keep everything, and the others."""
        others = [head for head in range(len(layer.sink_keys)) if head not in full]
        self.names = list(full), others
        self.heads = tuple(torch.tensor(own, dtype=torch.int64, device=layer.sink_keys.device) for own in self.names)
        self.parts = tuple(layer.of_heads(own) for own in self.heads)

    def state(self) -> State:
        """What its parts hold, and which heads they have."""
        return State.of({str(i): part.state() for i, part in enumerate(self.parts)}, full=self.names[0])

    def loaded(self, state: State) -> "SplitLayer":
        """A layer like this one that holds what a state says.  Raises ValueError where that is of other heads."""
        if (full := state.value("full", list)) != self.names[0]:
            raise ValueError(f"KV heads {full} keep everything in this state, and here it is {self.names[0]}")
        return self._with(part.loaded(state.part(str(i))) for i, part in enumerate(self.parts))

    def plain(self) -> "SplitLayer":
        """What it holds, in numbers as the model computes them."""
        return self._with(part.plain() for part in self.parts)

    def quantized(self, q: Quantization) -> "SplitLayer":
        """The same tokens in parts that store older ones in few bits."""
        return self._with(part.quantized(q) for part in self.parts)

    def _with(self, parts: Iterable[BandedLayer]) -> "SplitLayer":
        twin = copy.copy(self)
        twin.parts = tuple(parts)
        return twin

    def pack(self, end: int) -> None:
        """Store tokens before text position `end` in few bits."""
        for part in self.parts:
            part.pack(end)

    def held(self, read: int) -> list[Span]:
        """What its heads hold when `read` tokens have been read: nothing is said of a part that has none."""
        return [part.span for part, own in zip(self.parts, self.names, strict=True) if own]

    def window_of(self, kv_head: int) -> tuple[Float[Tensor, "slots dim"], int]:
        """The keys that a KV head holds in its window, and the text position of the first of them."""
        part, row = self._where(kv_head)
        return part.window_of(row)

    def of_head(
        self, kv_head: int
    ) -> tuple[Int[Tensor, " slots"], Float[Tensor, "slots dim"], Float[Tensor, "slots dim"]]:
        """Text positions, keys and values that one KV head holds, in the order of the text."""
        part, row = self._where(kv_head)
        return part.of_head(row)

    def _where(self, kv_head: int) -> tuple[BandedLayer, int]:
        part = 0 if kv_head in self.names[0] else 1
        return self.parts[part], self.names[part].index(kv_head)

    def ends(
        self, first: int, last: int
    ) -> tuple[Float[Tensor, "kv_heads ends dim"], Float[Tensor, "kv_heads ends dim"]]:
        """Keys and values of the first and the last tokens, so many of each, which all heads must hold."""
        order = torch.cat(self.heads).argsort()
        ends = [part.ends(first, last) for part, own in zip(self.parts, self.names, strict=True) if own]
        return torch.cat([keys for keys, _ in ends])[order], torch.cat([values for _, values in ends])[order]

    @property
    def slots(self) -> int:
        """Tokens held, once for each KV head."""
        return sum(part.slots for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held."""
        return sum(part.nbytes for part in self.parts)

    def replace_first(
        self, keys: Float[Tensor, "kv_heads first dim"], values: Float[Tensor, "kv_heads first dim"]
    ) -> None:
        """Hold these keys and values of the text's first tokens, wherever those are held."""
        for part, own in zip(self.parts, self.heads, strict=True):
            part.replace_first(keys[own], values[own])

    def copy(self) -> "SplitLayer":
        """The same tokens held, free to go another way."""
        return self._with(part.copy() for part in self.parts)
