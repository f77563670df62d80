"""The keys and values that one layer keeps: the first tokens (sinks), and one run of tokens without gaps.

Keys stand here as they were before rotary embedding.  A run knows where in the text it begins, so that what a cache
says it holds is what its tensors are.  Which tokens stay is decided elsewhere; this module appends, forgets and counts
bytes.
"""

import copy
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ...families.rotary import Adapted


class Slots:
    """A run of tokens that grows at its end and is forgotten at its beginning: [kv_heads, slots, dim].

    A copy shares its room with the original for as long as one of them goes on; where both do, the one that is behind
    takes a room of its own.  So neither ever sees what the other wrote.
    """

    def __init__(self, like: Float[Tensor, "kv_heads tokens dim"], first: int = 0) -> None:
        # Room, the part of it that is held, and the text position at which that begins: one tuple, replaced at once,
        # since somebody else's thread may be looking.
        self._held = like.new_empty(like.shape[0], 0, like.shape[2]), 0, 0, first
        self._sharing = weakref.WeakSet((self,))

    def __len__(self) -> int:
        _, start, stop, _ = self._held
        return stop - start

    def __copy__(self) -> "Slots":
        twin = object.__new__(type(self))
        twin._held, twin._sharing = self._held, self._sharing
        self._sharing.add(twin)
        return twin

    @property
    def first(self) -> int:
        """The text position of the oldest token held, or where none is, of the next one."""
        return self._held[3]

    def view(self) -> Float[Tensor, "kv_heads slots dim"]:
        """The tokens held, without a copy."""
        return self.placed()[0]

    def placed(self) -> tuple[Tensor, int]:
        """The tokens held, without a copy, and the text position of the first of them."""
        data, start, stop, first = self._held
        return data.narrow(1, start, stop - start), first

    def append(self, new: Float[Tensor, "kv_heads tokens dim"]) -> None:
        """Put tokens at the end.  What `view` returned before stays as it was: held slots are never overwritten."""
        data, start, stop, first = self._held
        live, count = stop - start, new.shape[1]
        if stop + count > data.shape[1] or self._others_stand_behind(stop):
            # A copy now and then, never one per chunk: a run that grows does so by half, a run that slides turns over.
            grown = new.new_empty(new.shape[0], (live + count) * 3 // 2, new.shape[2])
            grown[:, :live] = data.narrow(1, start, live)
            self._sharing.discard(self)
            self._sharing = weakref.WeakSet((self,))
            data, start, stop = grown, 0, live
        data.narrow(1, stop, count).copy_(new)
        self._held = data, start, stop + count, first

    def _others_stand_behind(self, stop: int) -> bool:
        """Whether a copy that shares this room has written behind its first `stop` tokens."""
        return len(self._sharing) > 1 and any(other._held[2] > stop for other in self._sharing if other is not self)

    def keep_last(self, tokens: int) -> None:
        data, start, stop, first = self._held
        if (leaving := stop - start - tokens) > 0:
            self._held = data, start + leaving, stop, first + leaving

    def skip(self, tokens: int) -> None:
        """Let a run that holds nothing begin so many tokens later."""
        assert not len(self), "a run that holds tokens has no gap in it"
        data, start, stop, first = self._held
        self._held = data, start, stop, first + tokens


class Span(NamedTuple):
    """What the heads of a cache hold of a text of which `read` tokens have been read: its first `sinks`, and all from
    `first` on."""

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

    def count(self, held: NDArray[np.float32]) -> None:
        """Add the heads that hold each token of the text, [read]."""
        held[: self.sinks] += self.heads
        held[self.first : self.read] += self.heads


class BandedLayer:
    """What one layer keeps of the text: `sinks` first tokens, then one run without gaps, which begins at `first`.

    `turned` holds the keys of the run once more, rotated, for a token that is decoded alone (decoding.py).  It begins
    where the run begins and may be shorter: what is read in chunks is turned when it is first needed.
    """

    def __init__(self, like: Float[Tensor, "kv_heads tokens dim"], first: int = 0) -> None:
        self.sink_keys = self.sink_values = like[:, :0].clone()
        self.keys, self.values, self.turned = (Slots(like, first) for _ in range(3))
        self.turned_sinks: Tensor | None = None

    @classmethod
    def empty(cls, model: Adapted, layer: int, first: int = 0) -> "BandedLayer":
        """What a layer of a model holds before it has read anything; `first`: the text position of what comes."""
        return cls(torch.empty(model.kv_heads, 0, model.head_dim, dtype=model.dtype, device=model.homes[layer]), first)

    def __len__(self) -> int:
        return self.sink_keys.shape[1] + len(self.keys)

    @property
    def first(self) -> int:
        """The text position at which the run begins."""
        return self.keys.first

    @property
    def read(self) -> int:
        """How many tokens of the text have been read: the run ends with the newest."""
        return self.keys.first + len(self.keys)

    @property
    def slots(self) -> int:
        """Tokens held, once for each KV head."""
        return len(self) * len(self.sink_keys)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held; `turned` is work space and not counted."""
        tensors = self.sink_keys, self.sink_values, self.keys.view(), self.values.view()
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def span(self) -> Span:
        """What its heads hold."""
        keys, first = self.keys.placed()
        return Span(len(self.sink_keys), self.sink_keys.shape[1], first, first + keys.shape[1])

    def spans(self, read: int) -> list[Span]:
        """What its heads hold when `read` tokens have been read."""
        return [self.span]

    def append(
        self,
        keys: Float[Tensor, "kv_heads tokens dim"],
        values: Float[Tensor, "kv_heads tokens dim"],
        turned: Float[Tensor, "kv_heads tokens dim"] | None = None,
    ) -> None:
        self.keys.append(keys)
        self.values.append(values)
        if turned is not None:
            self.turned.append(turned)

    def pin(self, keys: Float[Tensor, "kv_heads sinks dim"], values: Float[Tensor, "kv_heads sinks dim"]) -> None:
        """Hold these as the sinks, in place of any that were held."""
        self.sink_keys, self.sink_values = keys.clone(), values.clone()
        self.turned_sinks = None

    def gather(self, keys: Float[Tensor, "kv_heads tokens dim"], values: Float[Tensor, "kv_heads tokens dim"]) -> None:
        """Hold the next tokens of the text as further sinks; the run, which is still empty, begins behind them."""
        for run in (self.keys, self.values, self.turned):
            run.skip(keys.shape[1])
        self.pin(torch.cat((self.sink_keys, keys), 1), torch.cat((self.sink_values, values), 1))

    def keep_last(self, tokens: int) -> None:
        """Forget all of the run but its last tokens."""
        gone = len(self.keys) - tokens
        if gone > 0:
            self.turned.keep_last(max(0, len(self.turned) - gone))
            self.keys.keep_last(tokens)
            self.values.keep_last(tokens)

    def restart(self, run: Float[Tensor, "2 kv_heads tokens dim"], first: int = 0) -> None:
        """Hold this run (keys, values), which begins at text position `first`, and nothing else of it before."""
        self.keys, self.values, self.turned = Slots(run[0], first), Slots(run[1], first), Slots(run[0], first)
        self.append(run[0], run[1])

    def forget_rotations(self) -> None:
        """Forget how keys are rotated: from now on they stand elsewhere."""
        self.turned.keep_last(0)
        self.turned_sinks = None

    def everything(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens held, in the order of the text, each [kv_heads, tokens, dim]."""
        return torch.cat((self.sink_keys, self.keys.view()), 1), torch.cat((self.sink_values, self.values.view()), 1)

    def positions(self) -> Int[Tensor, " tokens"]:
        """The text positions of `everything`."""
        places = torch.arange(self.sink_keys.shape[1]), torch.arange(self.first, self.read)
        return torch.cat(places).to(self.sink_keys.device)

    def become(self, sinks: int, window: int | None, *, front: tuple[Tensor, Tensor] | None) -> None:
        """Keep what a band of other size keeps of what is held.

        `front`: keys and values of the text's first tokens, at least min(sinks, read) of them, to hold where they are
        not held.  A band whose sinks are not all held goes on without any; one without a window keeps what there is.
        """
        self.forget_rotations()
        span = self.span
        wanted, whole = min(sinks, span.read), span.prefix == span.read
        if whole and span.sinks:
            held = torch.stack(self.everything())
            self.pin(held[0, :, :0], held[1, :, :0])
            self.restart(held)
        if whole and wanted and window is not None:
            self.pin(self.keys.view()[:, :wanted], self.values.view()[:, :wanted])
            self.keep_last(span.read - wanted)
        elif whole:
            pass
        elif span.prefix < wanted and front is not None:
            self.pin(*(t[:, :wanted] for t in front))
            self.keep_last(span.read - max(wanted, span.first))
        elif window is not None:
            kept = wanted if span.prefix >= wanted else 0
            self.pin(self.sink_keys[:, :kept], self.sink_values[:, :kept])
        if window is not None:
            self.keep_last(window)

    def put_first(self, keys: Tensor, values: Tensor) -> None:
        """Hold these keys and values of the text's first tokens, each [kv_heads, tokens, dim], wherever those are
        held."""
        count, sinks, begin = keys.shape[1], self.sink_keys.shape[1], self.first
        if sinks:
            pairs = (keys, self.sink_keys), (values, self.sink_values)
            self.pin(*(torch.cat((new[:, :sinks], old[:, count:]), 1) for new, old in pairs))
        if begin < count and len(self.keys):
            pairs = (keys, self.keys.view()), (values, self.values.view())
            run = [torch.cat((new[:, begin:], old[:, count - begin :]), 1) for new, old in pairs]
            self.restart(torch.stack(run), begin)

    def of_heads(self, own: Int[Tensor, " heads"]) -> "BandedLayer":
        """The same tokens of some KV heads, copied."""
        cache = BandedLayer(self.sink_keys[own], self.first)
        cache.pin(self.sink_keys[own], self.sink_values[own])
        cache.append(self.keys.view()[own], self.values.view()[own])
        return cache

    def ends(self, sinks: int, run: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first and the newest tokens, so many of each, which must be held."""
        keys, values = self.everything()
        count = keys.shape[1]
        return tuple(torch.cat((x[:, :sinks], x[:, count - run :]), 1) for x in (keys, values))

    def copy(self) -> "BandedLayer":
        """The same tokens held, free to go another way.  No tensor is copied: `Slots` says why that is safe."""
        twin = copy.copy(self)
        twin.keys, twin.values, twin.turned = copy.copy(self.keys), copy.copy(self.values), copy.copy(self.turned)
        return twin


def as_bands(caches: Sequence[Any], read: int) -> list[BandedLayer]:
    """What all heads of all layers hold of the text's first and newest tokens, of caches of any kind; what only some
    hold is given up."""
    spans = [span for cache in caches for span in cache.spans(read)]
    run = min(span.suffix for span in spans)
    sinks = min(read - run, *(span.prefix for span in spans))
    bands = []
    for cache in caches:
        keys, values = cache.ends(sinks, run)
        band = BandedLayer(keys, read - run)
        band.pin(keys[:, :sinks], values[:, :sinks])
        band.append(keys[:, sinks:], values[:, sinks:])
        bands.append(band)
    return bands
