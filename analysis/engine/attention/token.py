"""One token through the model: the attention of a token that is generated, over keys that are written in place.

Reading a text pays for masks and rotations once a chunk; a conversation is made of chunks of one, so here everything
that the layers share is made once a token, and keys stay rotated from one token to the next.  Only distances count
within the window, so its keys stand at positions counted from some origin, and a query that moves on leaves them alone;
the sinks, whose distance does not grow in cache positions, get a query of their own.  What a token reaches is still
said by Band, what is kept by the store.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...families.positions import AttentionModule
from ...families.rotary import Adapted
from ..interventions import Interventions
from ..layers.banded import BandedLayer
from ..layers.quantized import Met
from .band import Band
from .call import Call, joined, partial, weigh

TABLE = 4096
"""Rows of the rotations that are made at a time, `dim` for each position."""


class Rotations:
    """The rotations of one kind of layer as matrices: x [rows, dim] @ at(position) is x rotated to that position."""

    def __init__(self, model: Adapted, attention: AttentionModule, dim: int, length: int = 1) -> None:
        self._model, self._attention, self._dim, self._length = model, attention, dim, length
        self._tables: dict[int, Tensor] = {}
        self._positions = max(1, TABLE // dim)
        nowhere = torch.zeros(1, dtype=torch.int64, device=model.device)
        self.idle = model.angles(attention, nowhere) is None
        """Whether there is nothing to rotate in these layers."""

    def at(self, position: int) -> Float[Tensor, "dim dim"]:
        """The rotation to one position."""
        block, row = divmod(position, self._positions)
        if block not in self._tables:
            # One for the window, which moves on, and one for the sinks, which stands still when the cache is full.
            while len(self._tables) > 2:
                self._tables.pop(next(iter(self._tables)))
            self._tables[block] = self._table(block)
        return self._tables[block][row]

    def _table(self, block: int) -> Float[Tensor, "positions dim dim"]:
        model, dim = self._model, self._dim
        basis = torch.eye(dim, dtype=model.dtype, device=model.homes[self._attention.layer_idx])
        count = self._positions
        positions = torch.arange(block * count, (block + 1) * count, device=model.device)
        # A rotation is linear, so what the family's own function does to a basis says what it does to anything.
        angles = model.angles(self._attention, positions.repeat_interleave(dim), self._length)
        rotated = model.rotate(self._attention, basis.repeat(count, 1)[None, None], angles)
        return rotated[0, 0].view(count, dim, dim)


@dataclass(frozen=True)
class Sight:
    """What the token sees in the layers of one kind: the sinks from `sinks_from` on, and the last `window` keys.

    `counted`: how many of these first columns are first tokens of the text; `key` and `query`: their rotations, the
    query's once for the window and once more for the sinks, with the scaling of the scores in them.
    """

    attention: AttentionModule
    """One of these layers."""
    sinks_from: int
    window: int
    counted: int
    observed: int
    key: Float[Tensor, "dim dim"] | None
    query: Float[Tensor, "dim dims"] | float
    hidden: Float[Tensor, " columns"] | None = None
    """What is added to scores of columns that the token may not see, where it cannot leave them out (graph.py)."""
    early: Float[Tensor, " columns"] | None = None
    """Which of the counted columns are first tokens, where that is not all of them."""


@dataclass(eq=False)
class TokenPass:
    """One forward pass of one token of one lane, at text position `token`.

    After the pass `mass[layer]` holds the sink mass, [heads]; with `capture`, `queries[layer]` [heads, 1, dim] and
    `keys[layer]` [kv_heads, 1, dim] hold what the layer computed before rotation.
    """

    model: Adapted
    token: int
    sink_tokens: int
    band: Band
    layers: list[BandedLayer]
    origin: int
    """Text position from which positions in the window are counted."""
    rotations: dict[tuple, Rotations]
    kv_chunk: int | None = None
    """Keys of a long window that are read at a time, each piece with its own sum and log-sum-exp (flash-decoding)."""
    capture: bool = False
    interventions: Interventions | None = None
    length: int = 1
    """Of the context for which rotations are chosen; those in `rotations` and in the layers were made for it."""
    quantized: Met | None = None
    """What the token met of keys that are quantized, where maps are drawn."""
    mass: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    sights: dict[tuple, Sight] = field(default_factory=dict)
    """What layers of each kind see: their rotations', the scaling of their scores, and their own sliding window."""

    def attend(
        self,
        attention: AttentionModule,
        query: Float[Tensor, "1 heads 1 dim"],
        key: Float[Tensor, "1 kv_heads 1 dim"],
        value: Float[Tensor, "1 kv_heads 1 dim"],
        **settings: Any,
    ) -> Float[Tensor, "1 1 heads dim"]:
        """The layer's output; as a side effect its key and value are held and its sink mass is known."""
        call = Call.of(attention, query, key, value, self.interventions, **settings)
        held, heads, dim, kv_heads = self.layers[call.layer], call.heads, call.dim, call.kv_heads
        if self.capture:
            self.queries.append(query[0])
            self.keys.append(key[0])
        sight = self._sight(attention, call)
        rotated = key[0] if sight.key is None else key[0].to(sight.key.dtype) @ sight.key
        window, values = self._hold(call.layer, key[0], value[0], rotated, sight)
        q = query.reshape(heads, dim)
        # One product rotates the query to both of its positions.
        q = (q * sight.query if sight.key is None else q @ sight.query).view(kv_heads, heads // kv_heads, -1)
        sinks = max(0, held.sink_keys.shape[1] - sight.sinks_from)
        pieces = []
        if self.kv_chunk is not None and sight.window - sight.observed > self.kv_chunk:
            window, values, pieces = self._pieces(q[..., :dim], window, values, sight.observed, call)
        scores = torch.bmm(q[..., :dim], window.transpose(1, 2))
        if sinks:
            first = self._rotated_sinks(attention, held)[:, sight.sinks_from :]
            scores = torch.cat((torch.bmm(q[..., -dim:], first.transpose(1, 2)), scores), -1)
        scores = call.capped(scores)
        if sight.hidden is not None:
            scores = scores + sight.hidden.to(scores.dtype)
        scores = call.with_sinks(scores)
        weights, total = weigh(scores, pieces, value.dtype)
        early = weights[..., : sight.counted]
        if sight.early is not None:
            early = early * sight.early
        self.mass.append(early.sum(-1, dtype=torch.float32).view(heads))
        weights, total = call.intervene(scores, weights, total, lambda: self._first_tokens(scores, sight), pieces)
        out = torch.bmm(weights[..., sinks : sinks + window.shape[1]], values)
        if sinks:
            out = torch.baddbmm(out, weights[..., :sinks], held.sink_values[:, sight.sinks_from :])
        return joined(out, pieces, total).view(1, 1, heads, dim)

    def _sight(self, attention: AttentionModule, call: Call) -> Sight:
        """What layers of this one's kind see, made once."""
        kind = self._kind(attention, call)
        if kind not in self.sights:
            self.sights[kind] = self.see(attention, call.scaling, call.sliding_window)
        return self.sights[kind]

    def _kind(self, attention: AttentionModule, call: Call) -> tuple:
        """What layers have in common that see the same."""
        return *self.model.kind(attention), call.scaling, call.sliding_window

    def _hold(
        self,
        layer: int,
        key: Float[Tensor, "kv_heads 1 dim"],
        value: Float[Tensor, "kv_heads 1 dim"],
        rotated: Float[Tensor, "kv_heads 1 dim"],
        sight: Sight,
    ) -> tuple[Float[Tensor, "kv_heads slots dim"], Float[Tensor, "kv_heads slots dim"]]:
        """Hold the token too; the rotated keys and the values that it sees of the window."""
        held = self.layers[layer]
        held.append(key, value, rotated)
        window, values = held.rotated.view(), held.met_values()
        if sight.window < window.shape[1]:
            window, values = window[:, -sight.window :], values[:, -sight.window :]
        return window, values

    def _first_tokens(self, scores: Tensor, sight: Sight) -> tuple[Tensor, bool]:
        """Which columns are first tokens of the text, [columns], and whether this token is none of them."""
        return torch.arange(scores.shape[-1], device=scores.device) < sight.counted, self.token >= self.sink_tokens

    def see(self, attention: AttentionModule, scaling: float, sliding_window: int | None) -> Sight:
        """What a layer sees, and all others of its kind, when it does not yet hold this token."""
        t, band = self.token, self.band
        inner = band.narrowed(sliding_window)
        seen = min(len(self.layers[attention.layer_idx].keys) + 1, t + 1 - inner.low_of(t))
        sinks_from = 0 if sliding_window is None else min(max(0, t - sliding_window + 1), band.sinks)
        observed = max(0, min(self.sink_tokens, t + 1) - (t + 1 - seen))
        counted = max(0, min(band.sinks, self.sink_tokens) - sinks_from) + observed
        kind = self.model.kind(attention)
        rotations = self.rotations.get(kind)
        if rotations is None:
            rotations = self.rotations[kind] = Rotations(self.model, attention, self.model.head_dim, self.length)
        if rotations.idle:
            return Sight(attention, sinks_from, seen, counted, observed, None, scaling)
        key = query = rotations.at(int(band.in_window(torch.tensor(t), self.origin)))
        if band.sinks:
            query = torch.cat((key, rotations.at(band.slot_of(t))), -1)
        return Sight(attention, sinks_from, seen, counted, observed, key, query * scaling)

    def _rotated_sinks(self, attention: AttentionModule, held: BandedLayer) -> Float[Tensor, "kv_heads sinks dim"]:
        if held.rotated_sinks is None:
            angles = self.model.angles(attention, self.band.at_sinks(self.model.device), self.length)
            held.rotated_sinks = self.model.rotate(attention, held.sink_keys[None], angles)[0]
        return held.rotated_sinks

    def _pieces(
        self,
        q: Float[Tensor, "kv_heads groups dim"],
        window: Float[Tensor, "kv_heads slots dim"],
        values: Float[Tensor, "kv_heads slots dim"],
        observed: int,
        call: Call,
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """All whole pieces of the window at once, joined into one by their log-sum-exp; and what is left of it."""
        assert self.kv_chunk is not None
        count = (window.shape[1] - observed) // self.kv_chunk
        end = observed + count * self.kv_chunk
        k, v = (x[:, observed:end].unflatten(1, (count, -1)).transpose(0, 1) for x in (window, values))
        out, lse = partial(q.expand(count, -1, -1, -1), k, v, call)
        total = torch.logsumexp(lse, 0)
        out = (out * (lse - total).exp()[..., None].to(out.dtype)).sum(0)
        window, values = (torch.cat((x[:, :observed], x[:, end:]), 1) for x in (window, values))
        return window, values, [(out, total)]
