"""A store that keeps the first tokens and a window of the newest, the same in all heads: dense, window, sinks + window.

What is kept never depends on what the model computed, so hundreds of tokens go through the model in one pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...families.positions import Angles
from ...policies import Banded, Policy
from ...settings import MOST
from ..attention.band import Band
from ..attention.banded import BandedPass
from ..attention.graph import Graph
from ..attention.token import Rotations, TokenPass
from ..context import SharedContext
from ..history import QKChunk
from ..interventions import Interventions
from ..layers.banded import BandedLayer
from ..layers.quantized import Met
from ..state import State
from .store import PASSES, Passed, Predicted, Store, stacked

TOGETHER = 32
"""Decoded tokens whose queries and keys are put together for maps."""
FARTHEST = 4096
"""Largest distance of the window from the rotation origin, in tokens; beyond it float32 angles lose precision."""


class BandedStore(Store):
    """Sinks and a window, of any size."""

    policy: Banded
    layers: list[BandedLayer]
    chunks: list[QKChunk]

    def __init__(self, context: SharedContext, policy: Policy) -> None:
        super().__init__(context, policy)
        self.origin = 0
        """Text position from which decoding counts positions in the window."""
        self._rotations: dict[tuple, Rotations] = {}
        self._rotated_for = 1
        """The length of the context for which the keys that decoding holds rotated were rotated."""
        self._decoded: tuple[TokenPass, ...] = ()
        self._graph: Graph | None = None

    def read(self, position: int, chunk: int, stop: int) -> Predicted:
        """Several forward passes at most: one ends where the family takes other frequencies for a longer context, or
        where first tokens are quantized."""
        return read_in_passes(self, position - 1, min(position - 1 + chunk, stop - 1), self.length_of, self.forward)

    def length_of(self, t: int, begin: int) -> int:
        """The length of the context of token t, when those before `begin` have been read (families/frequencies.py)."""
        return band_of(self.policy, self.layers, begin, t + 1).length_of(t)

    def forward(self, begin: int, end: int, last: int = 0) -> Passed:
        """Read tokens begin … end − 1; logits of the `last` of them, 0: of all."""
        context = self.context
        self.layers = self.layers or self.empty()
        met = self._met()
        length = context.model.regime(self.length_of(begin, begin))
        one = banded_pass(context, self.policy, self.layers, begin, end, self.interventions, length)
        one.attended, one.quantization = context.attended(), self.quantization
        logits = context.model.forward(self.ids[None, begin:end], one, begin=begin, last=last, outputs=one.outputs)
        evict(self.layers, one.band, end)
        if context.history:
            queries, keys = ([x[0] for x in kind] for kind in (one.queries, one.keys))
            sinks = [[layer.sink_keys for layer in self.layers]]
            met = None if met is None else met._replace(newly=one.newly)
            chunk = QKChunk(begin, end, one.band, queries, keys, self.interventions, length, sinks, quantized=met)
            self._record(chunk)
        self._pack(end)
        if context.watch is not None:
            context.watch(one)
        t, heads = np.arange(begin, end), context.model.kv_heads * context.model.layers
        taken = bytes_in(self, [(heads, one.band)], t)
        return Passed(logits, stacked(one.mass, logits), one.band.held(t), one.attended, nbytes=taken)

    def _met(self) -> Met | None:
        return met_by(self)

    def _pack(self, read: int) -> None:
        pack_in(self, read)

    def decode(self, position: int, kv_chunk: int | None) -> Passed:
        """A pass of its own kind, over keys that stay rotated, once the sinks have been gathered."""
        t, policy = position - 1, self.policy
        sinks, window = (self.layers[0].sink_keys.shape[1], len(self.layers[0].keys)) if self.layers else (0, 0)
        if not window and sinks == t and (not sinks or sinks < policy.sinks):
            return self.forward(t, position, 1)
        band = _reach(policy, sinks, t - window)
        return self._token(t, band, self.context.model.regime(band.length_of(t)), kv_chunk)

    def _token(self, t: int, band: Band, length: int, kv_chunk: int | None, begin: int = 0) -> Passed:
        """Read the token at text position t, which reaches a band, in a context of that length.

        `begin`: the text position that is the network's own position 0.
        """
        context = self.context
        if self._decoded and self._decoded[0].length != length:
            self.settle()
        self._rotate(band, length)
        # The first of those that will be put together; none of them is quantized before they are.
        met = self._decoded[0].quantized if self._decoded else self._met()
        one = TokenPass(
            context.model,
            t,
            context.sink_tokens,
            band,
            self.layers,
            self.origin,
            self._rotations,
            kv_chunk,
            context.history > 0,
            self.interventions,
            length,
            met,
        )
        if self._graphs(kv_chunk):
            logits = self._through_graph(one)
        else:
            logits = context.decode(self.ids[None, t : t + 1], one, t - begin)
        evict(self.layers, band, t + 1)
        q = self.quantization
        packing = q is not None and q.end(t + 1) > q.end(t)
        if context.history:
            self._decoded = (*self._decoded, one)
            if packing or len(self._decoded) >= TOGETHER:
                self.settle()
        if packing:
            self._pack(t + 1)
        return Passed(logits, stacked(one.mass, logits)[..., None], np.array([float(len(self.layers[0]))]))

    def _graphs(self, kv_chunk: int | None) -> bool:
        """Whether a graph may give the next token: what it captures neither packs keys nor knocks anything out."""
        changed = self.interventions is not None and self.interventions.knockout != "none"
        return self.context.graphs and self.quantization is None and kv_chunk is None and not changed

    def _through_graph(self, one: TokenPass) -> Tensor:
        """Logits of a token by the graph that there is; where it does not fit, a new one is captured for the next."""
        ids = self.ids[None, one.token : one.token + 1]
        logits = None if self._graph is None else self._graph(one, ids)
        if logits is not None:
            return logits
        logits = self.context.decode(ids, one, one.token)
        try:
            self._graph = Graph(one)
        except RuntimeError:
            self._graph, self.context.graphs = None, False
        return logits

    def _rotate(self, band: Band, length: int) -> None:
        """Let every layer hold the keys of its window rotated for a context of that length, as far as it does not."""
        model, first, window = self.context.model, band.first, len(self.layers[0].keys)
        if length != self._rotated_for:
            self._rotated_for, self._rotations = length, {}
            for layer in self.layers:
                layer.forget_rotations()
        if first < self.origin or first - self.origin > FARTHEST:
            self.origin = first
            for layer in self.layers:
                layer.rotated.keep_last(0)
        rotated = len(self.layers[0].rotated)
        if rotated == window:
            return
        positions = torch.arange(first + rotated, first + window, device=model.device)
        angles: dict[tuple, Angles | None] = {}
        for number, layer in enumerate(self.layers):
            attention = model.attentions[number]
            kind = model.kind(attention)
            if kind not in angles:
                angles[kind] = model.angles(attention, band.in_window(positions, self.origin), length)
            with torch.inference_mode():
                layer.rotated.append(model.rotate(attention, layer.keys.view()[None, :, rotated:], angles[kind])[0])

    @property
    def decoded(self) -> tuple[TokenPass, ...]:
        """Newest tokens whose queries and keys are not in `chunks` yet."""
        return self._decoded

    def settle(self) -> None:
        """Put the queries and keys of decoded tokens where maps find them."""
        if self._decoded:
            chunk, self._decoded = QKChunk.of(self._decoded), ()
            self._record(chunk)

    def _record(self, chunk: QKChunk) -> None:
        self.chunks = recorded(self.chunks, chunk, self.context.history)

    def empty(self) -> list[BandedLayer]:
        """Layers that hold nothing yet."""
        layers, q = empty_layers(self.context), self.quantization
        return layers if q is None else [layer.quantized(q) for layer in layers]

    def state(self) -> State:
        """What is held, and from where and for which length of context decoding has rotated it."""
        held = super().state()
        return State({**held.values, "origin": self.origin, "rotated_for": self._rotated_for}, held.tensors)

    def load_state(self, state: State) -> None:
        """Hold what a store of the same policy held.  Raises ValueError where that was of another model."""
        super().load_state(state)
        self.origin, self._rotated_for = state.value("origin", int), state.value("rotated_for", int)

    def bands(self, read: int) -> list[BandedLayer]:
        """What is held, in numbers as the model computes them."""
        return [layer.plain() for layer in self.layers]

    def take_over(self, other: Store, read: int, *, pin: bool) -> None:
        """Hold what another store holds; what is to be quantized by now is quantized, and what was quantized in another
        way is so anew."""
        super().take_over(other, read, pin=pin)
        if (q := self.quantization) is not None:
            self.layers = [layer.quantized(q) for layer in self.layers]
            self._pack(read)

    def _keep(self, other: Store, read: int, prefix) -> None:
        if self._goes_on(other, prefix):
            self.layers = [layer.copy() for layer in other.layers]
            for layer in self.layers:
                layer.forget_rotations()
        else:
            self.layers = other.bands(read)
            for number, layer in enumerate(self.layers):
                layer.fit(self.policy.sinks, self.policy.window, None if prefix is None else prefix[number])
        evict(self.layers, band_of(self.policy, self.layers, read, read + 1), read)
        self.origin = self.layers[0].first


def empty_layers(context: SharedContext, first: int = 0) -> list[BandedLayer]:
    """Layers that hold nothing yet; `first`: the text position of what comes."""
    return [BandedLayer.empty(context.model, layer, first) for layer in range(context.model.layers)]


def band_of(policy: Banded, layers: list[BandedLayer], begin: int, end: int) -> Band:
    """What tokens begin … end − 1 reach in layers that a policy keeps."""
    held, window = (layers[0].sink_keys.shape[1], len(layers[0].keys)) if layers else (0, 0)
    # While all that was read are sinks, the next tokens may be some too.
    sinks = max(held, min(policy.sinks, end)) if held == begin and window == 0 else held
    first = layers[0].first if layers else 0
    return _reach(policy, sinks, max(first, sinks))


def _reach(policy: Banded, sinks: int, first: int) -> Band:
    """What a policy keeps of a text of which the first `sinks` tokens are held, and all from `first` on."""
    return Band(sinks, first, policy.window, policy.positions, policy.step, policy.sinks)


def banded_pass(
    context: SharedContext,
    policy: Banded,
    layers: list[BandedLayer],
    begin: int,
    end: int,
    interventions: Interventions | None,
    length: int,
) -> BandedPass:
    """A pass of tokens begin … end − 1 over layers that a policy keeps."""
    watched = context.watch is not None
    one = BandedPass(context.model, begin, context.sink_tokens, band_of(policy, layers, begin, end), layers)
    one.capture, one.interventions, one.length = context.history > 0 or watched, interventions, length
    one.outputs = {} if watched else None
    return one


def evict(layers: list[BandedLayer], band: Band, end: int) -> None:
    """Evict what no token from `end` on reaches, when all before it have been read."""
    for layer in layers:
        layer.keep_last(band.keeps(end))


def met_by(store: Store) -> Met | None:
    """The keys that a pass will meet quantized, where maps are drawn."""
    if store.quantization is None or not store.context.history:
        return None
    return Met(store.quantization, [layer.copy() for layer in store.layers], ())


def pack_in(store: Store, read: int) -> None:
    """Quantize what is to be quantized when a store has read `read` tokens."""
    if (q := store.quantization) is not None:
        for layer in store.layers:
            layer.pack(q.end(read))


def bytes_in(store: Store, parts: Sequence[tuple[int, Band]], t: NDArray[np.integer]) -> NDArray[np.integer] | None:
    """Bytes held when each token at text positions `t` has been read, by so many heads of all layers that keep a band
    each; None where the store quantizes nothing."""
    if (q := store.quantization) is None:
        return None
    model = store.context.model
    size = partial(q.nbytes, t + 1, dim=model.head_dim, itemsize=model.dtype.itemsize)
    taken = np.sum([heads * size(*band.ends(t)) for heads, band in parts], axis=0)
    return taken * (model.head_dim - model.positions.added) // model.head_dim


def read_in_passes(
    store: Store,
    begin: int,
    end: int,
    length_of: Callable[[int, int], int],
    forward: Callable[[int, int], Passed],
) -> Predicted:
    """Read tokens begin … end − 1, in as many passes as have one choice of frequencies each, but no more than
    PASSES; one ends, too, where first tokens are quantized."""
    model, q, parts = store.context.model, store.quantization, []
    firsts = max(store.policy.first_protected(MOST), store.context.sink_tokens)
    while begin < end and len(parts) < PASSES:
        upto = end
        if model.positions.rule:
            # A context grows, and it shrinks where many tokens leave together: no token is passed over.
            alike = model.regime(length_of(begin, begin))
            upto = next((t for t in range(begin + 1, end) if model.regime(length_of(t, begin)) != alike), end)
        if q is not None and q.end(begin) < firsts:
            upto = min(upto, q.moment(begin))
        passed = forward(begin, upto)
        parts.append(store.predicted(passed, begin))
        begin = upto
    return Predicted.joined(parts)


def recorded(chunks: list[QKChunk], chunk: QKChunk, history: int) -> list[QKChunk]:
    """The chunks from which maps of the newest `history` tokens are drawn, when one more has come.

    Nothing of them is changed in place, since maps may be drawn from the others in another thread.
    """
    window, oldest = chunk.band.reach or 0, chunk.stop - history
    return [
        replace(c, queries=[]) if c.queries and c.stop <= oldest else c
        for c in (*chunks, chunk)
        if c.stop > oldest - window
    ]
