"""The slots that one layer keeps where its KV heads hold differently many: those of all heads stand in one row.

Nothing is padded: what a head does not hold takes no memory.  How many slots a layer has is known on the host; how many
of them are each head's is not, so that nothing is copied there while a text is read.
"""

from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ...families.rotary import Adapted
from ...policies.ranked import LayerState, Ranked
from ..state import State
from .packed import AsItCame
from .ranked import Evicted, RankedLayer, Scattered, agreeing


@dataclass(frozen=True, eq=False)
class RaggedEvicted(Evicted):
    """Slots in one row that a layer evicted."""

    own: Bool[Tensor, "owners evicted"] = field(kw_only=True)
    """Whose they were."""

    def of_head(self, kv_head: int) -> tuple[Int[Tensor, " evicted"], Float[Tensor, "evicted dim"]]:
        """Text positions and keys of what one KV head evicted."""
        return self.positions[0, self.own[kv_head]], self.keys[0, self.own[kv_head]]


@dataclass(frozen=True, eq=False)
class Ragged(Scattered):
    """What the heads of a layer hold whose slots stand in one row."""

    own: Bool[Tensor, "owners slots"] = field(kw_only=True)
    """Whose they are."""

    def of_head(self, kv_head: int) -> tuple[Int[Tensor, " slots"], Float[Tensor, "slots dim"]]:
        """Text positions and keys of what one KV head holds, where keys are told."""
        assert self.keys is not None, "somebody may want to draw a map"
        return self.positions[0, self.own[kv_head]], self.keys[0, self.own[kv_head]]

    @property
    def heads(self) -> int:
        """How many KV heads these are."""
        return len(self.own)

    @property
    def prefix(self) -> int:
        """How many of the text's first tokens every head holds without a gap."""
        return min(agreeing(row[None], torch.arange(len(row))) for row in self._rows())

    @property
    def suffix(self) -> int:
        """How many of the newest tokens every head holds without a gap."""
        newest = self.read - 1
        return min(agreeing(row.flip(0)[None], torch.arange(newest, newest - len(row), -1)) for row in self._rows())

    def _rows(self) -> list[Int[Tensor, " slots"]]:
        positions = self.positions[0].cpu()
        return [positions[own] for own in self.own.cpu()]


@dataclass(eq=False)
class RaggedLayer(RankedLayer):
    """The slots of one layer, in the order of the text and for each token in that of the heads.

    Tensors have one row, [1, slots, …].  They are replaced and never written into, so that a copy of it costs nothing.
    """

    own: Bool[Tensor, "owners slots"] = field(kw_only=True)
    """Which slots are those of each KV head: every slot is one head's."""

    @classmethod
    def empty(cls, model: Adapted, layer: int) -> "RaggedLayer":
        """What a layer of a model holds before it has read anything."""
        return cls.of_rows(RankedLayer.empty(model, layer))

    @classmethod
    def of_rows(cls, layer: RankedLayer) -> "RaggedLayer":
        """The slots of a layer whose heads have a row each, of which nothing has been observed yet."""
        (heads, slots), device = layer.positions.shape, layer.positions.device
        order = layer.positions.T.flatten().argsort(stable=True) if slots else layer.positions.flatten()
        keys, values, positions = (
            x.transpose(0, 1).flatten(0, 1)[None, order] for x in (layer.keys, layer.values, layer.positions)
        )
        own = torch.eye(heads, dtype=torch.bool, device=device).repeat(1, slots)[:, order]
        return cls(keys, values, positions, own=own)

    def rows(self) -> RankedLayer:
        """The same with a row for each head, all as long as the shortest: of the others the first tokens that all heads
        hold stay, and the newest."""
        heads = [self.of_head(head) for head in range(self.kv_heads)]
        count, prefix = min(len(positions) for positions, _, _ in heads), Ragged(self.positions, 0, own=self.own).prefix
        rows = [[torch.cat((x[:prefix], x[len(x) - count + prefix :])) for x in head] for head in heads]
        positions, keys, values = (torch.stack(x) for x in zip(*rows, strict=True))
        return RankedLayer(keys, values, positions)

    def state(self) -> State:
        """What it holds, whose that is, and what was observed of it."""
        state = super().state()
        return State(state.values, {**state.tensors, "own": self.own})

    def loaded(self, state: State) -> "RaggedLayer":
        """A layer like this one that holds what a state says.  Raises ValueError where that is of another model."""
        layer = super().loaded(state)
        own = state.tensor("own", self.keys, (self.kv_heads, layer.slots), torch.bool)
        return RaggedLayer(**{f.name: getattr(layer, f.name) for f in fields(RankedLayer)}, own=own)

    def __len__(self) -> int:
        """Tokens that a KV head holds on average, rounded up."""
        return -(-self.slots // self.kv_heads)

    @property
    def kv_heads(self) -> int:
        """KV heads of the model."""
        return len(self.own)

    def held(self, read: int) -> list[Scattered]:
        """What its heads hold when `read` tokens have been read."""
        return [Ragged(self.positions, read, own=self.own)]

    def shown(self, read: int) -> Ragged:
        """The same, with keys from which maps are drawn."""
        return Ragged(self.positions, read, self.keys, own=self.own)

    def of_head(
        self, kv_head: int
    ) -> tuple[Int[Tensor, " slots"], Float[Tensor, "slots dim"], Float[Tensor, "slots dim"]]:
        """Text positions, keys and values that one KV head holds, in the order of the text."""
        own = self.own[kv_head]
        return self.positions[0, own], self.keys[0, own], self.values[0, own]

    def ends(
        self, first: int, last: int
    ) -> tuple[Float[Tensor, "kv_heads ends dim"], Float[Tensor, "kv_heads ends dim"]]:
        """Keys and values of the first and the last tokens, so many of each, which all heads must hold."""
        heads = [self.of_head(head)[1:] for head in range(self.kv_heads)]
        keys, values = ([torch.cat((x[:first], x[len(x) - last :])) for x in of] for of in zip(*heads, strict=True))
        return torch.stack(keys), torch.stack(values)

    def append(
        self,
        keys: Float[Tensor, "kv_heads tokens dim"],
        values: Float[Tensor, "kv_heads tokens dim"],
        positions: Int[Tensor, " tokens"],
    ) -> None:
        """Hold the next tokens of the text too, in all heads."""
        heads, tokens = keys.shape[:2]
        self._hold(in_one_row(keys), in_one_row(values), in_one_row(positions.expand(heads, -1)))
        new = torch.eye(heads, dtype=torch.bool, device=self.own.device).repeat(1, tokens)
        self.own = torch.cat((self.own, new), 1)

    def replace_first(
        self, keys: Float[Tensor, "kv_heads first dim"], values: Float[Tensor, "kv_heads first dim"]
    ) -> None:
        """Hold these keys and values of the text's first tokens, where those are held."""
        early = (self.positions < keys.shape[1])[..., None]
        of, at = self._heads(), self.positions[0].clamp(max=keys.shape[1] - 1)
        self.keys = torch.where(early, keys[of, at], self.keys)
        self.values = torch.where(early, values[of, at], self.values)
        self.rotated = None

    def with_prefix(
        self, keys: Float[Tensor, "kv_heads first dim"], values: Float[Tensor, "kv_heads first dim"]
    ) -> "RaggedLayer":
        """The same with the text's first tokens in front, whichever of them were held."""
        first = RaggedLayer(self.keys[:, :0], self.values[:, :0], self.positions[:, :0], own=self.own[:, :0])
        first.append(keys, values, torch.arange(keys.shape[1], device=self.positions.device))
        later = self.positions[0] >= keys.shape[1]
        pairs = (first.keys, self.keys), (first.values, self.values), (first.positions, self.positions)
        keys, values, positions = (torch.cat((new, held[:, later]), 1) for new, held in pairs)
        return RaggedLayer(keys, values, positions, own=torch.cat((first.own, self.own[:, later]), 1))

    def observe(self, weights: Float[Tensor, "kv_heads queries slots"], policy: Ranked) -> None:
        """Remember what the policy asks for of the attention that the newest queries gave, 0 to what a head does not
        hold."""
        super().observe(weights.sum(0, keepdim=True), policy)

    def slots_of_heads(self) -> Int[Tensor, " slots"]:
        """Which of its head's slots each is."""
        return ((self.own.cumsum(1) - 1) * self.own).sum(0)

    def slots_at(self, came: AsItCame) -> Int[Tensor, " some"]:
        """Which of its head's slots each of these is, which have just been quantized."""
        return self.slots_of_heads()[came.at[1]]

    def _heads(self) -> Int[Tensor, " slots"]:
        """Whose the slots are."""
        return self.own.int().argmax(0)

    def _heads_of(self, rows: Int[Tensor, " some"], columns: Int[Tensor, " some"]) -> Int[Tensor, " some"]:
        return self._heads()[columns]

    def layer_state(
        self, layer: int, dims: int | None = None, rotation: Float[Tensor, "dim dim"] | None = None
    ) -> LayerState:
        """What a policy knows of these slots, and whose they are."""
        return replace(super().layer_state(layer, dims, rotation), own=self.own)

    def evicted(self, leaves: Int[Tensor, "1 evicted"]) -> RaggedEvicted:
        """What leaves with these slots, and whose that was."""
        evicted = super().evicted(leaves)
        return RaggedEvicted(evicted.keys, evicted.positions, own=self.own[:, leaves[0]])

    def _keep(self, kept: Int[Tensor, "1 slots"]) -> None:
        super()._keep(kept)
        self.own = self.own[:, kept[0]]


def in_one_row(x: Shaped[Tensor, "kv_heads tokens *dim"]) -> Shaped[Tensor, "1 slots *dim"]:
    """What heads have of some tokens, token by token."""
    return x.transpose(0, 1).flatten(0, 1)[None]
