"""A store whose heads are of two kinds: some keep everything, the others a band (DuoAttention)."""

from dataclasses import replace
from functools import cached_property

import numpy as np
from torch import Tensor

from ...policies import Policy
from ...policies.duo import Duo
from ..attention.split import SplitPass
from ..context import SharedContext
from ..head_scores import full_heads
from ..history import QKChunk
from ..interventions import Interventions
from ..layers.banded import BandedLayer
from ..layers.quantized import SplitNewly
from ..layers.split import SplitLayer
from .banded import band_of, banded_pass, bytes_in, empty_layers, evict, met_by, pack_in, read_in_passes, recorded
from .store import Passed, Predicted, Store, stacked


class SplitStore(Store):
    """Two bands in every layer, each of some of its KV heads."""

    policy: Duo
    layers: list[SplitLayer]
    chunks: list[QKChunk]

    def __init__(self, context: SharedContext, policy: Policy) -> None:
        super().__init__(context, policy)
        if not self.policy.measured:
            # Where a file does not fit the model, it is said before anything is read.
            full_heads(context, self.policy)

    def read(self, position: int, chunk: int, stop: int) -> Predicted:
        """Several forward passes at most: one ends where the family takes other frequencies for a longer context, or
        where first tokens are quantized."""
        return read_in_passes(self, position - 1, min(position - 1 + chunk, stop - 1), self._length_of, self.forward)

    def _length_of(self, t: int, begin: int) -> int:
        """The length of the context of token t, when those before `begin` have been read: the longest of all heads',
        since a pass has one."""
        self._begin()
        asking = [any(len(layer.names[i]) for layer in self.layers) for i in (0, 1)]
        return max(
            band_of(policy, layers, begin, t + 1).length_of(t)
            for policy, layers, some in zip(self.policy.parts, self._parts, asking, strict=True)
            if some
        )

    def _begin(self) -> None:
        self.layers = self.layers or self.empty()

    def empty(self) -> list[SplitLayer]:
        """Layers that hold nothing yet."""
        full, q = full_heads(self.context, self.policy), self.quantization
        layers = [SplitLayer(*of) for of in zip(empty_layers(self.context), full, strict=True)]
        return layers if q is None else [layer.quantized(q) for layer in layers]

    @property
    def _parts(self) -> list[list[BandedLayer]]:
        """The layers of the heads that keep everything, and those of the others."""
        return [[layer.parts[i] for layer in self.layers] for i in (0, 1)]

    def forward(self, begin: int, end: int, last: int = 0) -> Passed:
        """Read tokens begin … end − 1; logits of the `last` of them, 0: of all."""
        context = self.context
        self._begin()
        length = context.model.regime(self._length_of(begin, begin))
        whole, narrow = (
            banded_pass(context, policy, layers, begin, end, interventions, length)
            for policy, layers, interventions in zip(
                self.policy.parts, self._parts, self._interventions_of_parts, strict=True
            )
        )
        whole.quantization = narrow.quantization = self.quantization
        one = SplitPass([layer.heads for layer in self.layers], (whole, narrow), context.history > 0)
        before = met_by(self)
        one.attended = context.attended()
        ids = self.ids[None, begin:end]
        if last and end - begin == 1:
            logits = context.decode(ids, one, begin)
        else:
            logits = context.model.forward(ids, one, begin=begin, last=last)
        for part, layers in zip((whole, narrow), self._parts, strict=True):
            evict(layers, part.band, end)
        if context.history:
            queries, keys = ([x[0] for x in kind] for kind in (one.queries, one.keys))
            sinks = [[layer.sink_keys for layer in part] for part in self._parts]
            full = [layer.names[0] for layer in self.layers]
            chunk = QKChunk(begin, end, narrow.band, queries, keys, self.interventions, length, sinks, full, whole.band)
            if before is not None:
                newly = [SplitNewly(*of) for of in zip(one.newly, (x.names for x in self.layers), strict=True)]
                chunk = replace(chunk, quantized=before._replace(newly=newly))
            self.chunks = recorded(self.chunks, chunk, context.history)
        pack_in(self, end)
        # Whole numbers until the end: a mean that is a little too large would be a token more.
        heads = [sum(len(layer.names[i]) for layer in self.layers) for i in (0, 1)]
        t = np.arange(begin, end)
        held = (heads[0] * whole.band.held(t) + heads[1] * narrow.band.held(t)) / sum(heads)
        taken = bytes_in(self, [(heads[0], whole.band), (heads[1], narrow.band)], t)
        return Passed(logits, stacked(one.mass, logits), held, one.attended, nbytes=taken)

    @cached_property
    def _interventions_of_parts(self) -> list[Interventions | None]:
        """The interventions as each part has them, whose heads are only some."""
        if self.interventions is None:
            return [None, None]
        groups = range(self.context.model.heads // self.context.model.kv_heads)
        owns = [
            [[head * len(groups) + i for head in layer.names[part] for i in groups] for layer in self.layers]
            for part in (0, 1)
        ]
        return [replace(self.interventions, own=own, _made={}) for own in owns]

    def decode(self, position: int, kv_chunk: int | None) -> Passed:
        """The newest token, by the way in which texts are read."""
        return self.forward(position - 1, position, 1)

    def take_over(self, other: Store, read: int, *, pin: bool) -> None:
        """Hold what another store holds; heads are measured on what there is of the text, if anything."""
        if len(self.context.tokens):
            full_heads(self.context, self.policy)
        super().take_over(other, read, pin=pin)
        if (q := self.quantization) is not None:
            self.layers = [layer.quantized(q) for layer in self.layers]
            pack_in(self, read)

    def _goes_on(self, other: Store, prefix: list[tuple[Tensor, Tensor]] | None) -> bool:
        """The same, where the same heads keep everything."""
        alike = super()._goes_on(other, prefix)
        return alike and [x.names[0] for x in other.layers] == full_heads(self.context, self.policy)

    def split(self, read: int, full: list[list[int]]) -> list[SplitLayer]:
        """What is held as it is, where the same heads keep everything."""
        if full != [layer.names[0] for layer in self.layers]:
            return super().split(read, full)
        return [layer.copy() for layer in self.layers]

    def _keep(self, other: Store, read: int, prefix) -> None:
        self.layers = other.split(read, full_heads(self.context, self.policy))
        if self._goes_on(other, prefix):
            for policy, layers in zip(self.policy.parts, self._parts, strict=True):
                evict(layers, band_of(policy, layers, read, read + 1), read)
            return
        self.layers = [layer.plain() for layer in self.layers]
        for number, layer in enumerate(self.layers):
            for part, kept, own in zip(layer.parts, self.policy.parts, layer.heads, strict=True):
                first = None if prefix is None else (prefix[number][0][own], prefix[number][1][own])
                part.fit(self.policy.sinks, kept.window, first)
