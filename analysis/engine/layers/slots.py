"""A window of tokens that grows at its end and is evicted at its beginning, and what is said of the tokens held."""

import weakref
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor


class Slots:
    """A window of tokens that grows at its end and is evicted at its beginning: [kv_heads, slots, dim].

    A copy shares its room with the original for as long as one of them goes on; where both do, the one that is behind
    takes a room of its own.  So neither ever sees what the other wrote.
    """

    def __init__(self, like: Float[Tensor, "kv_heads tokens dim"], first: int = 0) -> None:
        # Room, the part of it that is held, and the text position at which that begins: one tuple, replaced at once,
        # since another thread may read it.
        self._held = like.new_empty(like.shape[0], 0, like.shape[2]), 0, 0, first
        self._token_bytes = like.shape[0] * like.shape[2] * like.element_size()
        self._sharing = weakref.WeakSet((self,))

    def __len__(self) -> int:
        _, start, stop, _ = self._held
        return stop - start

    def __copy__(self) -> "Slots":
        twin = object.__new__(type(self))
        twin._held, twin._sharing, twin._token_bytes = self._held, self._sharing, self._token_bytes
        self._sharing.add(twin)
        return twin

    @property
    def first(self) -> int:
        """The text position of the oldest token held, or where none is, of the next one."""
        return self._held[3]

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens held."""
        return len(self) * self._token_bytes

    def view(self) -> Float[Tensor, "kv_heads slots dim"]:
        """The tokens held, without a copy."""
        return self.placed()[0]

    def placed(self) -> tuple[Float[Tensor, "kv_heads slots dim"], int]:
        """The tokens held, without a copy, and the text position of the first of them."""
        data, start, stop, first = self._held
        return data.narrow(1, start, stop - start), first

    @classmethod
    def of(cls, tokens: Float[Tensor, "kv_heads tokens dim"], first: int) -> "Slots":
        """A window of these tokens, the first of which stands at text position `first`."""
        slots = cls(tokens, first)
        slots.append(tokens)
        return slots

    def window(self) -> "Window":
        """The tokens held now, and whose they are."""
        tensor, first = self.placed()
        return Window(tensor, first, self)

    def append(self, new: Float[Tensor, "kv_heads tokens dim"]) -> None:
        """Put tokens at the end.  What `view` returned stays as it was while these slots keep their room: what is held
        there is never overwritten."""
        count = new.shape[1]
        if not self._has_room(count):
            # A copy now and then, never one per chunk: a window that grows does so by half.
            self._move(new, (len(self) + count) * 3 // 2)
        data, start, stop, first = self._held
        data.narrow(1, stop, count).copy_(new)
        self._held = data, start, stop + count, first

    def room(self, more: int) -> Tensor:
        """Where these slots stand, with room for so many tokens more: [kv_heads, slots and room, dim]."""
        if not self._has_room(more):
            self._move(self._held[0], len(self) + more)
        return self._held[0]

    def next_in(self, room: Tensor) -> int | None:
        """The index in this room at which the next token is to be written; None where these slots stand elsewhere, or
        must move first."""
        return self._held[2] if self._held[0] is room and self._has_room(1) else None

    def written(self) -> None:
        """Hold one token more, which has been written where `next_in` said."""
        data, start, stop, first = self._held
        self._held = data, start, stop + 1, first

    def _has_room(self, count: int) -> bool:
        data, _, stop, _ = self._held
        return stop + count <= data.shape[1] and not self._others_stand_behind(stop)

    def _move(self, like: Tensor, size: int) -> None:
        """Take a room of their own, of so many slots."""
        data, start, stop, first = self._held
        grown = like.new_empty(like.shape[0], size, like.shape[2])
        grown[:, : stop - start] = data.narrow(1, start, stop - start)
        self._sharing.discard(self)
        self._sharing = weakref.WeakSet((self,))
        self._held = grown, 0, stop - start, first

    def _others_stand_behind(self, stop: int) -> bool:
        """Whether a copy that shares this room has written behind its first `stop` tokens."""
        return len(self._sharing) > 1 and any(other._held[2] > stop for other in self._sharing if other is not self)

    def keep_last(self, tokens: int) -> None:
        """Evict all but the last tokens."""
        data, start, stop, first = self._held
        if (leaving := stop - start - tokens) > 0:
            self._held = data, start + leaving, stop, first + leaving

    def skip(self, tokens: int) -> None:
        """Let a window that holds nothing begin so many tokens later."""
        assert not len(self), "a window that holds tokens has no gap in it"
        data, start, stop, first = self._held
        self._held = data, start, stop, first + tokens


class Window(NamedTuple):
    """The tokens that some slots held at some moment, which nothing changes: [kv_heads, tokens, dim].

    The same slots never hold another token at a position: what two windows of theirs have in common is equal.
    """

    tensor: Float[Tensor, "kv_heads tokens dim"]
    first: int
    """The text position of the first of them."""
    source: Slots


@runtime_checkable
class Held(Protocol):
    """What some KV heads hold of a text."""

    @property
    def heads(self) -> int:
        """How many KV heads these are."""
        ...

    @property
    def prefix(self) -> int:
        """How many of the text's first tokens all of them hold without a gap."""
        ...

    @property
    def suffix(self) -> int:
        """How many of the newest tokens all of them hold without a gap."""
        ...

    @property
    def alike(self) -> tuple[int, int] | None:
        """Prefix and suffix, where nothing else is held; None where each head holds tokens of its own."""
        ...

    def add_to(self, held: NDArray[np.float32]) -> None:
        """Add the heads that hold each token of the text, [read]."""
        ...


class Span(NamedTuple):
    """What heads hold of a text of which `read` tokens have been read: its first `sinks`, and all from `first` on."""

    heads: int
    sinks: int
    first: int
    read: int

    @property
    def prefix(self) -> int:
        """How many of the text's first tokens are held without a gap."""
        return self.read if self.first <= self.sinks else self.sinks

    @property
    def suffix(self) -> int:
        """How many of the newest tokens are held without a gap."""
        return self.read if self.first <= self.sinks else self.read - self.first

    @property
    def alike(self) -> tuple[int, int]:
        """Prefix and suffix: nothing else is held."""
        return self.prefix, self.suffix

    def add_to(self, held: NDArray[np.float32]) -> None:
        """Add the heads that hold each token of the text, [read]."""
        held[: self.sinks] += self.heads
        held[self.first : self.read] += self.heads


def prefix_of(held: Sequence[Held]) -> int:
    """First tokens whose keys are held, without a gap, by all of these heads; 0 for no heads."""
    return min((some.prefix for some in held), default=0)
