"""The one attention function, for every family and every positional policy.

Each layer of each family calls `BandedPass.attend` with queries and keys that were not rotated (rotary.py).  It appends
the keys to the lane's cache, rotates at positions that the policy chooses, and joins sinks and band under one softmax.
Sink mass falls out of it for every head and query.  Nothing is copied to the host in here.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...families.positions import Angles
from ...families.rotary import Adapted
from ..interventions import Interventions
from ..kv.banded import BandedLayer
from .band import Band, BlockPlan, Columns, plan

PAST = 2048
"""Keys of a long past that are rotated and read at a time, so that they stay in the processor's cache."""


def fold(x: Float[Tensor, "batch heads queries dim"], kv_heads: int, block: int, blocks: int) -> Tensor:
    """The query heads that share a KV head become rows: [batch · blocks, kv_heads, groups · block, dim]."""
    batch, heads, queries, dim = x.shape
    if (missing := blocks * block - queries) > 0:
        x = nn.functional.pad(x, (0, 0, 0, missing))
    x = x.reshape(batch, kv_heads, heads // kv_heads, blocks, block, dim)
    return x.permute(0, 3, 1, 2, 4, 5).reshape(batch * blocks, kv_heads, -1, dim)


def unfold(x: Float[Tensor, "pieces kv_heads rows *dim"], batch: int, block: int, blocks: int) -> Tensor:
    """The inverse of `fold`, queries before heads: [batch, queries (padded), heads, *dim]."""
    kv_heads, rest = x.shape[1], x.shape[3:]
    x = x.reshape(batch, blocks, kv_heads, -1, block, *rest)
    return x.movedim(4, 2).reshape(batch, blocks * block, -1, *rest)


def blocks_of(x: Float[Tensor, "kv_heads slots dim"], plan: BlockPlan) -> Float[Tensor, "blocks kv_heads width dim"]:
    """The overlapping stretches of keys that the blocks of queries meet, copied once: products of overlapping views are
    slower by more than the copy takes."""
    before, after = plan.pad
    if before < 0:
        x, before = x[:, -before:], 0
    if before or after:
        x = nn.functional.pad(x, (0, 0, before, after))
    heads, slots, dim = x.stride()
    shape = plan.blocks, x.shape[0], plan.width, x.shape[2]
    return x.as_strided(shape, (plan.block * slots, heads, slots, dim), x.storage_offset()).contiguous()


def partial(q: Tensor, k: Tensor, v: Tensor, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Attention of all rows to all of these keys, and each row's log-sum-exp: what flash-decoding joins pieces with."""
    if q.device.type == "cpu" and softcap is None and q.dtype == v.dtype:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scaling)
    s = capped(q @ k.transpose(-1, -2) * scaling, softcap)
    lse = torch.logsumexp(s.float(), -1)
    return (s - lse[..., None]).exp().to(v.dtype) @ v, lse


def weigh(
    scores: Tensor, pieces: list[tuple[Tensor, Tensor]], dtype: torch.dtype
) -> tuple[Float[Tensor, "*rows columns"], Tensor | None]:
    """The weights of these scores; where pieces with a log-sum-exp of their own share the sum, its logarithm too."""
    if not pieces:
        return torch.softmax(scores, -1).to(dtype), None
    total = torch.logsumexp(torch.stack([torch.logsumexp(scores.float(), -1), *(lse for _, lse in pieces)]), 0)
    return (scores - total[..., None]).exp().to(dtype), total


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores that approach `softcap` and never pass it."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


@dataclass(eq=False)
class BandedPass:
    """One forward pass: some tokens of one lane, or (`caches` None) a batch of windows that are encoded afresh.

    After the pass `mass[layer]` holds the sink mass, [heads, queries]; with `capture`, `queries[layer]`, `keys[layer]`
    and `values[layer]` hold what the layer computed before rotation, [batch, heads, tokens, dim].
    """

    model: Adapted
    start: int
    sink_tokens: int
    reach: Band
    caches: list[BandedLayer] | None
    starts: Tensor | None = None
    """Text positions at which the windows of a batch begin."""
    capture: bool = False
    what_if: Interventions | None = None
    length: int = 1
    """Of the context for which rotations are chosen (frequencies.py): one for the whole pass."""
    outputs: dict[int, Tensor] | None = None
    """Where given, it takes the hidden state that comes out of each layer, [batch, tokens, width]."""
    mass: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    _plans: dict[tuple, BlockPlan] = field(default_factory=dict)
    _angles: dict[tuple, tuple[Angles | None, ...]] = field(default_factory=dict)

    def attend(
        self,
        attention: nn.Module,
        query: Float[Tensor, "batch heads queries dim"],
        key: Float[Tensor, "batch kv_heads queries dim"],
        value: Float[Tensor, "batch kv_heads queries dim"],
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        sliding_window: int | None = None,
        s_aux: Float[Tensor, " heads"] | None = None,
        **_,
    ) -> Float[Tensor, "batch queries heads dim"]:
        """The layer's output; as a side effect its keys and values are in the cache and its sink mass is known."""
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.capture:
            self.queries.append(query)
            self.keys.append(key)
            self.values.append(value)
        if self.what_if is not None:
            s_aux = self.what_if.sink(s_aux, attention.layer_idx, query)
        groups = query.shape[1] // key.shape[1]
        kind = query.device, sliding_window
        steps = self._plans.get(kind)
        if steps is None:
            steps = self._plans[kind] = self._plan(query, sliding_window, groups)
        sink_keys, sink_values, keys, values = self.extend(attention.layer_idx, key, value)
        at_sinks, at_run, sinks_at, run_at = self._rotations(attention, query, keys)
        rotate = self.model.rotate

        def fold_(x: Tensor) -> Tensor:
            return fold(x, key.shape[1], steps.block, steps.blocks)

        query = query * scaling
        q = fold_(rotate(attention, query, at_run))
        front, front_values = [], []
        if sink_keys.shape[2]:
            sinks = rotate(attention, sink_keys, sinks_at)
            front.append(fold_(rotate(attention, query, at_sinks)) @ sinks.transpose(-1, -2))
            front_values.append(sink_values)
        observed, past = steps.observed, steps.observed + steps.past
        rotated_from = past if steps.past else 0
        recent = rotate(attention, keys[:, :, rotated_from:], _cut(run_at, rotated_from))
        if observed:
            # With a long past only its beginning and its end are rotated here; the rest follows piece by piece.
            first = recent[:, :, :observed]
            if steps.past:
                first = rotate(attention, keys[:, :, :observed], _cut(run_at, 0, observed))
            front.append(q @ first.transpose(-1, -2))
            front_values.append(values[:, :, :observed])
        recent = recent[:, :, past - rotated_from :]
        if self.caches is None:
            local, local_values = recent, values
        else:
            local, local_values = blocks_of(recent[0], steps), blocks_of(values[0, :, past:], steps)
        scores = self._scores(q @ local.transpose(-1, -2), front, steps, softcap)
        if s_aux is not None:
            scores = torch.cat(
                (scores, fold_(s_aux.view(1, -1, 1, 1).expand(*query.shape[:3], 1)).to(scores.dtype)), -1
            )

        pieces = []
        if steps.past:
            for begin in range(observed, past, PAST):
                end = min(begin + PAST, past)
                piece = rotate(attention, keys[:, :, begin:end], _cut(run_at, begin, end))
                pieces.append(partial(q, piece, values[:, :, begin:end], 1.0, softcap))
        weights, total = weigh(scores, pieces, value.dtype)
        self._observe(weights, steps, query.shape)
        if self.what_if is not None:
            early, later = self._early(scores, steps), self._later(scores, steps)
            struck = self.what_if.knocked_out(scores, early, later, attention.layer_idx, key.shape[1], query.shape[1])
            weights, total = self.what_if.bend(struck, scores, weights, total, lambda s: weigh(s, pieces, value.dtype))
        width = sum(f.shape[-1] for f in front)
        out = weights[..., width : width + local.shape[-2]] @ local_values
        for i, v in enumerate(front_values):
            begin = 0 if i == 0 else front[0].shape[-1]
            out += weights[..., begin : begin + front[i].shape[-1]] @ v
        for piece, piece_lse in pieces:
            out += piece * (piece_lse - total).exp()[..., None].to(out.dtype)
        return unfold(out, query.shape[0], steps.block, steps.blocks)[:, : query.shape[2]]

    def _scores(self, local: Tensor, front: list[Tensor], steps: BlockPlan, softcap: float | None) -> Tensor:
        local = capped(local, softcap)
        for columns in steps.masks:
            local[..., columns.where] += columns.mask
        if not front:
            return local
        scores = [capped(f, softcap) for f in front]
        if steps.front_mask is not None:
            widths = [f.shape[-1] for f in front]
            scores = [s + m for s, m in zip(scores, steps.front_mask.split(widths, -1), strict=True)]
        return torch.cat((*scores, local), -1)

    def _observe(self, weights: Tensor, steps: BlockPlan, shape: torch.Size) -> None:
        batch, heads, queries, _ = shape
        counted = weights[..., : steps.counted]
        if self.starts is not None:
            counted = counted * self._early(weights, steps)[..., : steps.counted]
        mass = unfold(counted.sum(-1, dtype=torch.float32), batch, steps.block, steps.blocks)[:, :queries]
        self.mass.append(mass.reshape(-1, heads).T)

    def _early(self, weights: Tensor, steps: BlockPlan) -> Tensor:
        """Whether a column is one of the text's first tokens: [columns], or of each window [windows, 1, 1, columns]."""
        columns = torch.arange(weights.shape[-1], device=weights.device)
        early = columns < steps.counted
        if self.starts is not None:
            places = self.starts.to(weights.device)[:, None] + columns
            early = (early & (places < self.sink_tokens))[:, None, None]
        return early

    def _later(self, weights: Tensor, steps: BlockPlan) -> Tensor:
        """Whether a query is none of the text's first tokens, [pieces, 1, rows, 1]."""
        begins = torch.arange(steps.blocks, device=weights.device) * steps.block + self.start
        if self.starts is not None:
            begins = self.starts.to(weights.device)
        places = begins[:, None] + torch.arange(steps.block, device=weights.device)
        rows = places.repeat(1, weights.shape[-2] // steps.block)
        return (rows >= self.sink_tokens)[:, None, :, None]

    def _plan(self, query: Tensor, sliding_window: int | None, groups: int) -> BlockPlan:
        tokens, device = query.shape[2], query.device
        if self.caches is not None:
            return plan(
                self.reach,
                self.start,
                tokens,
                sink_tokens=self.sink_tokens,
                sliding_window=sliding_window,
                groups=groups,
                dtype=query.dtype,
                device=device,
            )
        alone = plan(
            Band(0, 0, None, "text"),
            0,
            tokens,
            sink_tokens=0,
            sliding_window=None,
            groups=groups,
            dtype=query.dtype,
            device=device,
        )
        if sliding_window is not None and sliding_window < tokens:
            places = torch.arange(tokens, device=device)
            outside = places[None, :] <= places[:, None] - sliding_window
            mask = alone.masks[0].mask.masked_fill(outside.repeat(groups, 1), float("-inf"))
            alone = BlockPlan(**{**vars(alone), "masks": (Columns(slice(0, tokens), mask),)})
        begins_early = self.start < self.sink_tokens
        return BlockPlan(**{**vars(alone), "counted": min(self.sink_tokens, tokens) if begins_early else 0})

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sink keys and values, run keys and values, each [batch, kv_heads, slots, dim], these tokens included."""
        if self.caches is None:
            return key[:, :, :0], value[:, :, :0], key, value
        cache = self.caches[layer]
        missing = self.reach.sinks - cache.sink_keys.shape[1]
        if missing > 0:
            cache.gather(key[0, :, :missing], value[0, :, :missing])
            key, value = key[:, :, missing:], value[:, :, missing:]
        cache.append(key[0], value[0])
        return cache.sink_keys[None], cache.sink_values[None], cache.keys.view()[None], cache.values.view()[None]

    def _rotations(self, attention: nn.Module, query: Tensor, keys: Tensor) -> tuple[Angles | None, ...]:
        """Angles of queries towards the sinks, of queries towards the run, of the sinks, and of the run's keys."""
        kind = self.model.kind(attention)
        if kind not in self._angles:
            # Places in the run are counted from its beginning: at a text position of a million, angles lose digits.
            origin, tokens, device = self.reach.first, query.shape[2], self.model.device
            places = torch.arange(self.start, self.start + tokens, device=device)
            if self.caches is None:
                places, origin = torch.arange(tokens, device=device), 0
            run = self.reach.in_run(torch.arange(origin, origin + keys.shape[2], device=device), origin)
            self._angles[kind] = tuple(
                self.model.angles(attention, p, self.length)
                for p in (
                    self.reach.slot(places),
                    self.reach.in_run(places, origin),
                    self.reach.in_front(device),
                    run,
                )
            )
        return self._angles[kind]


def _cut(angles: Angles | None, begin: int, end: int | None = None) -> Angles | None:
    return None if angles is None else (angles[0][:, begin:end], angles[1][:, begin:end])
