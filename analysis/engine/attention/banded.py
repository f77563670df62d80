"""The one attention function, for every family and every positional policy.

Each layer of each family calls `BandedPass.attend` with queries and keys that were not rotated (families/rotary.py).
It appends the keys to the lane's layer, rotates at positions that the policy chooses, and joins sinks and window under
one softmax.  Sink mass falls out of it for every head and query.  Nothing is copied to the host in here.
"""

import functools
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...families.positions import Angles, AttentionModule
from ...families.rotary import Adapted
from ..interventions import Interventions
from ..layers.banded import BandedLayer
from ..layers.quantized import Newly, Quantization
from . import flash
from .band import Band, BlockPlan, Columns, plan
from .blocks import Met, Room, fold, turns, unfold
from .call import Call, Pieces, joined, partial, weigh

PAST = 2048
"""Keys of a long past that are rotated and read at a time, so that they stay in the processor's cache."""


class Held(NamedTuple):
    """Keys and values that a layer holds, before rotation: of the sinks, and of the window."""

    sink_keys: Float[Tensor, "batch kv_heads sinks dim"]
    sink_values: Float[Tensor, "batch kv_heads sinks dim"]
    keys: Float[Tensor, "batch kv_heads slots dim"]
    values: Float[Tensor, "batch kv_heads slots dim"]


@dataclass(eq=False)
class BandedPass:
    """One forward pass: some tokens of one lane, or (`layers` None) a batch of windows that are encoded anew.

    After the pass `mass[layer]` holds the sink mass, [heads, queries]; with `capture`, `queries[layer]`, `keys[layer]`
    and `values[layer]` hold what the layer computed before rotation, [batch, heads, tokens, dim].
    """

    model: Adapted
    start: int
    sink_tokens: int
    band: Band
    layers: list[BandedLayer] | None
    starts: Tensor | None = None
    """Text positions at which the windows of a batch begin."""
    capture: bool = False
    interventions: Interventions | None = None
    length: int = 1
    """Of the context for which rotations are chosen (families/frequencies.py): one for the whole pass."""
    quantization: Quantization | None = None
    """How older tokens are stored, where layers store them in few bits."""
    outputs: dict[int, Tensor] | None = None
    """Where given, it takes the hidden state that comes out of each layer, [batch, tokens, width]."""
    attended: list[Tensor] | None = None
    """Where given, it takes the output of each layer's attention, [batch, queries, heads, dim]."""
    mass: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    newly: list[Newly | None] = field(default_factory=list)
    """What each layer has quantized between two of these tokens."""
    _plans: dict[tuple, BlockPlan] = field(default_factory=dict)
    _angles: dict[tuple, tuple[Any, ...]] = field(default_factory=dict)
    _room: Room = field(default_factory=Room)

    def attend(
        self,
        attention: AttentionModule,
        query: Float[Tensor, "batch heads queries dim"],
        key: Float[Tensor, "batch kv_heads queries dim"],
        value: Float[Tensor, "batch kv_heads queries dim"],
        **settings: Any,
    ) -> Float[Tensor, "batch queries heads dim"]:
        """The layer's output; as a side effect its keys and values are held and its sink mass is known."""
        call = Call.of(attention, query, key, value, self.interventions, **settings)
        if self.capture:
            self.queries.append(query)
            self.keys.append(key)
            self.values.append(value)
        steps = self._steps(call)
        held = self.extend(call.layer, key, value)
        newly = self._pack(call)
        plain = self.layers is not None and self.quantization is None and held.keys.shape[2] > 0
        if plain and flash.serves(call, self.band):
            out = self._fused(attention, call, steps, held)
        else:
            out = self._in_blocks(attention, call, steps, held, newly)
        if self.attended is not None:
            self.attended.append(out)
        return out

    def _steps(self, call: Call) -> BlockPlan:
        """How the queries meet the keys, made once for all layers that have a window of one size on one device."""
        kind = call.query.device, call.sliding_window
        if kind not in self._plans:
            self._plans[kind] = self._plan(call)
        return self._plans[kind]

    def _in_blocks(
        self, attention: AttentionModule, call: Call, steps: BlockPlan, held: Held, newly: Newly | None
    ) -> Float[Tensor, "batch queries heads dim"]:
        """The output of queries that meet the first keys, a long past in pieces, and the rest block by block."""
        at_window, window_at, *_ = self._rotations(attention, call.query, held.keys)
        rotate = functools.partial(self.model.rotate, attention)
        scaled = call.query * call.scaling
        q = fold(rotate(scaled, at_window), call.kv_heads, steps.block, steps.blocks)
        prefix, prefix_values, to_sinks = [], [], None
        if held.sink_keys.shape[2]:
            asking, rotated_sinks = self._meeting(attention, scaled, held.sink_keys)
            prefix.append(rotated_sinks)
            prefix_values.append(held.sink_values)
            to_sinks = fold(asking, call.kv_heads, steps.block, steps.blocks) @ rotated_sinks.transpose(-1, -2)
        observed, past = steps.observed, steps.observed + steps.past
        # With a long past only its beginning and its end are rotated here; the rest follows piece by piece.
        rotated_from = past if steps.past else 0
        recent = rotate(held.keys[:, :, rotated_from:], _cut(window_at, rotated_from))
        if observed:
            first = recent[:, :, :observed]
            if steps.past:
                first = rotate(held.keys[:, :, :observed], _cut(window_at, 0, observed))
            prefix.append(first)
            prefix_values.append(held.values[:, :, :observed])
        pieces = []
        for begin in range(observed, past, PAST):
            end = min(begin + PAST, past)
            piece = rotate(held.keys[:, :, begin:end], _cut(window_at, begin, end))
            pieces.append(partial(q, piece, held.values[:, :, begin:end], call))
        own = recent[:, :, past - rotated_from :], held.values[:, :, past:]
        if self.layers is None:
            keys, values = (Met(x) for x in own)
        else:
            quantized = self._quantized(attention, own, past, newly, steps, window_at)
            keys, values = (
                Met.of(x[0], steps, before, then)
                for x, before, then in zip(own, (prefix, prefix_values), quantized, strict=True)
            )
        return self._read(call, steps, q, to_sinks, keys, values, pieces)

    def _read(
        self,
        call: Call,
        steps: BlockPlan,
        q: Float[Tensor, "pieces kv_heads rows dim"],
        to_sinks: Float[Tensor, "pieces kv_heads rows sinks"] | None,
        keys: Met,
        values: Met,
        pieces: Pieces,
    ) -> Float[Tensor, "batch queries heads dim"]:
        """The output of folded queries over what they meet; as a side effect their sink mass is known."""
        dtype, batch = call.value.dtype, len(call.query)
        out = call.value.new_empty(*q.shape[:-1], call.value.shape[-1])
        mass = torch.empty(q.shape[:-1], device=q.device)
        for some in turns(q, steps.prefix + steps.width):
            local = self._room.joined("keys", keys.parts(some))
            local_values = self._room.joined("values", values.parts(some))
            scores = self._room.matmul("scores", q[some], local.transpose(-1, -2))
            scores = call.with_sinks(self._scores(scores, to_sinks, steps, some, call))
            weights, total = weigh(scores, pieces, dtype, free=not call.knocks_out)
            self._observe(weights, steps, some, mass[some])
            first_tokens = functools.partial(self._first_tokens, scores, steps, some)
            weights, total = call.intervene(scores, weights, total, first_tokens, pieces)
            joined(torch.matmul(weights[..., : local.shape[-2]], local_values, out=out[some]), pieces, total)
        mass = unfold(mass, batch, steps.block, steps.blocks)[:, : call.queries]
        self.mass.append(mass.reshape(-1, call.heads).T)
        return unfold(out, batch, steps.block, steps.blocks)[:, : call.queries]

    def _fused(
        self,
        attention: AttentionModule,
        call: Call,
        steps: BlockPlan,
        held: Held,
    ) -> Float[Tensor, "1 queries heads dim"]:
        """The output by a kernel that reads the whole window (flash.py)."""
        sink_keys, sink_values, keys, values = held
        at_window, window_at, *_ = self._rotations(attention, call.query, keys)
        rotate = self.model.rotate

        def scores(q: Tensor, k: Tensor) -> Tensor:
            return q.reshape(call.kv_heads, -1, call.dim) @ k[0].transpose(1, 2) * call.scaling

        q, recent = rotate(attention, call.query, at_window), rotate(attention, keys, window_at)
        to_sinks = to_observed = None
        if sink_keys.shape[2]:
            to_sinks = scores(*self._meeting(attention, call.query, sink_keys))
        if steps.observed:
            to_observed = scores(q, recent[:, :, : steps.observed])
        if steps.prefix_seen is not None:
            hidden = ~steps.prefix_seen.repeat(call.groups, 1)
            sinks = sink_keys.shape[2]
            to_sinks = None if to_sinks is None else to_sinks.masked_fill(hidden[:, :sinks], float("-inf"))
            to_observed = None if to_observed is None else to_observed.masked_fill(hidden[:, sinks:], float("-inf"))
        out, lse = flash.windowed(q, recent, values, self.band.narrowed(call.sliding_window).reach, call.scaling)
        if self.start < self.band.sinks:
            # Where a query sees nothing of the window, the kernel says plus infinity.
            lse = lse.masked_fill(lse == float("inf"), float("-inf"))
        counted = steps.counted - steps.observed
        out, mass = flash.joined_with_first(call, (out, lse), to_sinks, sink_values[0], to_observed, counted)
        self.mass.append(mass)
        return out

    def _quantized(
        self,
        attention: AttentionModule,
        own: tuple[Tensor, Tensor],
        past: int,
        newly: Newly | None,
        steps: BlockPlan,
        window_at: Angles | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Keys and values from `past` on, [kv_heads, slots, dim], with those that these tokens saw quantized."""
        keys, values = own[0][0], own[1][0]
        if newly is None:
            return (None, None) if steps.changing is None else (keys, values)
        begin = newly.begin - self.band.first
        at = _cut(window_at, begin, begin + newly.keys.shape[1])
        piece = self.model.rotate(attention, newly.keys[None], at)
        return _with(keys, begin - past, piece[0]), _with(values, begin - past, newly.values)

    def _scores(self, scores: Tensor, to_sinks: Tensor | None, steps: BlockPlan, some: slice, call: Call) -> Tensor:
        """The scores of all columns; the sinks' are those that queries give at their distance from these."""
        if to_sinks is not None:
            # So few that their product is made twice: putting two tensors of scores together would cost more.
            scores[..., : to_sinks.shape[-1]] = to_sinks[some]
        scores = call.capped(scores)
        if steps.prefix_mask is not None:
            scores[..., : steps.prefix] += _of(steps.prefix_mask, some)
        for columns in steps.masks:
            scores[..., steps.prefix :][..., columns.where] += _of(columns.mask, some)
        return scores

    def _observe(
        self, weights: Tensor, steps: BlockPlan, some: slice, mass: Float[Tensor, "pieces kv_heads rows"]
    ) -> None:
        counted = weights[..., : steps.counted]
        if self.starts is not None:
            counted = counted * self._early(weights, steps, some)[..., : steps.counted]
        torch.sum(counted, -1, dtype=torch.float32, out=mass)

    def _first_tokens(self, scores: Tensor, steps: BlockPlan, some: slice) -> tuple[Tensor, Tensor]:
        """Whether each column is one of the text's first tokens, and whether each row is the query of none of them."""
        return self._early(scores, steps, some), self._later(scores, steps, some)

    def _early(self, weights: Tensor, steps: BlockPlan, some: slice) -> Tensor:
        """Whether a column is one of the text's first tokens: [columns], or of each window [windows, 1, 1, columns]."""
        columns = torch.arange(weights.shape[-1], device=weights.device)
        early = columns < steps.counted
        if self.starts is not None:
            positions = self.starts[some].to(weights.device)[:, None] + columns
            early = (early & (positions < self.sink_tokens))[:, None, None]
        return early

    def _later(self, weights: Tensor, steps: BlockPlan, some: slice) -> Tensor:
        """Whether a query is none of the text's first tokens, [pieces, 1, rows, 1]."""
        begins = torch.arange(steps.blocks, device=weights.device) * steps.block + self.start
        if self.starts is not None:
            begins = self.starts.to(weights.device)
        positions = begins[some, None] + torch.arange(steps.block, device=weights.device)
        rows = positions.repeat(1, weights.shape[-2] // steps.block)
        return (rows >= self.sink_tokens)[:, None, :, None]

    def _plan(self, call: Call) -> BlockPlan:
        tokens, device, alone = call.queries, call.query.device, self.layers is None
        # Windows of a batch are texts of their own, each of which is kept whole.
        made = plan(
            Band(0, 0, None, "text") if alone else self.band,
            0 if alone else self.start,
            tokens,
            sink_tokens=0 if alone else self.sink_tokens,
            sliding_window=None if alone else call.sliding_window,
            groups=call.groups,
            dtype=call.query.dtype,
            device=device,
            quantization=self.quantization,
        )
        if not alone:
            return made
        if call.sliding_window is not None and call.sliding_window < tokens:
            positions = torch.arange(tokens, device=device)
            outside = positions[None, :] <= positions[:, None] - call.sliding_window
            mask = made.masks[0].mask.masked_fill(outside.repeat(call.groups, 1), float("-inf"))
            made = replace(made, masks=(Columns(slice(0, tokens), mask),))
        return replace(made, counted=min(self.sink_tokens, tokens) if self.start < self.sink_tokens else 0)

    def _pack(self, call: Call) -> Newly | None:
        """Let the layer quantize what it is to have quantized before the last of these tokens is read."""
        if self.quantization is None or self.layers is None:
            return None
        newly = self.layers[call.layer].pack(self.quantization.end(self.start + call.queries - 1))
        self.newly.append(newly)
        return newly

    def extend(self, layer: int, key: Tensor, value: Tensor) -> Held:
        """What the layer holds, these tokens included."""
        if self.layers is None:
            return Held(key[:, :, :0], value[:, :, :0], key, value)
        held = self.layers[layer]
        missing = self.band.sinks - held.sink_keys.shape[1]
        if missing > 0:
            held.append_sinks(key[0, :, :missing], value[0, :, :missing])
            key, value = key[:, :, missing:], value[:, :, missing:]
        held.append(key[0], value[0])
        keys, values = held.window()
        return Held(held.sink_keys[None], held.sink_values[None], keys[None], values[None])

    def _meeting(
        self,
        attention: AttentionModule,
        query: Float[Tensor, "1 heads queries dim"],
        sink_keys: Float[Tensor, "1 kv_heads sinks dim"],
    ) -> tuple[Float[Tensor, "1 heads queries dim"], Float[Tensor, "1 kv_heads sinks dim"]]:
        """Queries and sink keys, rotated so that their products are the scores at their distance."""
        *_, at_sinks, sinks_at, back = self._rotations(attention, query, sink_keys)
        keys = self.model.rotate(attention, sink_keys, sinks_at)
        if back is None:
            return self.model.rotate(attention, query, at_sinks), keys
        keys = keys @ back
        return query.to(keys.dtype), keys

    def _rotations(self, attention: AttentionModule, query: Tensor, keys: Tensor) -> tuple[Any, ...]:
        """Angles of queries towards the window, of the window's keys, of queries towards the sinks, and of the sinks;
        and, where all queries stand at one distance from the sinks, what rotates sink keys back by that, k @ this:
        they are few, and the queries many."""
        kind = self.model.kind(attention)
        if kind not in self._angles:
            # Counted from the beginning of the window: at a text position of a million, angles lose digits.
            origin, tokens, device = self.band.first, query.shape[2], self.model.device
            positions = torch.arange(self.start, self.start + tokens, device=device)
            if self.layers is None:
                positions, origin = torch.arange(tokens, device=device), 0
            window = self.band.in_window(torch.arange(origin, origin + keys.shape[2], device=device), origin)
            at_window, window_at, at_sinks, sinks_at = (
                self.model.angles(attention, p, self.length)
                for p in (
                    self.band.in_window(positions, origin),
                    window,
                    self.band.slot(positions),
                    self.band.at_sinks(device),
                )
            )
            first, last = (self.band.slot_of(t) for t in (self.start, self.start + tokens - 1))
            back = None
            if self.band.sinks and self.band.step == 1 and first == last and at_sinks is not None:
                dim = query.shape[3]
                here = at_sinks[0][:, :1].expand(-1, dim, -1), at_sinks[1][:, :1].expand(-1, dim, -1)
                basis = torch.eye(dim, dtype=query.dtype, device=query.device)
                back = self.model.rotate(attention, basis[None, None], here)[0, 0].T
            self._angles[kind] = at_window, window_at, at_sinks, sinks_at, back
        return self._angles[kind]


def _cut(angles: Angles | None, begin: int, end: int | None = None) -> Angles | None:
    return None if angles is None else (angles[0][:, begin:end], angles[1][:, begin:end])


def _of(mask: Tensor, some: slice) -> Tensor:
    """The mask of some pieces, where each has its own."""
    return mask if len(mask) == 1 else mask[some]


def _with(x: Float[Tensor, "kv_heads slots dim"], begin: int, new: Float[Tensor, "kv_heads tokens dim"]) -> Tensor:
    """The same slots, those from `begin` on replaced by as many others."""
    return torch.cat((x[:, :begin], new.to(x.dtype), x[:, begin + new.shape[1] :]), 1)
