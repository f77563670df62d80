"""One forward pass over ranked slots.

As many tokens go through the model together as come before the next eviction, which follows the pass: in each layer by
what that layer has seen (policies/ranked.py).  Nothing is copied to the host in here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...families.positions import Angles, AttentionModule
from ...families.rotary import Adapted
from ...policies.ranked import Ranked
from ..interventions import Interventions
from ..layers.eviction import evict
from ..layers.packed import AsItCame
from ..layers.ranked import Evicted, RankedLayer
from .call import Call, weigh


@dataclass(eq=False)
class RankedPass:
    """One forward pass over ranked slots, of tokens that begin at text position `token`.

    There must be no more of them than come before the next eviction, which is then asked for.  After the pass
    `mass[layer]` holds the sink mass, [heads, queries]; with `capture`, `queries[layer]` [heads, queries, dim] what the
    layer asked with before rotation.
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
    their own."""
    came: list[AsItCame | None] = field(default_factory=list)
    """What that was in each layer."""
    saved: int = 0
    """Bytes that this took away."""
    mass: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    _made: dict[tuple, Any] = field(default_factory=dict)

    def attend(
        self,
        attention: AttentionModule,
        query: Float[Tensor, "1 heads queries dim"],
        key: Float[Tensor, "1 kv_heads queries dim"],
        value: Float[Tensor, "1 kv_heads queries dim"],
        **settings: Any,
    ) -> Float[Tensor, "1 queries heads dim"]:
        """The layer's output; as a side effect it holds these tokens."""
        call = Call.of(attention, query, key, value, self.interventions, **settings)
        held, queries, groups, kv_heads = self.layers[call.layer], call.queries, call.groups, call.kv_heads
        positions = self._shared(("positions", key.device), lambda: self._positions(queries).to(key.device))
        held.append(key[0], value[0], positions)
        slots = held.keys.shape[1]
        scaled = query * call.scaling
        if held.length != self.length:
            held.rotated, held.length = None, self.length
        here = self._rotate(attention, queries)
        q = self._rotated_queries(attention, scaled, here).reshape(kv_heads, groups * queries, call.dim)
        rotated, values, later = held.rotated, held.values, None
        assert rotated is not None, "just rotated"
        scores = q @ rotated.transpose(1, 2)
        if self.packs is not None and (came := self._pack(held, self.packs[2])) is not None:
            later = slice(self.packs[0], None)
            held.rotated = self._rotate_again(attention, rotated, came)
            _rows(scores, queries)[:, :, later] = _product(q, held.rotated.transpose(1, 2), queries, later)
        scores = self._hide(call.capped(scores), call)
        if call.sliding_window is not None and self.token + queries > call.sliding_window:
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
        met = weights[..., :slots].to(value.dtype)
        out = met @ values
        if later is not None:
            _rows(out, queries)[:, :, later] = _product(met, held.values, queries, later)
        observed = observed[..., :slots]
        mass = (observed[..., :most] @ early.to(observed.dtype)[..., None]).float()
        self.mass.append(mass.reshape(call.heads, queries))
        if self.policy.accumulates_attention or self.policy.observation_window:
            held.observe(observed.view(kv_heads, groups, queries, slots).mean(1), self.policy)
        if self.policy.future_positions:
            # The first tokens' queries are like no others.
            held.observe_queries(scaled[0, :, max(0, self.policy.sinks - self.token) :])
        if self.capture:
            self.queries.append(query[0])
        out = out.reshape(1, call.heads, queries, call.dim).transpose(1, 2)
        if self.attended is not None:
            self.attended.append(out)
        return out

    def evict(self) -> list[Evicted | None]:
        """Evict what the policy ranks lowest in each layer, after the pass; with `capture`, say what that was."""
        own = self.model.head_dim - self.model.positions.added
        rotation = self._future_rotation if self.policy.future_positions else None
        return evict(self.layers, self.policy, tell=self.capture, dims=own, rotation=rotation)

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
                ("ahead", scores.device), lambda: ahead(queries, scores.device).repeat(call.groups, 1)
            )
        return scores

    def _positions(self, queries: int) -> Int[Tensor, " queries"]:
        return torch.arange(self.token, self.token + queries, device=self.model.device)

    def _rotate(self, attention: AttentionModule, queries: int) -> Angles | None:
        """Let the keys held be rotated to where they stand, as far as they are not, and say where the newest stand."""
        model, held = self.model, self.layers[attention.layer_idx]
        by_slot, slots = self.policy.positions == "cache", len(held)
        if held.rotated is None and by_slot:
            whole = self._angles(attention, 0, slots)
            held.rotated = model.rotate(attention, held.keys[None], whole)[0]
            return None if whole is None else (whole[0][:, slots - queries :], whole[1][:, slots - queries :])
        if held.rotated is None:
            # Every KV head holds other positions: for once they are a batch of texts with one head each.
            flat = model.angles(attention, held.positions[:, : slots - queries].flatten(), self.length)
            old = held.keys[:, None, : slots - queries]
            if flat is not None:
                flat = flat[0].view(len(old), -1, flat[0].shape[-1]), flat[1].view(len(old), -1, flat[1].shape[-1])
            held.rotated = model.rotate(attention, old, flat)[:, 0]
        first = slots - queries if by_slot else self.token
        here = self._angles(attention, first, first + queries)
        held.rotated = torch.cat((held.rotated, model.rotate(attention, held.newest(queries), here)[0]), 1)
        return here

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

    def _rotated_queries(
        self, attention: AttentionModule, query: Float[Tensor, "1 heads queries dim"], here: Angles | None
    ) -> Float[Tensor, "heads queries dim"]:
        """Queries where they stand; `here`: where the newest keys do."""
        return self.model.rotate(attention, query, here)[0]

    def _future_rotation(self, layer: int) -> Float[Tensor, "dim dim"]:
        """What rotates a query of a layer, x @ this, on average over the positions that follow the pass."""
        model, attention, device = self.model, self.model.attentions[layer], self.model.homes[layer]
        by_slot = self.policy.positions == "cache"
        begin = len(self.layers[layer]) if by_slot else self.token + self.mass[layer].shape[1]

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


def _rows(x: Float[Tensor, "kv_heads rows columns"], queries: int) -> Float[Tensor, "kv_heads groups queries columns"]:
    """The same rows, those of each query head apart."""
    return x.unflatten(1, (-1, queries))


def _product(
    x: Float[Tensor, "kv_heads rows inner"],
    other: Float[Tensor, "rows_of_slots inner columns"],
    queries: int,
    some: slice,
) -> Float[Tensor, "kv_heads groups some columns"]:
    """The rows of some queries of each head, times another matrix."""
    of = _rows(x, queries)[:, :, some]
    return (of.flatten(1, 2) @ other).unflatten(1, of.shape[1:3])


def ahead(queries: int, device: torch.device) -> Float[Tensor, "queries queries"]:
    """What is added to the scores of tokens of one pass: a query does not see what comes after it."""
    return torch.full((queries, queries), float("-inf"), device=device).triu(1)
