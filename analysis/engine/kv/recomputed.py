"""A store that keeps no keys between encodings: the newest tokens are encoded anew from position 0 every few tokens."""

import numpy as np
import torch

from ...policies import Policy, Recomputed
from ..attention.band import Band
from ..attention.banded import BandedPass
from ..context import SharedContext
from ..history import QKChunk
from ..layers.banded import BandedLayer
from ..state import State
from .banded import BandedStore, empty_layers
from .store import Passed, Predicted, Store, stacked


class RecomputedStore(BandedStore):
    """The newest window as it was encoded, until the next encoding; inside a stride it grows as dense does."""

    # The store of another policy, which it asks for other things.
    policy: Recomputed  # ty: ignore[incompatible-attribute-override]

    def __init__(self, context: SharedContext, policy: Policy) -> None:
        super().__init__(context, policy)
        self._encoded_for: int | None = None
        """The length of the context for which what is held was rotated when this store encoded it, if it did."""

    def read(self, position: int, chunk: int, stop: int) -> Predicted:
        """One forward pass over a batch of windows."""
        context, model, p = self.context, self.context.model, position
        window, stride = self.policy.window, self.policy.stride
        length = self._length(p)
        if p <= window:
            alike = model.regime_end(length) or window
            starts, tokens = [0], min(window, p + chunk - 1, stop - 1, alike)
            last = tokens + 1 - p
        else:
            into = (p - window - 1) % stride
            starts = [p - into - window]
            last = min(stride - into, stop - p)
            tokens = window + into + last - 1
            if into == 0 and last == stride:
                count = max(1, min(chunk // tokens, (stop - p) // stride))
                starts = [starts[0] + i * stride for i in range(count)]
        begins = starts[0] + stride * torch.arange(len(starts), device=context.ids.device)
        ids = self.ids[begins[:, None] + torch.arange(tokens, device=context.ids.device)]
        band = Band(0, starts[-1], None, "text")
        length = model.regime(length)
        one = BandedPass(model, starts[0], context.sink_tokens, band, None, begins, True, self.interventions, length)
        one.attended = context.attended()
        logits = model.forward(ids, one, last=last)
        mass = stacked(one.mass, logits).unflatten(-1, (len(starts), tokens))[..., -last:].flatten(-2)
        self._encoded_for = length
        # The newest window stays: it is what this lane holds, until it reads on or another policy takes over.
        self.layers = [BandedLayer(k[-1], starts[-1]) for k in one.keys]
        for layer, k, v in zip(self.layers, one.keys, one.values, strict=True):
            layer.append(k[-1], v[-1])
        if context.history:
            queries, keys = [q[-1].clone() for q in one.queries], [k[-1].clone() for k in one.keys]
            self.chunks = [QKChunk(starts[-1], starts[-1] + tokens, band, queries, keys, self.interventions, length)]
        held = np.tile(np.arange(tokens - last + 1.0, tokens + 1), len(starts))
        attended = None if one.attended is None else [of[:, -last:] for of in one.attended]
        return self.predicted(Passed(logits, mass, held, attended), p - 1)

    def _graphs(self, kv_chunk: int | None) -> bool:
        """Windows are encoded anew too often for a graph to be worth its capture."""
        return False

    def _length(self, position: int) -> int:
        """The length of the text that is encoded for the token at `position` (families/frequencies.py); all of a stride
        have one."""
        policy = self.policy
        return position if position <= policy.window else policy.window + policy.stride - 1

    def decode(self, position: int, kv_chunk: int | None) -> Passed:
        """The newest token; at the end of a stride its whole window is encoded anew."""
        beyond = position - self.policy.window - 1
        into = beyond % self.policy.stride if beyond >= 0 else 0
        length = self.context.model.regime(self._length(position))
        if self._encoded_for != length or (beyond >= 0 and into == 0):
            return self._encode(max(0, position - self.policy.window - into), position, length)
        # A window is a text of its own, whose every token is kept.
        band = Band(0, position - 1 - len(self.layers[0].keys), None, "text")
        return self._token(position - 1, band, length, kv_chunk, band.first)

    def _encode(self, start: int, end: int, length: int) -> Passed:
        """Encode tokens start … end − 1 anew; logits of the newest."""
        context, model = self.context, self.context.model
        self.layers = empty_layers(context, start)
        self._encoded_for = length
        band, capture = Band(0, start, None, "text"), context.history > 0
        one = BandedPass(
            model, start, context.sink_tokens, band, self.layers, None, capture, self.interventions, length
        )
        logits = model.forward(self.ids[None, start:end], one, last=1)
        if capture:
            self._decoded = ()
            queries, keys = ([x[0] for x in kind] for kind in (one.queries, one.keys))
            self.chunks = [QKChunk(start, end, band, queries, keys, self.interventions, length)]
        return Passed(logits, stacked(one.mass, logits)[..., -1:], np.array([float(len(self.layers[0]))]))

    def state(self) -> State:
        """What is held, and for which length of context it was encoded."""
        held = super().state()
        return State({**held.values, "encoded_for": self._encoded_for or 0}, held.tensors)

    def load_state(self, state: State) -> None:
        """Hold what a store of the same policy held.  Raises ValueError where that was of another model."""
        super().load_state(state)
        self._encoded_for = state.value("encoded_for", int) or None

    def _record(self, chunk: QKChunk) -> None:
        self.chunks = [*self.chunks, chunk]

    def _keep(self, other: Store, read: int, prefix) -> None:
        self.layers = other.bands(read)
