"""What every KV store answers: the one protocol between a lane and what it keeps.

A store holds the keys and values of all layers of one lane under one policy.  It reads on, decodes one token, takes
over from a store of any other kind, says what it holds, and makes copies of itself.  A new kind of store is one file
beside this one, one line in kv/__init__.py, and a policy that names it.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ...policies import Policy
from ...settings import MOST
from ..attention.token import TokenPass
from ..context import SharedContext
from ..fidelity import Outputs
from ..history import QKChunk, RankedChunk
from ..interventions import Interventions
from ..layers.banded import BandedLayer
from ..layers.quantized import Quantization
from ..layers.ragged import RaggedLayer
from ..layers.ranked import RankedLayer
from ..layers.slots import Held, prefix_of
from ..layers.split import SplitLayer
from ..logits import Logits
from ..state import State

PASSES = 32
"""Forward passes that make one chunk at most, so that a lane can be followed."""

Chunk = QKChunk | RankedChunk
Kind = TypeVar("Kind", bound="Store")


@runtime_checkable
class Layer(Protocol):
    """What one layer holds."""

    @property
    def slots(self) -> int:
        """Tokens held, once for each KV head."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held."""
        ...

    def held(self, read: int) -> Sequence[Held]:
        """What its heads hold when `read` tokens have been read, by groups of heads that hold the same."""
        ...

    def of_head(
        self, kv_head: int
    ) -> tuple[Int[Tensor, " slots"], Float[Tensor, "slots dim"], Float[Tensor, "slots dim"]]:
        """Text positions, keys and values that one KV head holds."""
        ...

    def ends(
        self, first: int, last: int
    ) -> tuple[Float[Tensor, "kv_heads ends dim"], Float[Tensor, "kv_heads ends dim"]]:
        """Keys and values of the first and the last tokens, so many of each, which all heads must hold."""
        ...

    def replace_first(
        self, keys: Float[Tensor, "kv_heads first dim"], values: Float[Tensor, "kv_heads first dim"]
    ) -> None:
        """Hold these keys and values of the text's first tokens, wherever those are held."""
        ...

    def copy(self) -> "Layer":
        """The same tokens held, free to go another way."""
        ...

    def state(self) -> State:
        """What is held, to go on from there in another process."""
        ...

    def loaded(self, state: State) -> "Layer":
        """A layer like this one that holds what a state says.  Raises ValueError where that is of another model."""
        ...


class Passed(NamedTuple):
    """What a forward pass tells."""

    logits: Float[Tensor, "batch tokens vocabulary"]
    sink_mass: Float[Tensor, "layers heads tokens"]
    """Attention of each query head to the first tokens of the text."""
    held: NDArray[np.float64]
    """Tokens that a KV head then held on average, [tokens]."""
    attended: Sequence[Float[Tensor, "batch tokens heads dim"]] | None = None
    """Outputs of the attention of each layer, where lanes are measured against one of them."""
    allocated: NDArray[np.float64] | None = None
    """Slots that an engine hands out for the tokens held on average, [tokens]; None: what the policy says of `held`."""
    nbytes: NDArray[np.integer] | None = None
    """Bytes of all keys and values then held, [tokens]; None: as many for each token held."""


class Predicted(NamedTuple):
    """What a store tells of the tokens that it has predicted."""

    nll: Float[Tensor, " tokens"]
    """In nats, float32."""
    sink_mass: Float[Tensor, "layers heads tokens"]
    held: NDArray[np.float64]
    """Tokens that a KV head held on average when each was predicted, [tokens]."""
    top: Int[Tensor, " tokens"] | None = None
    """The most probable tokens, where they are asked for."""
    outputs: tuple[Outputs, ...] = ()
    """Of each pass, where lanes are measured against one of them."""
    allocated: NDArray[np.float64] | None = None
    """Slots that an engine hands out for the tokens held on average, [tokens]; None: as many."""
    nbytes: NDArray[np.integer] | None = None
    """Bytes of all keys and values held, [tokens]; None: as many for each token held."""

    @classmethod
    def joined(cls, parts: "Sequence[Predicted]") -> "Predicted":
        """Parts that follow one another, as one."""
        nll, mass, held, top, outputs, *counts = zip(*parts, strict=True)
        told = [of for of in top if of is not None]
        whole = torch.cat(nll), torch.cat(mass, -1), np.concatenate(held), torch.cat(told) if told else None
        counted = ([of for of in each if of is not None] for each in counts)
        return cls(*whole, sum(outputs, ()), *(np.concatenate(of) if of else None for of in counted))


class Store(ABC):
    """The keys and values of all layers of one lane, under one policy."""

    chunk_kind: ClassVar[type] = QKChunk
    """What maps are drawn from; a store keeps those of the store before it where they are of its own kind."""

    def __init__(self, context: SharedContext, policy: Policy) -> None:
        """An empty store.  Raises ValueError where the policy cannot be followed with this model."""
        self.context, self.policy = context, policy
        self.interventions, self.quantization = Interventions.of(policy), Quantization.of(policy)
        self.layers: list[Any] = []
        """What each layer holds; empty before anything was read."""
        self.chunks: list[Any] = []
        """Queries and keys of the newest tokens, oldest first, from which maps are drawn."""

    @abstractmethod
    def read(self, position: int, chunk: int, stop: int) -> Predicted:
        """Read on from the prediction of the token at `position` by about `chunk` tokens, and none from `stop` on."""

    @abstractmethod
    def decode(self, position: int, kv_chunk: int | None) -> Passed:
        """Read the newest token alone, the one before `position`; `kv_chunk` as Lane.next has it."""

    @abstractmethod
    def _keep(self, other: "Store", read: int, prefix: list[tuple[Tensor, Tensor]] | None) -> None:
        """Keep of what another store holds what this one's policy would; `prefix`: keys and values of the policy's
        first tokens in each layer, to be held where they are not."""

    def take_over(self, other: "Store", read: int, *, pin: bool) -> None:
        """Hold, in this empty store, what its policy keeps of what another one holds when `read` tokens have been read.

        Where first tokens that the policy protects are not held, `pin` brings them back.  The other store stays as it
        is.
        """
        # Where keys were quantized and no longer are, those that queries meet are not those that chunks kept.
        alike = other.policy.cache == "own" or self.policy.cache != "own"
        self.chunks = other.chunks if alike and other.chunk_kind is self.chunk_kind else []
        if not other.layers:
            return
        protected = self.policy.first_protected(read)
        missing = protected > other.prefix(read)
        self._keep(other, read, self._first(protected) if missing and pin else None)
        first, before = (self.policy.first, self.early), (other.policy.first, other.early)
        if first != before and {first[0], before[0]} != {"own"}:
            # Maps do not reach back to where the first tokens were others.
            self.chunks = []
            replaced = self._first(min(read, max(self.early, other.early)))
            for layer, (keys, values) in zip(self.layers, replaced, strict=True):
                layer.replace_first(keys, values)

    def _goes_on(self, other: "Store", prefix: list[tuple[Tensor, Tensor]] | None) -> bool:
        """Whether what another store has quantized stays as it is: one of this kind, with the same settings and first
        tokens."""
        if self.quantization is None or other.quantization != self.quantization or prefix is not None:
            return False
        now, before = ((of.store, of.first_protected(MOST), of.first) for of in (self.policy, other.policy))
        return now == before

    def held(self, read: int) -> list[Held]:
        """Which tokens are held when `read` have been read, by groups of heads that hold the same."""
        return [held for layer in self.layers for held in layer.held(read)]

    def prefix(self, read: int) -> int:
        """First tokens that all heads hold, without a gap."""
        return prefix_of(self.held(read))

    def shown(self, read: int) -> list[Any]:
        """What each layer holds, as maps may look at it in another thread while this store reads on."""
        return self.layers

    @property
    def decoded(self) -> tuple[TokenPass, ...]:
        """Newest tokens whose queries and keys are not in `chunks` yet."""
        return ()

    def settle(self) -> None:  # noqa: B027
        """Put the queries and keys of decoded tokens where maps find them; a store that decodes as it reads has
        none."""

    def copy(self: "Kind") -> "Kind":
        """The same, free to go another way; takes no memory of its own."""
        self.settle()
        twin = copy.copy(self)
        twin.layers = [layer.copy() for layer in self.layers]
        return twin

    @abstractmethod
    def empty(self) -> Sequence[Layer]:
        """Layers that hold nothing yet."""

    def state(self) -> State:
        """What is held, to go on from there in another process; what was kept for maps is left out."""
        return State.of({str(i): layer.state() for i, layer in enumerate(self.layers)}, layers=len(self.layers))

    def load_state(self, state: State) -> None:
        """Hold what a store of the same policy held.  Raises ValueError where that was of another model."""
        count = state.value("layers", int)
        layers = list(self.empty()) if count else []
        if len(layers) != count:
            raise ValueError(f"this state has {count} layers, and the model {len(layers)}: it is of another model")
        self.layers = [layer.loaded(state.part(str(i))) for i, layer in enumerate(layers)]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held, without the dimensions that carry a position and are not the model's."""
        dim, added = self.context.model.head_dim, self.context.model.positions.added
        return sum(layer.nbytes for layer in self.layers) * (dim - added) // dim

    @property
    def slots(self) -> int:
        """Tokens held, once for each KV head of each layer."""
        return sum(layer.slots for layer in self.layers)

    @property
    def allocated(self) -> int:
        """Slots that an engine hands out for them."""
        if self.policy.block == 1:
            return self.slots
        held = [(len(layer), layer.slots) for layer in self.layers]
        return sum(self.policy.allocated(tokens) * (slots // tokens) for tokens, slots in held if tokens)

    def allocated_in(self, passed: Passed) -> NDArray[np.float64] | None:
        """Slots that an engine hands out for the tokens held on average in a pass, [tokens]; None: as many."""
        if passed.allocated is not None or self.policy.block == 1:
            return passed.allocated
        return np.array([self.policy.allocated(int(tokens)) for tokens in passed.held], np.float64)

    @property
    def ids(self) -> Int[Tensor, " tokens"]:
        """The token ids that are read: the text's, but for those that the policy puts first."""
        return self.context.starting(self.policy.first, self.early)

    @property
    def early(self) -> int:
        """How many of the first tokens a policy may replace by others."""
        return getattr(self.policy, "sinks", 0) or self.context.sink_tokens

    # What another store may take over.

    def bands(self, read: int) -> list[BandedLayer]:
        """What all heads of all layers hold of the text's first and newest tokens; what only some hold is left out."""
        held = self.held(read)
        window = min(some.suffix for some in held)
        sinks = min(read - window, *(some.prefix for some in held))
        bands = []
        for layer in self.layers:
            keys, values = layer.ends(sinks, window)
            band = BandedLayer(keys, read - window)
            band.pin(keys[:, :sinks], values[:, :sinks])
            band.append(keys[:, sinks:], values[:, sinks:])
            bands.append(band)
        return bands

    def ranked(self, read: int) -> list[RankedLayer]:
        """What is held, in slots of which nothing has been observed yet."""
        return [RankedLayer.of(band, read) for band in self.bands(read)]

    def ragged(self, read: int) -> list[RaggedLayer]:
        """The same in layers whose heads may hold differently many."""
        return [RaggedLayer.of_rows(layer) for layer in self.ranked(read)]

    def split(self, read: int, full: list[list[int]]) -> list[SplitLayer]:
        """What is held, dealt out to the KV heads of each layer that keep everything and to the others."""
        return [SplitLayer(band, own) for band, own in zip(self.bands(read), full, strict=True)]

    def _first(self, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the first tokens as this store reads them, per layer [kv_heads, tokens, dim]."""
        policy = self.policy
        return self.context.prefix(tokens, policy.first, self.early, self.interventions, policy.unplaced)

    def predicted(self, passed: Passed, begin: int) -> Predicted:
        """What a pass tells of the tokens that follow those from text position `begin` on."""
        rows, context = passed.logits.flatten(0, 1), self.context
        logits, targets = Logits.of(rows), context.ids[begin + 1 : begin + 1 + len(rows)].to(rows.device)
        told = Predicted(logits.nll(targets), passed.sink_mass, passed.held, logits.top if context.top else None)
        told = told._replace(allocated=self.allocated_in(passed), nbytes=passed.nbytes)
        if context.fidelity is None:
            return told
        return told._replace(outputs=(Outputs(logits, [of.flatten(0, 1) for of in passed.attended or ()]),))


def stacked(of_layers: list[Tensor], like: Tensor) -> Float[Tensor, "layers *rest"]:
    """What every layer told, on the device of another tensor."""
    return torch.stack([t.to(like.device, non_blocking=True) for t in of_layers])
