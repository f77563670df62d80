"""The slots that one layer keeps where they are ranked: every KV head has its own, in the order of the text.

All heads of a layer hold equally many, so nothing is copied to the host in here: how many there are is known.  Only how
many of them are stored in few bits is asked, when some are quantized, changed, or found to have left.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ...families.rotary import Adapted
from ...policies.ranked import FutureQueries, LayerState, Ranked
from ..state import State
from .banded import BandedLayer
from .packed import AsItCame, PackedSlots, compacted
from .quantized import Quantization
from .queries import QueryMoments

Kind = TypeVar("Kind", bound="RankedLayer")
WORK = "accumulated_attention", "recent_attention", "rotated"
"""What a layer knows of its slots besides keys, values and positions, where there is any."""


@dataclass(frozen=True, eq=False)
class Evicted:
    """Slots that a layer evicted: keys before rotation, and their text positions."""

    keys: Float[Tensor, "kv_heads evicted dim"]
    positions: Int[Tensor, "kv_heads evicted"]

    def of_head(self, kv_head: int) -> tuple[Int[Tensor, " evicted"], Float[Tensor, "evicted dim"]]:
        """Text positions and keys of what one KV head evicted."""
        return self.positions[kv_head], self.keys[kv_head]


@dataclass(frozen=True, eq=False)
class Scattered:
    """What the heads of a layer hold where each has slots of its own, when `read` tokens have been read.

    Slots are counted on the host, and only when somebody wants to know.
    """

    positions: Int[Tensor, "kv_heads slots"]
    read: int
    keys: Float[Tensor, "kv_heads slots dim"] | None = None
    """Before rotation, where somebody may want to draw a map."""

    def of_head(self, kv_head: int) -> tuple[Int[Tensor, " slots"], Float[Tensor, "slots dim"]]:
        """Text positions and keys of what one KV head holds, where keys are told."""
        assert self.keys is not None, "somebody may want to draw a map"
        return self.positions[kv_head], self.keys[kv_head]

    @property
    def heads(self) -> int:
        """How many KV heads these are."""
        return len(self.positions)

    @property
    def prefix(self) -> int:
        """How many of the text's first tokens every head holds without a gap."""
        return agreeing(self.positions.cpu(), torch.arange(self.positions.shape[1]))

    @property
    def suffix(self) -> int:
        """How many of the newest tokens every head holds without a gap."""
        expected = torch.arange(self.read - 1, self.read - 1 - self.positions.shape[1], -1)
        return agreeing(self.positions.cpu().flip(1), expected)

    @property
    def alike(self) -> None:
        """Nothing that all heads hold says what each of them holds."""
        return None

    def add_to(self, held: NDArray[np.float32]) -> None:
        """Add the heads that hold each token of the text, [read]."""
        held += np.bincount(self.positions.cpu().numpy().ravel(), minlength=len(held))


@dataclass(eq=False)
class RankedLayer:
    """The slots of one layer.  Tensors are replaced and never written into, so that a copy of it costs nothing.

    Where slots are stored in few bits (`packed`), their keys and values here are what the codes stand for: scores look
    at these, and a value into which something is merged is quantized anew.
    """

    keys: Float[Tensor, "kv_heads slots dim"]
    """Before rotation."""
    values: Float[Tensor, "kv_heads slots dim"]
    positions: Int[Tensor, "kv_heads slots"]
    """Where in the text each slot was read."""
    accumulated_attention: Float[Tensor, "kv_heads slots"] | None = None
    recent_attention: Float[Tensor, "kv_heads queries slots"] | None = None
    """What the policy asks to have observed (LayerState)."""
    rotated: Float[Tensor, "kv_heads slots dim"] | None = None
    """The keys once more, rotated to where they stand; None where they have changed, or stand otherwise since an
    eviction."""
    length: int = 1
    """Of the context for which they were rotated (families/frequencies.py)."""
    queries: QueryMoments | None = None
    """Of the queries that were read, where the policy asks for those that are expected."""
    packed: PackedSlots | None = None
    """Which slots are stored in few bits, and how; None where none ever is."""

    @classmethod
    def empty(cls, model: Adapted, layer: int) -> "RankedLayer":
        """What a layer of a model holds before it has read anything."""
        like = torch.empty(model.kv_heads, 0, model.head_dim, dtype=model.dtype, device=model.homes[layer])
        return cls(like, like, like[..., 0].long())

    def state(self) -> State:
        """What it holds, as it is stored, and what was observed of it."""
        named = {name: getattr(self, name) for name in ("keys", "values", "positions", *WORK)}
        more = {} if self.queries is None else {"queries": self.queries.state()}
        if self.packed is not None:
            (packed,) = compacted([self.packed])
            more["packed"] = packed.state()
            named |= {name: named[name][packed.at < 0] for name in ("keys", "values")}
        parts = State.of(more, length=self.length)
        return State(parts.values, {**parts.tensors, **{name: t for name, t in named.items() if t is not None}})

    def loaded(self, state: State) -> "RankedLayer":
        """A layer like this one that holds what a state says.  Raises ValueError where that is of another model."""
        like, packed = self.keys, self.packed
        if packed is None:
            keys = state.tensor("keys", like, (like.shape[0], None, like.shape[2]), like.dtype)
            values = state.tensor("values", like, tuple(keys.shape), like.dtype)
        else:
            packed = packed.loaded(state.part("packed"), like)
            shape = int((packed.at < 0).sum()), like.shape[2]
            keys, values = packed.beside(*(state.tensor(name, like, shape, like.dtype) for name in ("keys", "values")))
        heads, slots, _ = keys.shape
        positions = state.tensor("positions", like, (heads, slots), torch.int64)
        shapes = (heads, slots), (heads, None, slots), tuple(keys.shape)
        work = (state.get(name, like, shape) for name, shape in zip(WORK, shapes, strict=True))
        queries = QueryMoments.loaded(state.part("queries"), like) if "queries" in state.values else None
        length = state.value("length", int)
        return RankedLayer(keys, values, positions, *work, length=length, queries=queries, packed=packed)

    @classmethod
    def of(cls, layer: BandedLayer, read: int) -> "RankedLayer":
        """The slots of what a layer holds in a band, when `read` tokens have been read."""
        assert layer.read == read, f"{read} tokens were read, and the window ends with token {layer.read}"
        keys, values = layer.everything()
        return cls(keys, values, layer.positions().expand(len(keys), -1))

    def __len__(self) -> int:
        return self.keys.shape[1]

    @property
    def kv_heads(self) -> int:
        """KV heads of the model."""
        return len(self.keys)

    @property
    def slots(self) -> int:
        """Tokens held, once for each KV head."""
        return self.keys.shape[0] * self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values as they are stored; what codes stand for in numbers, and what was observed, is
        work space and not counted."""
        packed, count = (0, 0) if self.packed is None else (self.packed.nbytes, len(self.packed))
        return packed + (self.slots - count) * sum(x.shape[2] * x.element_size() for x in (self.keys, self.values))

    def held(self, read: int) -> list[Scattered]:
        """What its heads hold when `read` tokens have been read."""
        return [Scattered(self.positions, read)]

    def shown(self, read: int) -> Scattered:
        """The same, with keys from which maps are drawn."""
        return Scattered(self.positions, read, self.keys)

    def of_head(
        self, kv_head: int
    ) -> tuple[Int[Tensor, " slots"], Float[Tensor, "slots dim"], Float[Tensor, "slots dim"]]:
        """Text positions, keys and values that one KV head holds, in the order of the text."""
        return self.positions[kv_head], self.keys[kv_head], self.values[kv_head]

    def ends(
        self, first: int, last: int
    ) -> tuple[Float[Tensor, "kv_heads ends dim"], Float[Tensor, "kv_heads ends dim"]]:
        """Keys and values of the first and the last tokens, so many of each, which all heads must hold."""
        begin = len(self) - last
        keys = torch.cat((self.keys[:, :first], self.keys[:, begin:]), 1)
        return keys, torch.cat((self.values[:, :first], self.values[:, begin:]), 1)

    def copy(self: Kind) -> Kind:
        """The same slots, free to go another way."""
        return replace(self)

    def observed_for(self: Kind, policy: Ranked) -> Kind:
        """The same slots, and of what was observed of them that which a policy asks for."""
        total, recent, window = self.accumulated_attention, self.recent_attention, policy.observation_window
        return replace(
            self,
            accumulated_attention=total if policy.accumulates_attention else None,
            recent_attention=recent[:, -window:] if recent is not None and window else None,
            queries=self.queries if policy.future_positions else None,
            rotated=None,
        )

    def as_it_came(self: Kind, q: Quantization | None) -> Kind:
        """The same slots in numbers, none of which is stored in few bits yet; `q`: which will be."""
        return replace(self, packed=None if q is None else PackedSlots.none(self.keys, q))

    @torch.inference_mode()
    def pack(self, end: int) -> AsItCame | None:
        """Quantize what is held before text position `end` and is to be, and say what that was; None for nothing."""
        assert self.packed is not None, "it is to quantize"
        # Without numbers nobody knows which slots these are.
        if self.positions.is_meta:
            return None
        q = self.packed.q
        waiting = (self.positions >= q.exact) & (self.positions < end) & (self.packed.at < 0)
        rows, columns = waiting.nonzero(as_tuple=True)
        if not len(rows):
            return None
        flat = rows * self.positions.shape[1] + columns
        positions, keys, values = (
            x.flatten(0, 1).index_select(0, flat) for x in (self.positions, self.keys, self.values)
        )
        came = AsItCame(self._heads_of(rows, columns), positions, keys, (rows, columns))
        groups = came.heads * 2**32 + (positions - q.exact) // q.group
        self.packed, (keys, values) = self.packed.with_more(rows, columns, groups, keys, values)
        self.keys = self.keys.index_put((rows, columns), keys)
        self.values = self.values.index_put((rows, columns), values)
        self.rotated = None
        return came

    def slots_at(self, came: AsItCame) -> Int[Tensor, " some"]:
        """Which of its head's slots each of these is, which have just been quantized."""
        return came.at[1]

    def _heads_of(self, rows: Int[Tensor, " some"], columns: Int[Tensor, " some"]) -> Int[Tensor, " some"]:
        """Whose some of the slots are."""
        return rows

    def append(
        self,
        keys: Float[Tensor, "kv_heads tokens dim"],
        values: Float[Tensor, "kv_heads tokens dim"],
        positions: Int[Tensor, " tokens"],
    ) -> None:
        """Hold the next tokens of the text too."""
        self._hold(keys, values, positions.expand(len(keys), -1))

    def _hold(
        self,
        keys: Float[Tensor, "rows new dim"],
        values: Float[Tensor, "rows new dim"],
        positions: Int[Tensor, "rows new"],
    ) -> None:
        self.keys, self.values = torch.cat((self.keys, keys), 1), torch.cat((self.values, values), 1)
        self.positions = torch.cat((self.positions, positions), 1)
        if self.packed is not None:
            self.packed = self.packed.followed_by(keys.shape[1])

    def replace_first(
        self, keys: Float[Tensor, "kv_heads first dim"], values: Float[Tensor, "kv_heads first dim"]
    ) -> None:
        """Hold these keys and values of the text's first tokens, where those are held."""
        early = (self.positions < keys.shape[1])[..., None]
        at = self.positions.clamp(max=keys.shape[1] - 1)
        keys, values = _picked(at, keys, values)
        self.keys, self.values = torch.where(early, keys, self.keys), torch.where(early, values, self.values)
        self.rotated = None

    def with_prefix(
        self, keys: Float[Tensor, "kv_heads first dim"], values: Float[Tensor, "kv_heads first dim"]
    ) -> "RankedLayer":
        """The same with the text's first tokens in front, whichever of them were held."""
        count = keys.shape[1]
        rest = int((self.positions >= count).sum(1).min())
        first = torch.arange(count, device=self.positions.device).expand(len(keys), -1)
        pairs = ((keys, self.keys), (values, self.values), (first, self.positions))
        whole = [torch.cat((new, held[:, len(self) - rest :]), 1) for new, held in pairs]
        return RankedLayer(whole[0], whole[1], whole[2])

    def observe(self, weights: Float[Tensor, "kv_heads queries slots"], policy: Ranked) -> None:
        """Remember what the policy asks for of the attention that the newest queries gave."""
        if policy.accumulates_attention:
            total = weights.sum(1, dtype=torch.float32)
            if self.accumulated_attention is not None:
                total[:, : self.accumulated_attention.shape[1]] += self.accumulated_attention
            self.accumulated_attention = total
        if policy.observation_window:
            recent, window = weights, policy.observation_window
            if self.recent_attention is not None and recent.shape[1] < window:
                older = self.recent_attention[:, -(window - recent.shape[1]) :]
                before, slots = older.shape[1:]
                recent = weights.new_zeros(len(older), before + weights.shape[1], weights.shape[2])
                recent[:, :before, :slots], recent[:, before:] = older, weights
            self.recent_attention = recent[:, -window:]

    def observe_queries(self, queries: Float[Tensor, "heads queries dim"]) -> None:
        """Remember what becomes of mean and spread of the queries with these, the newest."""
        if queries.shape[1]:
            self.queries = QueryMoments.of(queries) if self.queries is None else self.queries.followed_by(queries)

    def future_queries(self, rotation: Float[Tensor, "dim dim"]) -> FutureQueries:
        """The queries that are expected; x @ `rotation` rotates them to where they will stand."""
        assert self.queries is not None, "queries have been observed"
        assert self.rotated is not None, "keys that are ranked have been rotated"
        return FutureQueries(self.queries.mean, self.queries.covariance, self.rotated.float() @ rotation.T)

    def layer_state(
        self, layer: int, dims: int | None = None, rotation: Float[Tensor, "dim dim"] | None = None
    ) -> LayerState:
        """What a policy knows of these slots.

        `dims`: the first dimensions of a head, which are the model's own; None: all.  `rotation`: rotates queries to
        where they are expected, for a policy that asks for those.
        """
        expected = None if rotation is None else self.future_queries(rotation)
        rotated = None if self.rotated is None else self.rotated[..., :dims]
        keys, values = self.keys[..., :dims], self.values[..., :dims]
        observed = self.accumulated_attention, self.recent_attention
        return LayerState(keys, values, self.positions, *observed, layer, rotated, expected)

    def evict(
        self,
        policy: Ranked,
        seen: LayerState,
        leaves: Int[Tensor, "kv_heads evicted"],
        kept: Int[Tensor, "kv_heads slots"],
    ) -> None:
        """Evict some slots and keep the others, which are in order; `seen`: what the policy knew of them."""
        self._merge(policy.merged(self.values, seen, leaves))
        if policy.positions == "cache":
            self.rotated = None
        self._keep(kept)

    def evicted(self, leaves: Int[Tensor, "kv_heads evicted"]) -> Evicted:
        """What leaves with these slots."""
        (keys,) = _picked(leaves, self.keys)
        return Evicted(keys, self.positions.gather(1, leaves))

    def _merge(self, values: Float[Tensor, "kv_heads slots dim"]) -> None:
        """Hold these values in place of those that are held; those that are stored in few bits are quantized anew."""
        if self.packed is not None and values is not self.values and len(self.packed):
            changed = (values != self.values).any(2) & (self.packed.at >= 0)
            where = changed.nonzero(as_tuple=True)
            self.packed, new = self.packed.with_values(self.packed.at[where], values[where])
            values = values.index_put(where, new)
        self.values = values

    def _keep(self, kept: Int[Tensor, "kv_heads slots"]) -> None:
        """Hold these slots alone."""
        if self.packed is not None:
            self.packed = self.packed.of_slots(kept)
        self.keys, self.values, *rotated = _picked(
            kept, self.keys, self.values, *([] if self.rotated is None else [self.rotated])
        )
        self.rotated = rotated[0] if rotated else None
        self.positions = self.positions.gather(1, kept)
        if self.accumulated_attention is not None:
            self.accumulated_attention = self.accumulated_attention.gather(1, kept)
        if (recent := self.recent_attention) is not None:
            self.recent_attention = recent.gather(2, kept[:, None].expand(-1, recent.shape[1], -1))


def _picked(kept: Int[Tensor, "rows count"], *of: Float[Tensor, "rows slots dim"]) -> list[Tensor]:
    """The kept slots of every row, of several tensors: [rows, count, dim]."""
    # Whole rows are copied so, where `gather` goes number by number.
    begins = torch.arange(len(kept), device=kept.device)[:, None] * of[0].shape[1]
    flat = (kept + begins).flatten()
    return [x.flatten(0, 1).index_select(0, flat).unflatten(0, kept.shape) for x in of]


def agreeing(positions: Int[Tensor, "kv_heads slots"], expected: Int[Tensor, " slots"]) -> int:
    """How many slots from the first on are as expected in all heads."""
    return int((positions == expected).cummin(1).values.sum(1).min())


def compact(layers: Iterable[RankedLayer]) -> None:
    """Let codes and scales go of which no slot of these layers is left."""
    homes: dict[torch.device, list[tuple[RankedLayer, PackedSlots]]] = {}
    for layer in layers:
        if layer.packed is not None:
            homes.setdefault(layer.keys.device, []).append((layer, layer.packed))
    for here in homes.values():
        for (layer, _), left in zip(here, compacted([packed for _, packed in here]), strict=True):
            layer.packed = left
