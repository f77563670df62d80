"""The keys and values that one layer keeps: the first tokens (sinks), and one window of tokens without gaps.

Keys stand here as they were before rotary embedding.  A window knows where in the text it begins, so that what a layer
says it holds is what its tensors are.  Which tokens stay is decided elsewhere; this module appends, evicts and counts
bytes.
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...families.rotary import Adapted
from ..state import State
from .quantized import Newly, Quantization
from .quantized_slots import QuantizedSlots, pack_together, viewed
from .slots import Slots, Span


class BandedLayer:
    """What one layer keeps of the text: `sinks` first tokens, then a window without gaps, which begins at `first`.

    `rotated` holds the keys of the window once more, rotated, for a token that is decoded alone (attention/token.py).
    It begins where the window begins and may be shorter: what is read in chunks is rotated when it is first needed.
    """

    def __init__(self, like: Float[Tensor, "kv_heads tokens dim"], first: int = 0) -> None:
        self.sink_keys = self.sink_values = like[:, :0].clone()
        self.keys, self.values, self.rotated = (Slots(like, first) for _ in range(3))
        self.rotated_sinks: Float[Tensor, "kv_heads sinks dim"] | None = None

    @classmethod
    def empty(cls, model: Adapted, layer: int, first: int = 0) -> "BandedLayer":
        """What a layer of a model holds before it has read anything; `first`: the text position of what comes."""
        return cls(torch.empty(model.kv_heads, 0, model.head_dim, dtype=model.dtype, device=model.homes[layer]), first)

    def state(self) -> State:
        """What it holds, rotated keys too: a token that was decoded was rotated by a product of its own."""
        tensors = {"sink_keys": self.sink_keys, "sink_values": self.sink_values}
        windows = {"keys": self.keys.window(), "values": self.values.window()}
        if len(self.rotated):
            windows["rotated"] = self.rotated.window()
        if self.rotated_sinks is not None:
            tensors["rotated_sinks"] = self.rotated_sinks
        return State({"first": self.first, "rotated_first": self.rotated.first}, {**tensors, **windows})

    def loaded(self, state: State) -> "BandedLayer":
        """A layer like this one that holds what a state says.  Raises ValueError where that is of another model."""
        like, first = self.sink_keys, state.value("first", int)
        kind = (like, (like.shape[0], None, like.shape[2]), like.dtype)
        layer = BandedLayer(like[:, :0], first)
        layer.pin(state.tensor("sink_keys", *kind), state.tensor("sink_values", *kind))
        keys, values = state.tensor("keys", *kind), state.tensor("values", *kind)
        layer.keys, layer.values = Slots.of(keys, first), Slots.of(values, first)
        rotated = state.get("rotated", *kind[:2])
        layer.rotated = Slots.of(keys[:, :0] if rotated is None else rotated, state.value("rotated_first", int))
        layer.rotated_sinks = state.get("rotated_sinks", *kind[:2])
        return layer

    def __len__(self) -> int:
        return self.sink_keys.shape[1] + len(self.keys)

    @property
    def first(self) -> int:
        """The text position at which the window begins."""
        return self.keys.first

    @property
    def read(self) -> int:
        """How many tokens of the text have been read: the window ends with the newest."""
        return self.keys.first + len(self.keys)

    @property
    def slots(self) -> int:
        """Tokens held, once for each KV head."""
        return len(self) * len(self.sink_keys)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held; `rotated` is work space and not counted."""
        return self.sink_keys.nbytes + self.sink_values.nbytes + self.keys.nbytes + self.values.nbytes

    @property
    def span(self) -> Span:
        """What its heads hold."""
        keys, first = self.keys.placed()
        return Span(len(self.sink_keys), self.sink_keys.shape[1], first, first + keys.shape[1])

    def held(self, read: int) -> list[Span]:
        """What its heads hold when `read` tokens have been read."""
        return [self.span]

    def window_of(self, kv_head: int) -> tuple[Float[Tensor, "slots dim"], int]:
        """The keys that a KV head holds in the window, and the text position of the first of them."""
        keys, first = self.keys.placed()
        return keys[kv_head], first

    def of_head(
        self, kv_head: int
    ) -> tuple[Int[Tensor, " slots"], Float[Tensor, "slots dim"], Float[Tensor, "slots dim"]]:
        """Text positions, keys and values that one KV head holds, in the order of the text."""
        keys, values = self.everything()
        return self.positions(), keys[kv_head], values[kv_head]

    def window(self) -> tuple[Float[Tensor, "kv_heads slots dim"], Float[Tensor, "kv_heads slots dim"]]:
        """Keys and values of the window as a query meets them."""
        return self.keys.view(), self.values.view()

    def met_values(self) -> Float[Tensor, "kv_heads slots dim"]:
        """The values of the window as a token meets them that is decoded alone."""
        return self.values.view()

    def append(
        self,
        keys: Float[Tensor, "kv_heads tokens dim"],
        values: Float[Tensor, "kv_heads tokens dim"],
        rotated: Float[Tensor, "kv_heads tokens dim"] | None = None,
    ) -> None:
        """Hold the next tokens of the text too."""
        self.keys.append(keys)
        self.values.append(values)
        if rotated is not None:
            self.rotated.append(rotated)

    def pin(self, keys: Float[Tensor, "kv_heads sinks dim"], values: Float[Tensor, "kv_heads sinks dim"]) -> None:
        """Hold these as the sinks, in place of any that were held."""
        self.sink_keys, self.sink_values = keys.clone(), values.clone()
        self.rotated_sinks = None

    def append_sinks(
        self, keys: Float[Tensor, "kv_heads tokens dim"], values: Float[Tensor, "kv_heads tokens dim"]
    ) -> None:
        """Hold the next tokens of the text as further sinks; the window, still empty, begins behind them."""
        for window in (self.keys, self.values, self.rotated):
            window.skip(keys.shape[1])
        self.pin(torch.cat((self.sink_keys, keys), 1), torch.cat((self.sink_values, values), 1))

    def keep_last(self, tokens: int) -> None:
        """Evict all of the window but its last tokens."""
        leaving = len(self.keys) - tokens
        if leaving > 0:
            self.rotated.keep_last(max(0, len(self.rotated) - leaving))
            self.keys.keep_last(tokens)
            self.values.keep_last(tokens)

    def restart(self, window: Float[Tensor, "2 kv_heads tokens dim"], first: int = 0) -> None:
        """Hold this window (keys, values), which begins at text position `first`, in place of the one before."""
        self.keys, self.values, self.rotated = (Slots(window[0], first) for _ in range(3))
        self.append(window[0], window[1])

    def forget_rotations(self) -> None:
        """Forget how keys are rotated: from now on they stand elsewhere."""
        self.rotated.keep_last(0)
        self.rotated_sinks = None

    def everything(self) -> tuple[Float[Tensor, "kv_heads tokens dim"], Float[Tensor, "kv_heads tokens dim"]]:
        """Keys and values of all tokens held, in the order of the text."""
        keys, values = self.window()
        return torch.cat((self.sink_keys, keys), 1), torch.cat((self.sink_values, values), 1)

    def positions(self) -> Int[Tensor, " tokens"]:
        """The text positions of `everything`."""
        positions = torch.arange(self.sink_keys.shape[1]), torch.arange(self.first, self.read)
        return torch.cat(positions).to(self.sink_keys.device)

    def fit(
        self,
        sinks: int,
        window: int | None,
        prefix: tuple[Float[Tensor, "kv_heads first dim"], Float[Tensor, "kv_heads first dim"]] | None,
    ) -> None:
        """Keep what a band of other size keeps of what is held.

        `prefix`: keys and values of the text's first tokens, at least min(sinks, read) of them, to hold where they are
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
        elif span.prefix < wanted and prefix is not None:
            self.pin(prefix[0][:, :wanted], prefix[1][:, :wanted])
            self.keep_last(span.read - max(wanted, span.first))
        elif window is not None:
            kept = wanted if span.prefix >= wanted else 0
            self.pin(self.sink_keys[:, :kept], self.sink_values[:, :kept])
        if window is not None:
            self.keep_last(window)

    def replace_first(
        self, keys: Float[Tensor, "kv_heads first dim"], values: Float[Tensor, "kv_heads first dim"]
    ) -> None:
        """Hold these keys and values of the text's first tokens, wherever those are held."""
        count, sinks, begin = keys.shape[1], self.sink_keys.shape[1], self.first
        if sinks:
            new_keys = torch.cat((keys[:, :sinks], self.sink_keys[:, count:]), 1)
            self.pin(new_keys, torch.cat((values[:, :sinks], self.sink_values[:, count:]), 1))
        if begin < count and len(self.keys):
            pairs = (keys, self.keys.view()), (values, self.values.view())
            window = [torch.cat((new[:, begin:], old[:, count - begin :]), 1) for new, old in pairs]
            self.restart(torch.stack(window), begin)

    def of_heads(self, kv_heads: Int[Tensor, " heads"]) -> "BandedLayer":
        """The same tokens of some KV heads, copied."""
        layer = BandedLayer(self.sink_keys[kv_heads], self.first)
        layer.pin(self.sink_keys[kv_heads], self.sink_values[kv_heads])
        layer.append(self.keys.view()[kv_heads], self.values.view()[kv_heads])
        return layer

    def ends(
        self, first: int, last: int
    ) -> tuple[Float[Tensor, "kv_heads ends dim"], Float[Tensor, "kv_heads ends dim"]]:
        """Keys and values of the first and the last tokens, so many of each, which must be held."""
        keys, values = self.everything()
        begin = keys.shape[1] - last
        return torch.cat((keys[:, :first], keys[:, begin:]), 1), torch.cat((values[:, :first], values[:, begin:]), 1)

    def plain(self) -> "BandedLayer":
        """What it holds, in numbers as the model computes them."""
        return self.copy()

    def quantized(self, q: Quantization) -> "QuantizedLayer":
        """The same tokens in a layer that stores older ones in few bits."""
        return QuantizedLayer.of(self, q)

    def pack(self, end: int) -> Newly | None:
        """Store tokens before text position `end` in few bits, where that is done, and tell what those of the window
        are then."""
        return None

    def copy(self) -> "BandedLayer":
        """The same tokens held, free to go another way.  No tensor is copied: `Slots` says why that is right."""
        twin = copy.copy(self)
        twin.keys, twin.values, twin.rotated = copy.copy(self.keys), copy.copy(self.values), copy.copy(self.rotated)
        return twin


class QuantizedLayer(BandedLayer):
    """The same, with older tokens in few bits (quantized.py): `sinks` are keys and values of the sinks as they are
    stored, and `sink_keys` and `sink_values` what they are in numbers.

    A token that is decoded alone meets values, too, that were unpacked before: `unpacked` is work space as `rotated`
    is, and begins and ends where the window does, or is empty.
    """

    # A window of tokens, too, of which some are packed.
    keys: QuantizedSlots
    values: QuantizedSlots

    def __init__(self, like: Float[Tensor, "kv_heads tokens dim"], q: Quantization, first: int = 0) -> None:
        super().__init__(like, first)
        self.q, self.unpacked = q, Slots(like, first)
        self.keys, self.values = self._slots(like[:, :0], like[:, :0], first)
        self.sinks = self._slots(like[:, :0], like[:, :0], 0)

    @property
    def span(self) -> Span:
        """What its heads hold."""
        return Span(len(self.sink_keys), self.sink_keys.shape[1], self.first, self.read)

    def _slots(self, keys: Tensor, values: Tensor, first: int) -> tuple[QuantizedSlots, QuantizedSlots]:
        return (
            QuantizedSlots.of(keys, self.q, first, by_channel=True),
            QuantizedSlots.of(values, self.q, first, by_channel=False),
        )

    @classmethod
    def of(cls, layer: BandedLayer, q: Quantization) -> "QuantizedLayer":
        """What a layer holds, of which nothing is packed yet."""
        twin = cls(layer.sink_keys[:, :0], q, layer.first)
        twin.pin(layer.sink_keys, layer.sink_values)
        twin.append(*layer.window())
        return twin

    def quantized(self, q: Quantization) -> "QuantizedLayer":
        """Itself."""
        return self

    def plain(self) -> BandedLayer:
        """What it holds, in numbers as the model computes them: what rounding has taken from them stays lost."""
        layer = BandedLayer(self.sink_keys[:, :0], self.first)
        layer.pin(self.sink_keys, self.sink_values)
        layer.append(*self.window())
        return layer

    @torch.inference_mode()
    def pack(self, end: int) -> Newly | None:
        """Pack all tokens before text position `end` that are to be; tells those of the window as they are then."""
        waiting = self.sinks[0].waiting(end)[1].shape[1]
        whole = len(self.unpacked) == len(self.values)
        newly = pack_together((self.sinks, (self.keys, self.values)), end)
        if waiting:
            self._unpack_sinks()
        if newly is not None:
            # What is left of the work space is rotated and unpacked when it is next needed.
            begin = newly.begin - self.first
            self.rotated = Slots.of(self.rotated.view()[:, :begin], self.rotated.first)
            if whole:
                behind = self.unpacked.view()[:, begin + newly.values.shape[1] :]
                parts = (self.unpacked.view()[:, :begin], newly.values, behind)
                self.unpacked = Slots.of(torch.cat(parts, 1), self.first)
        return newly

    def _unpack_sinks(self) -> None:
        (self.sink_keys, self.sink_values), self.rotated_sinks = (x.view() for x in self.sinks), None

    def pin(self, keys: Float[Tensor, "kv_heads sinks dim"], values: Float[Tensor, "kv_heads sinks dim"]) -> None:
        """Hold these as the sinks, in place of any that were held; none is packed yet."""
        self.sinks = self._slots(keys, values, 0)
        self._unpack_sinks()

    def append_sinks(
        self, keys: Float[Tensor, "kv_heads tokens dim"], values: Float[Tensor, "kv_heads tokens dim"]
    ) -> None:
        """Hold the next tokens of the text as further sinks; the window, still empty, begins behind them."""
        for window in (self.keys, self.values, self.rotated, self.unpacked):
            window.skip(keys.shape[1])
        for sinks, new in zip(self.sinks, (keys, values), strict=True):
            sinks.append(new)
        self._unpack_sinks()

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values as they are stored, with scales and zero points; what is unpacked is work space
        and not counted."""
        return sum(slots.nbytes for slots in (*self.sinks, self.keys, self.values))

    def window(self) -> tuple[Float[Tensor, "kv_heads slots dim"], Float[Tensor, "kv_heads slots dim"]]:
        """Keys and values of the window as a query meets them, unpacked into new memory."""
        keys, values = viewed(self.keys, self.values)
        return keys, values

    def met_values(self) -> Float[Tensor, "kv_heads slots dim"]:
        """The values of the window as a token meets them that is decoded alone."""
        if len(self.unpacked) != len(self.values):
            self.unpacked = Slots.of(self.values.view(), self.first)
        return self.unpacked.view()

    def append(
        self,
        keys: Float[Tensor, "kv_heads tokens dim"],
        values: Float[Tensor, "kv_heads tokens dim"],
        rotated: Float[Tensor, "kv_heads tokens dim"] | None = None,
    ) -> None:
        """Hold the next tokens of the text too."""
        if rotated is None or len(self.unpacked) != len(self.values):
            self.unpacked.keep_last(0)
        else:
            self.unpacked.append(values)
        super().append(keys, values, rotated)

    def keep_last(self, tokens: int) -> None:
        """Evict all of the window but its last tokens."""
        super().keep_last(tokens)
        self.unpacked.keep_last(tokens)

    def state(self) -> State:
        """What it holds, rotated keys too."""
        parts = dict(zip(("sink_keys", "sink_values"), self.sinks, strict=True))
        states = [slots.state(name) for name, slots in {**parts, "keys": self.keys, "values": self.values}.items()]
        values, tensors = {"rotated_first": self.rotated.first}, {}
        for state in states:
            values |= state.values
            tensors |= state.tensors
        if len(self.rotated):
            tensors["rotated"] = self.rotated.window()
        if self.rotated_sinks is not None:
            tensors["rotated_sinks"] = self.rotated_sinks
        return State(values, tensors)

    def loaded(self, state: State) -> "QuantizedLayer":
        """A layer like this one that holds what a state says.  Raises ValueError where that is of another model."""
        like = self.sink_keys[:, :0]
        layer = QuantizedLayer(like, self.q)
        layer.keys, layer.values = self.keys.loaded("keys", state), self.values.loaded("values", state)
        layer.sinks = self.sinks[0].loaded("sink_keys", state), self.sinks[1].loaded("sink_values", state)
        layer._unpack_sinks()
        shape = (len(like), None, like.shape[2])
        rotated = state.get("rotated", like, shape)
        layer.rotated = Slots.of(like if rotated is None else rotated, state.value("rotated_first", int))
        layer.rotated_sinks = state.get("rotated_sinks", like, shape)
        return layer

    def copy(self) -> "QuantizedLayer":
        """The same tokens held, free to go another way."""
        twin = copy.copy(self)
        twin.keys, twin.values, twin.rotated = copy.copy(self.keys), copy.copy(self.values), copy.copy(self.rotated)
        twin.unpacked, twin.sinks = copy.copy(self.unpacked), (copy.copy(self.sinks[0]), copy.copy(self.sinks[1]))
        return twin
