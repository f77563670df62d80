"""Caches whose slots are ranked, and the forward pass over them.

Every KV head of a layer keeps slots of its own, in the order of the text; all heads of a layer keep equally many.  As
many tokens go through the model together as come before the next eviction, which then happens inside each layer, by
what that layer has seen (policies/ranked.py).  Nothing is copied to the host in here: how many slots there are is known
beforehand.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from ...families.positions import Angles
from ...families.rotary import Adapted
from ...policies import Ranked
from ...policies.ranked import LayerState
from ..attention.banded import capped, weigh
from ..interventions import Interventions
from .banded import BandedLayer


class Evicted(NamedTuple):
    """Slots that a layer let go: keys before rotation [kv_heads, gone, dim], and their places in the text."""

    keys: Tensor
    places: Tensor


@dataclass(frozen=True, eq=False)
class Scattered:
    """What the heads of a ranked cache hold of a text of which `read` tokens have been read.

    Slots are counted on the host, and only when somebody wants to know.
    """

    places: Int[Tensor, "kv_heads slots"]
    read: int
    keys: Float[Tensor, "kv_heads slots dim"] | None = None
    """Before rotation, where somebody may want to draw a map."""

    @property
    def heads(self) -> int:
        return len(self.places)

    @property
    def prefix(self) -> int:
        """How many of the text's first tokens every head holds without a gap."""
        return _agreeing(self.places.cpu(), torch.arange(self.places.shape[1]))

    @property
    def suffix(self) -> int:
        """How many of the newest tokens every head holds without a gap."""
        expected = torch.arange(self.read - 1, self.read - 1 - self.places.shape[1], -1)
        return _agreeing(self.places.cpu().flip(1), expected)

    def count(self, held: NDArray[np.float32]) -> None:
        """Add the heads that hold each token of the text, [read]."""
        held += np.bincount(self.places.cpu().numpy().ravel(), minlength=len(held))


@dataclass(eq=False)
class RankedLayer:
    """The slots of one layer.  Tensors are replaced and never written into, so that a copy of it costs nothing."""

    keys: Float[Tensor, "kv_heads slots dim"]
    """Before rotation."""
    values: Float[Tensor, "kv_heads slots dim"]
    places: Int[Tensor, "kv_heads slots"]
    """Where in the text each slot was read."""
    total: Float[Tensor, "kv_heads slots"] | None = None
    rows: Float[Tensor, "kv_heads queries slots"] | None = None
    """What the policy asks to have observed (LayerState)."""
    turned: Float[Tensor, "kv_heads slots dim"] | None = None
    """The keys once more, rotated to where they stand; None where they stand otherwise since an eviction."""
    length: int = 1
    """Of the context for which they were rotated (frequencies.py)."""

    @classmethod
    def empty(cls, model: Adapted, layer: int) -> "RankedLayer":
        like = torch.empty(model.kv_heads, 0, model.head_dim, dtype=model.dtype, device=model.homes[layer])
        return cls(like, like, like[..., 0].long())

    @classmethod
    def of(cls, cache: BandedLayer, read: int) -> "RankedLayer":
        """What a layer holds by place, when `read` tokens have been read."""
        assert cache.read == read, f"{read} tokens were read, and the run ends with token {cache.read}"
        keys, values = cache.everything()
        return cls(keys, values, cache.positions().expand(len(keys), -1))

    def __len__(self) -> int:
        return self.keys.shape[1]

    @property
    def slots(self) -> int:
        """Tokens held, once for each KV head."""
        return len(self) * len(self.keys)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held; what was observed of them is work space and not counted."""
        return sum(t.numel() * t.element_size() for t in (self.keys, self.values))

    def spans(self, read: int) -> list[Scattered]:
        """What its heads hold when `read` tokens have been read."""
        return [Scattered(self.places, read)]

    def ends(self, sinks: int, run: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first and the newest tokens, so many of each, which all heads must hold."""
        count = len(self)
        return tuple(torch.cat((x[:, :sinks], x[:, count - run :]), 1) for x in (self.keys, self.values))

    def copy(self) -> "RankedLayer":
        return replace(self)

    def append(self, keys: Tensor, values: Tensor, places: Int[Tensor, " tokens"]) -> None:
        self.keys, self.values = torch.cat((self.keys, keys), 1), torch.cat((self.values, values), 1)
        self.places = torch.cat((self.places, places.expand(len(keys), -1)), 1)

    def put_first(self, keys: Tensor, values: Tensor) -> None:
        """Hold these keys and values of the text's first tokens, each [kv_heads, tokens, dim], where those are held."""
        early = (self.places < keys.shape[1])[..., None]
        at = self.places.clamp(max=keys.shape[1] - 1)
        self.keys = torch.where(early, _picked(keys, at), self.keys)
        self.values = torch.where(early, _picked(values, at), self.values)
        self.turned = None

    def observe(self, weights: Float[Tensor, "kv_heads queries slots"], policy: Ranked) -> None:
        """Remember what the policy asks for of the attention that the newest queries gave."""
        if policy.accumulates_attention:
            total = weights.sum(1, dtype=torch.float32)
            if self.total is not None:
                total[:, : self.total.shape[1]] += self.total
            self.total = total
        if policy.observation_window:
            rows = weights
            if self.rows is not None and rows.shape[1] < policy.observation_window:
                older = self.rows[:, -(policy.observation_window - rows.shape[1]) :]
                older = nn.functional.pad(older, (0, rows.shape[2] - older.shape[2]))
                rows = torch.cat((older, rows), 1)
            self.rows = rows[:, -policy.observation_window :]

    def evict(self, policy: Ranked, layer: int, layers: int, *, tell: bool, dims: int | None = None) -> Evicted | None:
        """Let go of what the policy ranks lowest, if there is more than its budget; `tell`: and say what went.

        `dims`: the first dimensions of a head, which are the model's own; None: all.
        """
        budget = policy.budget_of(layer, layers)
        if len(self) <= budget:
            return None
        rotated = None if self.turned is None else self.turned[..., :dims]
        keys, values = self.keys[..., :dims], self.values[..., :dims]
        order = policy.order(LayerState(keys, values, self.places, self.total, self.rows, layer, rotated))
        count = budget - policy.interval + 1
        leaves, kept = order[:, :-count], order[:, -count:].sort().values
        gone = Evicted(_picked(self.keys, leaves), _picked(self.places, leaves)) if tell else None
        self.keys, self.values, self.places = (_picked(x, kept) for x in (self.keys, self.values, self.places))
        self.total = None if self.total is None else _picked(self.total, kept)
        if self.rows is not None:
            self.rows = self.rows.gather(2, kept[:, None].expand(-1, self.rows.shape[1], -1))
        stays = self.turned is not None and policy.positions == "text"
        self.turned = _picked(self.turned, kept) if stays else None
        return gone


def _picked(x: Tensor, kept: Int[Tensor, "kv_heads count"]) -> Tensor:
    """The kept slots of every KV head, x [kv_heads, slots, *]."""
    return x.gather(1, kept if x.ndim == 2 else kept[..., None].expand(-1, -1, x.shape[2]))


@dataclass(eq=False)
class RankedPass:
    """One forward pass over ranked caches, of tokens that begin at text position `token`.

    There must be no more of them than come before the next eviction.  After the pass `mass[layer]` holds the sink mass,
    [heads, queries]; with `capture`, `queries[layer]` [heads, queries, dim] what the layer asked with before rotation,
    and `gone[layer]` what it let go.
    """

    model: Adapted
    token: int
    sink_tokens: int
    policy: Ranked
    caches: list[RankedLayer]
    capture: bool = False
    what_if: Interventions | None = None
    length: int = 1
    """Of the context for which rotations are chosen (frequencies.py): one for the whole pass."""
    mass: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    gone: list[Evicted | None] = field(default_factory=list)
    _made: dict[tuple, Any] = field(default_factory=dict)

    def attend(
        self,
        attention: nn.Module,
        query: Float[Tensor, "1 heads queries dim"],
        key: Float[Tensor, "1 kv_heads queries dim"],
        value: Float[Tensor, "1 kv_heads queries dim"],
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        sliding_window: int | None = None,
        s_aux: Float[Tensor, " heads"] | None = None,
        **_,
    ) -> Float[Tensor, "1 queries heads dim"]:
        """The layer's output; as a side effect its cache holds these tokens, less what the policy lets go."""
        layer, (_, heads, queries, dim), kv_heads = attention.layer_idx, query.shape, key.shape[1]
        cache, groups = self.caches[layer], heads // kv_heads
        if self.what_if is not None:
            s_aux = self.what_if.sink(s_aux, layer, query)
        places = self._shared(("places", key.device), lambda: self._places(queries).to(key.device))
        cache.append(key[0], value[0], places)
        slots = len(cache)
        q = self._turn(attention, cache, query * (dim**-0.5 if scaling is None else scaling), key)
        q = q[0].reshape(kv_heads, groups * queries, dim)
        scores = capped(q @ cache.turned.transpose(1, 2), softcap)
        if queries > 1:
            scores[..., slots - queries :] += self._shared(
                ("ahead", key.device), lambda: _ahead(queries, key.device).repeat(groups, 1)
            )
        if sliding_window is not None and self.token + queries > sliding_window:
            unseen = cache.places[:, None] <= places[:, None] - sliding_window
            scores = scores.masked_fill(unseen.repeat(1, groups, 1), float("-inf"))
        if s_aux is not None:
            extra = s_aux.view(kv_heads, groups, 1, 1).expand(-1, -1, queries, -1).reshape(kv_heads, -1, 1)
            scores = torch.cat((scores, extra.to(scores.dtype)), -1)
        whole, total = weigh(scores, [], scores.dtype)
        weights, early = whole[..., :slots], cache.places < self.sink_tokens
        if self.what_if is not None:
            columns = nn.functional.pad(early, (0, scores.shape[-1] - slots))[:, None]
            later = (places >= self.sink_tokens).repeat(groups)[:, None]
            struck = self.what_if.knocked_out(scores, columns, later, layer, kv_heads, heads)
            whole, total = self.what_if.bend(struck, scores, whole, total, lambda s: weigh(s, [], s.dtype))
        out = whole[..., :slots].to(value.dtype) @ cache.values
        self.mass.append((weights @ early.to(weights.dtype)[..., None]).float().reshape(heads, queries))
        if self.policy.accumulates_attention or self.policy.observation_window:
            cache.observe(weights.view(kv_heads, groups, queries, slots).mean(1), self.policy)
        own = dim - self.model.positions.added
        gone = cache.evict(self.policy, layer, self.model.layers, tell=self.capture, dims=own)
        if self.capture:
            self.queries.append(query[0])
            self.gone.append(gone)
        return out.reshape(1, heads, queries, dim).transpose(1, 2)

    def _places(self, queries: int) -> Int[Tensor, " queries"]:
        return torch.arange(self.token, self.token + queries, device=self.model.device)

    def _turn(self, attention: nn.Module, cache: RankedLayer, query: Tensor, key: Tensor) -> Tensor:
        """The query where it stands; the cache's keys are turned to where they stand, as far as they are not."""
        model, slots, queries = self.model, len(cache), key.shape[2]
        kind, by_slot = model.kind(attention), self.policy.positions == "cache"

        def angles(begin: int) -> Angles | None:
            return self._shared(
                (kind, begin, slots),
                lambda: model.angles(attention, torch.arange(begin, slots, device=model.device), self.length),
            )

        if cache.length != self.length:
            cache.turned, cache.length = None, self.length
        if cache.turned is None and by_slot:
            whole = angles(0)
            cache.turned = model.rotate(attention, cache.keys[None], whole)[0]
            here = None if whole is None else (whole[0][:, slots - queries :], whole[1][:, slots - queries :])
            return model.rotate(attention, query, here)
        if cache.turned is None:
            # Every KV head holds other places: for once they are a batch of texts with one head each.
            flat = model.angles(attention, cache.places[:, : slots - queries].flatten(), self.length)
            old = cache.keys[:, None, : slots - queries]
            if flat is not None:
                flat = flat[0].view(len(old), -1, flat[0].shape[-1]), flat[1].view(len(old), -1, flat[1].shape[-1])
            cache.turned = model.rotate(attention, old, flat)[:, 0]
        here = (
            angles(slots - queries)
            if by_slot
            else self._shared((kind, "text"), lambda: model.angles(attention, self._places(queries), self.length))
        )
        cache.turned = torch.cat((cache.turned, model.rotate(attention, key, here)[0]), 1)
        return model.rotate(attention, query, here)

    def _shared(self, kind: tuple, make: Callable[[], Any]) -> Any:
        """What the layers have in common is made once."""
        if kind not in self._made:
            self._made[kind] = make()
        return self._made[kind]


def _ahead(queries: int, device: torch.device) -> Tensor:
    """What is added to the scores of tokens of one pass: a query does not see what comes after it."""
    return torch.full((queries, queries), float("-inf"), device=device).triu(1)


def _agreeing(places: Tensor, expected: Tensor) -> int:
    """How many slots from the first on are as expected in all heads."""
    return int((places == expected).cummin(1).values.sum(1).min())


def as_ranked(cache: BandedLayer | RankedLayer, read: int) -> RankedLayer:
    """What a layer holds, in slots of which nothing has been observed yet."""
    if isinstance(cache, BandedLayer):
        return RankedLayer.of(cache, read)
    return RankedLayer(cache.keys, cache.values, cache.places)


def with_front(caches: list[RankedLayer], front: list[tuple[Tensor, Tensor]]) -> list[RankedLayer]:
    """The caches with the text's first tokens, keys and values per layer, in front again, whichever were held."""
    pinned = []
    for cache, (keys, values) in zip(caches, front, strict=True):
        count = keys.shape[1]
        rest = int((cache.places >= count).sum(1).min())
        places = torch.arange(count, device=cache.places.device).expand(len(keys), -1)
        pairs = ((keys, cache.keys), (values, cache.values), (places, cache.places))
        pinned.append(RankedLayer(*(torch.cat((first, held[:, len(cache) - rest :]), 1) for first, held in pairs)))
    return pinned
