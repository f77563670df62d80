"""One token through the model: the attention of a token that is generated, over a cache that is written in place.

Reading a text pays for masks and rotations once a chunk; a conversation is made of chunks of one, so here everything
that the layers share is made once a token, and keys stay rotated from one token to the next.  Only distances count
within the run, so its keys stand at places counted from some origin, and a query that moves on leaves them alone; the
sinks, whose distance does not grow in cache positions, get a query of their own.  What a token reaches is still said by
Band, what is kept by the lane.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...families.rotary import Adapted
from ..interventions import Interventions
from ..kv.banded import BandedLayer
from .band import Band
from .banded import capped, partial, weigh

TABLE = 64
"""Places whose rotations are made at a time."""


class Rotations:
    """The rotations of one kind of layer as matrices: x [rows, dim] @ at(place) is x rotated to that place."""

    def __init__(self, model: Adapted, attention: nn.Module, dim: int, length: int = 1) -> None:
        self._model, self._attention, self._dim, self._length = model, attention, dim, length
        self._tables: dict[int, Tensor] = {}
        nowhere = torch.zeros(1, dtype=torch.int64, device=model.device)
        self.idle = model.angles(attention, nowhere) is None
        """Whether there is nothing to rotate in these layers."""

    def at(self, place: int) -> Float[Tensor, "dim dim"]:
        block, row = divmod(place, TABLE)
        if block not in self._tables:
            # One for the run, which moves on, and one for the sinks, which stands still when the cache is full.
            while len(self._tables) > 2:
                self._tables.pop(next(iter(self._tables)))
            self._tables[block] = self._table(block)
        return self._tables[block][row]

    def _table(self, block: int) -> Float[Tensor, "places dim dim"]:
        model, dim = self._model, self._dim
        basis = torch.eye(dim, dtype=model.dtype, device=model.homes[self._attention.layer_idx])
        places = torch.arange(block * TABLE, (block + 1) * TABLE, device=model.device)
        # A rotation is linear, so what the family's own function does to a basis says what it does to anything.
        angles = model.angles(self._attention, places.repeat_interleave(dim), self._length)
        turned = model.rotate(self._attention, basis.repeat(TABLE, 1)[None, None], angles)
        return turned[0, 0].view(TABLE, dim, dim)


@dataclass(frozen=True)
class Sight:
    """What the token sees in the layers of one kind: the sinks from `sinks_from` on, and the last `run` of the run.

    `counted`: how many of these first columns are first tokens of the text; `key` and `query`: their rotations, the
    query's once for the run and once more for the sinks, with the scaling of the scores in them.
    """

    sinks_from: int
    run: int
    counted: int
    observed: int
    key: Tensor | None
    query: Tensor | float


@dataclass(eq=False)
class TokenPass:
    """One forward pass of one token of one lane, at text position `token`.

    After the pass `mass[layer]` holds the sink mass, [heads]; with `capture`, `queries[layer]` [heads, 1, dim] and
    `keys[layer]` [kv_heads, 1, dim] hold what the layer computed before rotation.
    """

    model: Adapted
    token: int
    sink_tokens: int
    reach: Band
    caches: list[BandedLayer]
    origin: int
    """Text position from which places in the run are counted."""
    turns: dict[tuple, Rotations]
    kv_chunk: int | None = None
    """Keys of a long run that are read at a time, each piece with its own sum and log-sum-exp (flash-decoding)."""
    capture: bool = False
    what_if: Interventions | None = None
    length: int = 1
    """Of the context for which rotations are chosen; those in `turns` and in the caches were made for it."""
    mass: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    _sights: dict[tuple, Sight] = field(default_factory=dict)

    def attend(
        self,
        attention: nn.Module,
        query: Float[Tensor, "1 heads 1 dim"],
        key: Float[Tensor, "1 kv_heads 1 dim"],
        value: Float[Tensor, "1 kv_heads 1 dim"],
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        sliding_window: int | None = None,
        s_aux: Float[Tensor, " heads"] | None = None,
        **_,
    ) -> Float[Tensor, "1 1 heads dim"]:
        """The layer's output; as a side effect its key and value are in the cache and its sink mass is known."""
        cache, (heads, dim), kv_heads = self.caches[attention.layer_idx], query.shape[1::2], key.shape[1]
        key, value = key[0], value[0]
        if self.capture:
            self.queries.append(query[0])
            self.keys.append(key)
        if self.what_if is not None:
            s_aux = self.what_if.sink(s_aux, attention.layer_idx, query)
        kind = (*self.model.kind(attention), scaling, sliding_window)
        sight = self._sights.get(kind)
        if sight is None:
            sight = self._sights[kind] = self._look(attention, len(cache.keys) + 1, scaling, sliding_window, dim)
        turned = key if sight.key is None else key.to(sight.key.dtype) @ sight.key
        cache.append(key, value, turned)
        run, values = cache.turned.view(), cache.values.view()
        if sight.run < run.shape[1]:
            run, values = run[:, -sight.run :], values[:, -sight.run :]
        q = query.reshape(heads, dim)
        # One product turns the query to both of its places.
        q = (q * sight.query if sight.key is None else q @ sight.query).view(kv_heads, heads // kv_heads, -1)
        sinks = cache.sink_keys.shape[1] - sight.sinks_from
        pieces = []
        if self.kv_chunk is not None and sight.run - sight.observed > self.kv_chunk:
            run, values, pieces = self._pieces(q[..., :dim], run, values, sight.observed, softcap)
        scores = torch.bmm(q[..., :dim], run.transpose(1, 2))
        if sinks > 0:
            front = self._turned_sinks(attention, cache)[:, sight.sinks_from :]
            scores = torch.cat((torch.bmm(q[..., -dim:], front.transpose(1, 2)), scores), -1)
        scores = capped(scores, softcap)
        if s_aux is not None:
            scores = torch.cat((scores, s_aux.view(kv_heads, -1, 1).to(scores.dtype)), -1)
        weights, total = weigh(scores, pieces, value.dtype)
        self.mass.append(weights[..., : sight.counted].sum(-1, dtype=torch.float32).view(heads))
        if self.what_if is not None:
            early, later = (
                torch.arange(scores.shape[-1], device=scores.device) < sight.counted,
                self.token >= self.sink_tokens,
            )
            struck = self.what_if.knocked_out(scores, early, later, attention.layer_idx, kv_heads, heads)
            weights, total = self.what_if.bend(struck, scores, weights, total, lambda s: weigh(s, pieces, value.dtype))
        sinks = max(0, sinks)
        out = torch.bmm(weights[..., sinks : sinks + run.shape[1]], values)
        if sinks:
            out = torch.baddbmm(out, weights[..., :sinks], cache.sink_values[:, sight.sinks_from :])
        for piece, piece_lse in pieces:
            out = out + piece * (piece_lse - total).exp()[..., None].to(out.dtype)
        return out.view(1, 1, heads, dim)

    def _look(
        self, attention: nn.Module, run: int, scaling: float | None, sliding_window: int | None, dim: int
    ) -> Sight:
        t, reach = self.token, self.reach
        scaling = dim**-0.5 if scaling is None else scaling
        inner = reach.narrowed(sliding_window)
        seen = run if inner.window is None else min(run, inner.window + 1)
        sinks_from = 0 if sliding_window is None else min(max(0, t - sliding_window + 1), reach.sinks)
        observed = max(0, min(self.sink_tokens, t + 1) - (t + 1 - seen))
        counted = max(0, min(reach.sinks, self.sink_tokens) - sinks_from) + observed
        kind = self.model.kind(attention)
        turns = self.turns.get(kind)
        if turns is None:
            turns = self.turns[kind] = Rotations(self.model, attention, dim, self.length)
        if turns.idle:
            return Sight(sinks_from, seen, counted, observed, None, scaling)
        key = query = turns.at(int(reach.in_run(torch.tensor(t), self.origin)))
        if reach.sinks:
            query = torch.cat((key, turns.at(reach.slot_of(t))), -1)
        return Sight(sinks_from, seen, counted, observed, key, query * scaling)

    def _turned_sinks(self, attention: nn.Module, cache: BandedLayer) -> Float[Tensor, "kv_heads sinks dim"]:
        if cache.turned_sinks is None:
            places = self.reach.in_front(self.model.device)
            cache.turned_sinks = self.model.rotate(
                attention, cache.sink_keys[None], self.model.angles(attention, places, self.length)
            )[0]
        return cache.turned_sinks

    def _pieces(
        self, q: Tensor, run: Tensor, values: Tensor, observed: int, softcap: float | None
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """All whole pieces of the run at once, joined into one by their log-sum-exp; and what is left of the run."""
        count = (run.shape[1] - observed) // self.kv_chunk
        end = observed + count * self.kv_chunk
        k, v = (x[:, observed:end].unflatten(1, (count, -1)).transpose(0, 1) for x in (run, values))
        out, lse = partial(q.expand(count, -1, -1, -1), k, v, 1.0, softcap)
        total = torch.logsumexp(lse, 0)
        out = (out * (lse - total).exp()[..., None].to(out.dtype)).sum(0)
        run, values = (torch.cat((x[:, :observed], x[:, end:]), 1) for x in (run, values))
        return run, values, [(out, total)]
