"""The keys and values that one layer keeps: the first tokens (sinks), and one run of the newest tokens.

Keys stand here as they were before rotary embedding.  Which tokens stay is decided elsewhere; this module appends,
forgets and counts bytes.
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .rotary import Adapted


class Slots:
    """A run of tokens that grows at its end and is forgotten at its beginning: [kv_heads, slots, dim].

    Of a copy and its original, which share their room, only one may go on: the other keeps what it holds, since tokens
    are only ever written behind it, and goes on in its turn when the first is given up.
    """

    def __init__(self, like: Float[Tensor, "kv_heads tokens dim"]) -> None:
        self._data = like.new_empty(like.shape[0], 0, like.shape[2])
        self._start = self._stop = 0

    def __len__(self) -> int:
        return self._stop - self._start

    def view(self) -> Float[Tensor, "kv_heads slots dim"]:
        """The tokens held, without a copy."""
        return self._data.narrow(1, self._start, self._stop - self._start)

    def append(self, new: Float[Tensor, "kv_heads tokens dim"]) -> None:
        """Put tokens at the end.  What `view` returned before stays as it was: held slots are never overwritten."""
        live, stop = len(self), self._stop + new.shape[1]
        if stop > self._data.shape[1]:
            # A copy now and then, never one per chunk: a run that grows does so by half, a run that slides turns over.
            grown = new.new_empty(new.shape[0], (live + new.shape[1]) * 3 // 2, new.shape[2])
            grown[:, :live] = self.view()
            self._data, self._start, self._stop, stop = grown, 0, live, live + new.shape[1]
        self._data.narrow(1, self._stop, new.shape[1]).copy_(new)
        self._stop = stop

    def keep_last(self, tokens: int) -> None:
        self._start = max(self._start, self._stop - tokens)


class LayerCache:
    """What one layer keeps of the text: `sinks` first tokens, then one run without gaps.

    `turned` holds the keys of the run once more, rotated, for a token that is decoded alone (decoding.py).  It begins
    where the run begins and may be shorter: what is read in chunks is turned when it is first needed.
    """

    def __init__(self, like: Float[Tensor, "kv_heads tokens dim"]) -> None:
        self.sink_keys = self.sink_values = like[:, :0].clone()
        self.keys, self.values, self.turned = Slots(like), Slots(like), Slots(like)
        self.turned_sinks: Tensor | None = None

    @classmethod
    def empty(cls, model: Adapted, layer: int) -> "LayerCache":
        """What a layer of a model holds before it has read anything."""
        return cls(torch.empty(model.kv_heads, 0, model.head_dim, dtype=model.dtype, device=model.homes[layer]))

    def __len__(self) -> int:
        return self.sink_keys.shape[1] + len(self.keys)

    @property
    def slots(self) -> int:
        """Tokens held, once for each KV head."""
        return len(self) * len(self.sink_keys)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held; `turned` is work space and not counted."""
        tensors = self.sink_keys, self.sink_values, self.keys.view(), self.values.view()
        return sum(t.numel() * t.element_size() for t in tensors)

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

    def keep_last(self, tokens: int) -> None:
        """Forget all of the run but its last tokens."""
        gone = len(self.keys) - tokens
        if gone > 0:
            self.turned.keep_last(max(0, len(self.turned) - gone))
            self.keys.keep_last(tokens)
            self.values.keep_last(tokens)

    def restart(self, run: Float[Tensor, "2 kv_heads tokens dim"]) -> None:
        """Hold this run (keys, values) and nothing else of it before."""
        self.keys, self.values, self.turned = Slots(run[0]), Slots(run[1]), Slots(run[0])
        self.append(run[0], run[1])

    def everything(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens held, in the order of the text, each [kv_heads, tokens, dim]."""
        return torch.cat((self.sink_keys, self.keys.view()), 1), torch.cat((self.sink_values, self.values.view()), 1)

    def become(
        self, sinks: int, window: int | None, read: int, *, missing: bool, front: tuple[Tensor, Tensor] | None
    ) -> None:
        """Keep what a band of other size keeps of what is held, when `read` tokens have been read.

        `missing`: whether not all of its sinks are held; `front`: their keys and values, to hold them again.
        """
        self.turned.keep_last(0)
        held, joined = self.sink_keys.shape[1], read - len(self.keys) <= self.sink_keys.shape[1]
        if joined and held:
            whole = torch.stack(self.everything())
            self.pin(whole[0, :, :0], whole[1, :, :0])
            self.restart(whole)
        wanted = min(sinks, read)
        if front is not None:
            self.pin(*(t[:, :wanted] for t in front))
            self.keep_last(max(0, min(len(self.keys), read - sinks)))
        elif joined and sinks:
            self.pin(self.keys.view()[:, :wanted], self.values.view()[:, :wanted])
            self.keep_last(read - wanted)
        elif window is not None:
            # Sinks that the band does not have are left behind; one without end keeps whatever there is.
            kept = 0 if missing else min(sinks, held)
            self.pin(self.sink_keys[:, :kept], self.sink_values[:, :kept])
        if window is not None:
            self.keep_last(window)

    def forget_rotations(self) -> None:
        """Hold no key rotated: each is rotated again when it is needed."""
        self.turned.keep_last(0)
        self.turned_sinks = None

    def put_first(self, keys: Tensor, values: Tensor, read: int) -> None:
        """Hold these keys and values of the text's first tokens, each [kv_heads, tokens, dim], wherever those are held.

        `read`: how many tokens have been read.
        """
        count, sinks, begin = keys.shape[1], self.sink_keys.shape[1], read - len(self.keys)
        if sinks:
            pairs = (keys, self.sink_keys), (values, self.sink_values)
            self.pin(*(torch.cat((new[:, :sinks], old[:, count:]), 1) for new, old in pairs))
        if begin < count:
            pairs = (keys, self.keys.view()), (values, self.values.view())
            self.restart(torch.stack([torch.cat((new[:, begin:], old[:, count - begin :]), 1) for new, old in pairs]))

    def of_heads(self, own: Int[Tensor, " heads"]) -> "LayerCache":
        """The same tokens of some KV heads, copied."""
        cache = LayerCache(self.sink_keys[own])
        cache.pin(self.sink_keys[own], self.sink_values[own])
        cache.append(self.keys.view()[own], self.values.view()[own])
        return cache

    def copy(self) -> "LayerCache":
        """The same tokens held, free to go another way.  No tensor is copied: `Slots` says why that is safe."""
        twin = copy.copy(self)
        twin.keys, twin.values, twin.turned = copy.copy(self.keys), copy.copy(self.values), copy.copy(self.turned)
        return twin
