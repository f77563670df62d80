"""One forward pass over ranked slots.

What a layer evicts depends on nothing but that layer (policies/ranked.py).  So several tokens go through the model
together even where a slot leaves after each of them: a layer attends to them piece by piece, and evicts in between.
Nothing is copied to the host in here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...families.positions import Angles, AttentionModule
from ...families.rotary import Adapted
from ...policies.ranked import Ranked
from ..interventions import Interventions
from ..layers.eviction import evict
from ..layers.packed import AsItCame
from ..layers.ranked import Evicted, RankedLayer
from .call import Call, weigh

Rotated = tuple[Tensor, Tensor]
"""Queries and keys of some tokens, rotated to where they stand: [heads, queries, dim] and [kv_heads, queries, dim]."""


@dataclass(eq=False)
class RankedPass:
    """One forward pass over ranked slots, of tokens that begin at text position `token`.

    What is to be evicted when they have been read is evicted when that is asked for.  After the pass `mass[layer]`
    holds the sink mass, [heads, queries]; with `capture`, `queries[layer]` [heads, queries, dim] what the layer asked
    with before rotation, and `evicted[layer]` what left, by how many tokens had then been read.
    """

    model: Adapted
    token: int
    sink_tokens: int
    policy: Ranked
    layers: list[RankedLayer]
    capture: bool = False
    interventions: Interventions | None = None
    length: int = 1
    """Of the context for which rotations are chosen (families/frequencies.py): one for the whole pass."""
    attended: list[Tensor] | None = None
    """Where given, it takes the output of each layer's attention, [1, queries, heads, dim]."""
    packs: tuple[int, int, int] | None = None
    """After how many of its tokens slots are quantized, and from which text position on to before which; some may be
    their own.  Where it is given, nothing is evicted before the pass has ended."""
    came: list[AsItCame | None] = field(default_factory=list)
    """What that was in each layer."""
    saved: int = 0
    """Bytes that this took away."""
    mass: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    evicted: list[dict[int, Evicted]] = field(init=False)
    _made: dict[tuple, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.evicted = [{} for _ in self.layers]

    def attend(
        self,
        attention: AttentionModule,
        query: Float[Tensor, "1 heads queries dim"],
        key: Float[Tensor, "1 kv_heads queries dim"],
        value: Float[Tensor, "1 kv_heads queries dim"],
        **settings: Any,
    ) -> Float[Tensor, "1 queries heads dim"]:
        """The layer's output; as a side effect it holds these tokens, but for those that have left by then."""
        call = Call.of(attention, query, key, value, self.interventions, **settings)
        call = replace(call, query=query * call.scaling, scaling=1.0)
        held, queries, pieces, begin = self.layers[call.layer], call.queries, [], 0
        if held.length != self.length:
            held.rotated, held.length = None, self.length
        budget, rotated_once = self.policy.budget_of(call.layer, len(self.layers)), self._rotated_once(attention, call)
        while begin < queries:
            end = min(queries, begin + 1 + max(0, budget - len(held)))
            here = rotated_once and (rotated_once[0][:, begin:end], rotated_once[1][:, begin:end])
            pieces.append(self._read(attention, call.of_tokens(begin, end), self.token + begin, here))
            if end < queries:
                self._evict([call.layer], end)
            begin = end
        out, mass = pieces[0] if len(pieces) == 1 else (torch.cat(of, 1) for of in zip(*pieces, strict=True))
        self.mass.append(mass)
        if self.capture:
            self.queries.append(query[0])
        if self.attended is not None:
            self.attended.append(out)
        return out

    def _read(
        self, attention: AttentionModule, call: Call, token: int, rotated_once: Rotated | None
    ) -> tuple[Float[Tensor, "1 queries heads dim"], Float[Tensor, "heads queries"]]:
        """Output and sink mass of tokens before the next eviction, which begin at text position `token`; as a side
        effect the layer holds them.  `rotated_once`: what _rotated_once says of them."""
        held, queries, groups, kv_heads = self.layers[call.layer], call.queries, call.groups, call.kv_heads
        home = call.key.device
        positions = self._shared(
            ("positions", home, token, queries), lambda: torch.arange(token, token + queries, device=home)
        )
        held.append(call.key[0], call.value[0], positions)
        slots = held.keys.shape[1]
        # Slots stand in as many rows as there are heads, or all in one.
        q = self._rotate(attention, call, rotated_once).reshape(len(held.keys), -1, call.dim)
        rotated, values, later = held.rotated, held.values, None
        assert rotated is not None, "just rotated"
        scores = (q @ rotated.transpose(1, 2)).view(kv_heads, groups * queries, slots)
        if self.packs is not None and (came := self._pack(held, self.packs[2])) is not None:
            later = slice(self.packs[0], None)
            held.rotated = self._rotate_again(attention, rotated, came)
            _put_product(scores, q, held.rotated.transpose(1, 2), queries, later)
        scores = self._hide(call.capped(scores), call)
        if call.sliding_window is not None and token + queries > call.sliding_window:
            unseen = held.positions[:, None] <= positions[:, None] - call.sliding_window
            scores = scores.masked_fill(unseen.repeat(1, groups, 1), float("-inf"))
        scores = call.with_sinks(scores)
        observed, _ = weigh(scores, [], scores.dtype)
        # Slots stand in the order of the text, so the first tokens are among the first slots.
        most = self.sink_tokens * (held.kv_heads // len(held.keys))
        early = held.positions[:, :most] < self.sink_tokens

        def first_tokens() -> tuple[Tensor, Tensor]:
            """Which columns are first tokens, and which rows ask after them."""
            columns = nn.functional.pad(early, (0, scores.shape[-1] - early.shape[1]))[:, None]
            return columns, (positions >= self.sink_tokens).repeat(groups)[:, None]

        weights, _ = call.intervene(scores, observed, None, first_tokens)
        met = weights[..., :slots].to(call.value.dtype)
        met = met.reshape(*q.shape[:2], slots)
        out = met @ values
        if later is not None:
            _put_product(out, met, held.values, queries, later)
        observed = observed[..., :slots]
        to_first = observed[..., :most].reshape(*q.shape[:2], -1)
        mass = (to_first @ early.to(observed.dtype)[..., None]).float()
        if self.policy.accumulates_attention or self.policy.observation_window:
            given = observed.view(kv_heads, groups, queries, slots).mean(1)
            if self.policy.observation_window:
                # What a query reached got something, though half precision rounds that to 0.
                reached, kind = scores[:, :queries, :slots] > float("-inf"), torch.finfo(given.dtype)
                given = torch.where(reached, given.clamp(min=kind.smallest_normal * kind.eps), given)
            held.observe(given, self.policy)
        if self.policy.future_positions:
            # The first tokens' queries are like no others.
            held.observe_queries(call.query[0, :, max(0, self.policy.sinks - token) :])
        return out.reshape(1, call.heads, queries, call.dim).transpose(1, 2), mass.reshape(call.heads, queries)

    def evict(self) -> None:
        """Evict what the policy ranks lowest in each layer, after the pass."""
        self._evict(range(len(self.layers)), self.mass[0].shape[1])

    def _evict(self, numbers: Sequence[int], read: int) -> None:
        """Evict from some layers when so many tokens of the pass have been read; with `capture`, note what that was."""
        own = self.model.head_dim - self.model.positions.added
        rotation = partial(self._future_rotation, self.token + read) if self.policy.future_positions else None
        evicted = evict(self.layers, self.policy, numbers, tell=self.capture, dims=own, rotation=rotation)
        for number, left in evicted.items():
            self.evicted[number][read] = left

    def _pack(self, held: RankedLayer, end: int) -> AsItCame | None:
        """Quantize what is to be before a text position, and say what that was; None for nothing."""
        before = held.nbytes
        self.came.append(held.pack(end))
        self.saved += before - held.nbytes
        return self.came[-1]

    def _hide(self, scores: Float[Tensor, "kv_heads rows slots"], call: Call) -> Float[Tensor, "kv_heads rows slots"]:
        """Scores with minus infinity, in place, for what comes after a query."""
        if (queries := call.queries) > 1:
            scores[..., scores.shape[-1] - queries :] += self._shared(
                ("ahead", scores.device, queries), lambda: ahead(queries, scores.device).repeat(call.groups, 1)
            )
        return scores

    def _rotated_once(self, attention: AttentionModule, call: Call) -> Rotated | None:
        """Queries and keys of a layer at their positions in the text, which no eviction changes; None where positions
        are those of the cache."""
        if self.policy.positions == "cache":
            return None
        here = self._angles(attention, self.token, self.token + call.queries)
        return self.model.rotate(attention, torch.cat((call.query, call.key), 1), here)[0].split(
            (call.heads, call.kv_heads)
        )

    def _rotate(
        self, attention: AttentionModule, call: Call, rotated_once: Rotated | None
    ) -> Float[Tensor, "heads queries dim"]:
        """Let the keys held be rotated to where they stand, as far as they are not, and give the queries, which stand
        where the newest keys do."""
        model, held, queries = self.model, self.layers[call.layer], call.queries
        slots = held.keys.shape[1]
        if rotated_once is None and held.rotated is None:
            whole = self._angles(attention, 0, slots)
            held.rotated = model.rotate(attention, held.keys[None], whole)[0]
            here = whole and (whole[0][:, slots - queries :], whole[1][:, slots - queries :])
            return model.rotate(attention, call.query, here)[0]
        newest = rotated_once
        if newest is None:
            here = self._angles(attention, slots - queries, slots)
            newest = model.rotate(attention, call.query, here)[0], model.rotate(attention, call.key, here)[0]
        elif held.rotated is None:
            # Every KV head holds other positions: for once they are a batch of texts with one head each.
            flat = model.angles(attention, held.positions[:, : slots - queries].flatten(), self.length)
            old = held.keys[:, None, : slots - queries]
            if flat is not None:
                flat = flat[0].view(len(old), -1, flat[0].shape[-1]), flat[1].view(len(old), -1, flat[1].shape[-1])
            held.rotated = model.rotate(attention, old, flat)[:, 0]
        assert held.rotated is not None, "the older ones have been rotated"
        held.rotated = torch.cat((held.rotated, newest[1]), 1)
        return newest[0]

    def _rotate_again(
        self, attention: AttentionModule, rotated: Float[Tensor, "rows slots dim"], came: AsItCame
    ) -> Float[Tensor, "rows slots dim"]:
        """Rotated keys, of which those are rotated anew that have just been quantized: tokens of one group."""
        assert self.packs is not None, "some are quantized in this pass"
        held, by_slot = self.layers[attention.layer_idx], self.policy.positions == "cache"
        begin, end = (0, held.keys.shape[1]) if by_slot else self.packs[1:]
        at, of_all = held.slots_at(came) if by_slot else came.positions, self._angles(attention, begin, end)
        here = None if of_all is None else (of_all[0][:, at - begin], of_all[1][:, at - begin])
        keys = self.model.rotate(attention, held.keys[came.at][None, None], here)[0, 0]
        return rotated.index_put(came.at, keys)

    def _angles(self, attention: AttentionModule, begin: int, end: int) -> Angles | None:
        """Those of positions begin … end − 1."""
        return self._shared(
            (self.model.kind(attention), begin, end),
            lambda: self.model.angles(attention, torch.arange(begin, end, device=self.model.device), self.length),
        )

    def _future_rotation(self, read: int, layer: int) -> Float[Tensor, "dim dim"]:
        """What rotates a query of a layer, x @ this, on average over the positions that follow when `read` tokens of
        the text have been read."""
        model, attention, device = self.model, self.model.attentions[layer], self.model.homes[layer]
        by_slot = self.policy.positions == "cache"
        begin = len(self.layers[layer]) if by_slot else read

        def make() -> Tensor:
            """The mean rotation, by what it makes of a basis."""
            at = torch.arange(begin, begin + self.policy.future_positions, device=model.device)
            angles = model.angles(attention, at, self.length, torch.float32)
            basis = torch.eye(model.head_dim, device=device)
            if angles is None:
                return basis
            # A rotation is linear in what its angles are given by.
            cos, sin = (a.mean(1, keepdim=True).expand(-1, len(basis), -1) for a in angles)
            return model.rotate(attention, basis[None, None], (cos, sin))[0, 0]

        return self._shared(("future", model.kind(attention), begin, device), make)

    def _shared(self, kind: tuple, make: Callable[[], Any]) -> Any:
        """What the layers have in common is made once."""
        if kind not in self._made:
            self._made[kind] = make()
        return self._made[kind]


def _put_product(
    into: Float[Tensor, "some_heads rows columns"],
    x: Float[Tensor, "rows_of_slots rows inner"],
    other: Float[Tensor, "rows_of_slots inner columns"],
    queries: int,
    some: slice,
) -> None:
    """Put the rows of some queries of each head, times another matrix, where they stand."""
    of = x.unflatten(1, (-1, queries))[:, :, some]
    product = (of.flatten(1, 2) @ other).unflatten(1, of.shape[1:3])
    into.view(*x.shape[:1], -1, queries, other.shape[-1])[:, :, some] = product


def ahead(queries: int, device: torch.device) -> Float[Tensor, "queries queries"]:
    """What is added to the scores of tokens of one pass: a query does not see what comes after it."""
    return torch.full((queries, queries), float("-inf"), device=device).triu(1)
