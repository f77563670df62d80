"""What lanes read and what they say: the text that all lanes of a run share, and the records of what was learned.

A text may grow while it is read, and its first tokens can be encoded again whoever has let them go.  How a lane reads
is lane.py's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import files, texts
from ..families.positions import LEARNED
from ..families.rotary import Adapted
from ..policies import Banded, Dense, Duo, Policy, Ranked, Recomputed
from ..policies.duo import numbers, rows_of
from ..settings import quoted
from .attention.band import Band
from .attention.banded import BandedPass
from .attention.token import TokenPass
from .interventions import Interventions
from .kv.banded import BandedLayer
from .kv.ranked import Evicted, RankedPass
from .tracing import one_token

MEASURED, SINKS = 512, 4
"""Tokens of the text over which heads are measured, and how many of the first of them are its sinks."""
MOST_BYTES = 2**20
"""The largest file that rates heads."""


@dataclass(frozen=True)
class Step:
    """What one lane learned from one chunk.  All arrays are about the predicted tokens, at positions start … stop − 1.

    `nll` [tokens] in nats; `cache_tokens` and `cache_bytes` [tokens]: what was held when the token was predicted, after
    eviction; `sink_mass` [layers, heads, tokens]: the attention that the predicting query gave to the first tokens of
    the text; `seconds`: compute time of the chunk.
    """

    lane: int
    policy: Policy
    start: int
    token_ids: NDArray[np.int32]
    nll: NDArray[np.float32]
    cache_tokens: NDArray[np.int32]
    cache_bytes: NDArray[np.int64]
    seconds: float
    sink_mass: NDArray[np.float32]
    roles: NDArray[np.int8] | None = None
    """In a conversation, who said each token [tokens] (chat.py)."""
    each: NDArray[np.float64] | None = None
    """Compute time of each token [tokens], where they were not read together."""

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, eq=False)
class QKChunk:
    """Queries and keys of one chunk before rotation, per layer: [heads, tokens, dim] and [kv_heads, tokens, dim]."""

    start: int
    stop: int
    reach: Band
    queries: list[Tensor]
    keys: list[Tensor]
    what_if: Interventions | None = None
    length: int = 1
    """Of the context for which its rotations were chosen (frequencies.py)."""
    sinks: Sequence[Sequence[Tensor]] = ()
    """Keys of the sinks that these queries met, per layer [kv_heads, sinks, dim]; where `full` is given, first those of
    the heads that keep everything and then those of the others."""
    full: Sequence[Sequence[int]] | None = None
    """KV heads of each layer that keep everything, whatever the reach of the others."""
    whole: Band | None = None
    """What those reach."""

    def reach_of(self, layer: int, kv_head: int) -> Band:
        """What the queries of one KV head's group reach."""
        return self.whole if self._keeps_all(layer, kv_head) else self.reach

    def sinks_of(self, layer: int, kv_head: int) -> Tensor:
        """Keys of the sinks that they met, [sinks, dim]."""
        if self.full is None:
            return self.sinks[0][layer][kv_head]
        kind = self._keeps_all(layer, kv_head)
        row = sum(self._keeps_all(layer, other) == kind for other in range(kv_head))
        return self.sinks[0 if kind else 1][layer][row]

    def _keeps_all(self, layer: int, kv_head: int) -> bool:
        return self.full is not None and kv_head in self.full[layer]


@dataclass(frozen=True, eq=False)
class RankedChunk:
    """Queries of one pass over ranked caches before rotation, per layer [heads, tokens, dim], and what then went."""

    start: int
    stop: int
    policy: Ranked
    queries: list[Tensor]
    gone: list[Evicted | None]
    what_if: Interventions | None = None
    length: int = 1
    """Of the context for which its rotations were chosen (frequencies.py)."""


@dataclass(eq=False)
class SharedContext:
    """What all lanes of a run share: the model, the text, and the keys and values of the text's first tokens.

    A text may grow at its end while it is read, as a conversation does.
    """

    model: Adapted
    tokens: NDArray[np.int32]
    sink_tokens: int
    hold: int
    ids: Tensor = field(init=False)
    """The tokens once more, on the model's device."""
    _fronts: dict[tuple, list[tuple[Tensor, Tensor]]] = field(default_factory=dict, init=False)
    """Keys and values of first tokens, by what they are, how many are not the text's own, and how attention is bent."""
    _rated: dict[str, NDArray[np.float64]] = field(default_factory=dict, init=False)
    """How much each KV head is worth keeping whole, [layers, kv_heads], by what says so."""
    _one: Callable[[Tensor, Any], Tensor] | None = field(default=None, init=False)
    _untraceable: bool = field(default=False, init=False)
    watch: Callable[[BandedPass], None] | None = None
    """Is handed every pass over tokens that are read by place, with what each layer computed in it."""
    tokenizer: Any = None
    """The model's own, for those what-ifs that put other tokens first."""
    tracer: Callable[[], Callable[[Tensor, Any], Tensor] | None] | None = None
    """Gives the trace that a model keeps for all its runs; without one, each run makes its own."""

    def __post_init__(self) -> None:
        self._room, self._ids = self.tokens, torch.as_tensor(self.tokens.astype(np.int64), device=self.model.device)
        self.ids = self._ids

    def allow(self, policy: Policy) -> None:
        """Raises ValueError where this model's cached keys cannot be moved as the policy moves them, or the tokens that
        it wants first are not to be had."""
        self._named(policy.first, 1)
        if isinstance(policy, Duo) and not policy.measured:
            self.full_heads(policy)
        if not (why := self.model.positions.fixed):
            return
        family = self.model.network.config.model_type
        if isinstance(policy, Ranked | Duo) or (isinstance(policy, Banded) and policy.window is not None):
            raise ValueError(
                f"{policy.label}: {family} {why}, so a cached key carries the place where it was read and cannot be "
                "moved when others leave: choose dense or recompute"
            )
        if (longest := self.model.longest) is None:
            return
        has = "has learned" if self.model.positions is LEARNED else "rotates alike no more than"
        if isinstance(policy, Recomputed) and policy.capacity > longest:
            raise ValueError(
                f"{policy.label}: {family} {has} {longest:,} positions, and this needs {policy.capacity:,}: "
                "choose a smaller window"
            )
        if isinstance(policy, Dense) and len(self.tokens) - 1 > longest:
            raise ValueError(
                f"{policy.label}: {family} {has} {longest:,} positions, and the text has {len(self.tokens):,} "
                f"tokens: read at most {longest + 1:,}, or choose recompute"
            )

    def extend(self, tokens: NDArray[np.int32]) -> None:
        """Let the text go on with these tokens."""
        count, total = len(self.tokens), len(self.tokens) + len(tokens)
        if total > len(self._room):
            self._room = np.concatenate((self.tokens, np.zeros(max(1024, 2 * total) - count, np.int32)))
            self._ids = torch.cat((self.ids, self.ids.new_zeros(len(self._room) - count)))
        self._room[count:total] = tokens
        self._ids[count:total] = torch.as_tensor(np.asarray(tokens, np.int64), device=self._ids.device)
        self.tokens, self.ids = self._room[:total], self._ids[:total]

    def full_heads(self, policy: Duo) -> list[list[int]]:
        """KV heads of each layer that keep everything.  Raises ValueError where a file does not fit the model."""
        if policy.scores not in self._rated:
            self._rated[policy.scores] = self._measured() if policy.measured else self._given(policy)
        rated = self._rated[policy.scores]
        count = round(policy.full / 100 * rated.size)
        best = np.sort(np.argsort(-rated, axis=None, kind="stable")[:count])
        return [(best[best // rated.shape[1] == layer] % rated.shape[1]).tolist() for layer in range(len(rated))]

    def _measured(self) -> NDArray[np.float64]:
        """How much each KV head looks at the first tokens, [layers, kv_heads], over the beginning of the text."""
        ids = self.ids[None, :MEASURED]
        reading = BandedPass(self.model, 0, SINKS, Band(0, 0, None, "text"), None, torch.zeros(1, dtype=torch.int64))
        reading.length = self.model.regime(ids.shape[1])
        self.model.forward(ids, reading, last=1)
        mass = np.stack([m[:, min(SINKS, m.shape[1] - 1) :].mean(-1).cpu().numpy() for m in reading.mass]).astype(
            np.float64
        )
        return mass.reshape(len(mass), self.model.kv_heads, -1).mean(-1)

    def _given(self, policy: Duo) -> NDArray[np.float64]:
        shape = self.model.layers, self.model.kv_heads
        what = quoted(policy.scores)
        rows = policy.given or _rows(policy)
        counts = sorted({len(row) for row in rows})
        if (len(rows), counts) != (shape[0], [shape[1]]):
            raise ValueError(
                f"{policy.name}: {what} has {len(rows)} rows of {' or '.join(map(str, counts))} numbers, and "
                f"this model has {shape[0]} layers of {shape[1]} KV heads: give a file for this model"
            )
        rated = np.array(rows)
        if not np.isfinite(rated).all():
            raise ValueError(f"{policy.name}: {what} rates a head with what is no number: give a number for each")
        return rated

    def truncate(self, tokens: int) -> None:
        """Forget all of the text but its first tokens."""
        self.tokens, self.ids = self._room[:tokens], self._ids[:tokens]
        self._fronts = {}

    def trace(self, traced: Callable[[Tensor, Any], Tensor] | None = None) -> None:
        """Make single tokens faster from now on, where the model can be traced (tracing.py); with what was `traced`."""
        if self._one is None and not self._untraceable:
            self._one = traced or (one_token(self.model) if self.tracer is None else self.tracer())
            self._untraceable = self._one is None

    def decode(self, ids: Tensor, decoding: TokenPass | RankedPass) -> Tensor:
        """Logits [1, 1, vocabulary] of one token, ids [1, 1]."""
        if self._one is not None:
            return self._one(ids, decoding)
        return self.model.forward(ids, decoding, begin=decoding.token, last=1)

    def starting(self, first: str, count: int) -> Tensor:
        """The token ids [tokens] of the text, of which the first `count` are others: see `first` of a policy."""
        if first == "own":
            return self.ids
        others = torch.as_tensor(self._named(first, count), device=self.ids.device)
        return torch.cat((others[: len(self.ids)], self.ids[len(others) :]))

    def _named(self, first: str, count: int) -> list[int]:
        """Token ids that take the place of the text's first; raises ValueError where there are none of this name."""
        if first == "own":
            return []
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer, so its first tokens cannot be replaced: choose first=own")
        if first == "newlines":
            return self.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:] * count
        if first == "bos":
            try:
                return texts.opening(self.tokenizer, "on")
            except ValueError as e:
                raise ValueError("this model's tokenizer has no token that begins a text: choose first=newlines") from e
        # Another text's words, whatever this text begins with: its BOS would be this text's own again.
        return texts.tokenize(texts.play(first), self.tokenizer, bos="off", limit=max(2, count))[:count].tolist()

    def front(
        self, tokens: int, first: str = "own", count: int = 0, what_if: Interventions | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the first tokens, per layer [kv_heads, tokens, dim]: they depend on nothing else.

        `first` and `count`: as `starting` has them; `what_if`: how attention is bent while they are read.
        """
        tokens, ids = min(tokens, len(self.tokens)), (first, 0 if first == "own" else count)
        bent = () if what_if is None else (what_if.logit, what_if.knockout, what_if.heads)
        front = self._fronts.get((*ids, *bent))
        if front is None or front[0][0].shape[1] < tokens:
            front = self._fronts[*ids, *bent] = self._encoded(self.starting(*ids)[None, :tokens], what_if)
        return [(k[:, :tokens], v[:, :tokens]) for k, v in front]

    def _encoded(self, ids: Tensor, what_if: Interventions | None) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a text, ids [1, tokens], as a lane that keeps everything reads it: per layer [kv_heads,
        tokens, dim]."""
        model, reach, begin = self.model, Band(0, 0, None, "text"), 0
        caches = [BandedLayer.empty(model, layer) for layer in range(model.layers)]
        while begin < ids.shape[1]:
            end = min(ids.shape[1], model.regime_end(begin + 1) or ids.shape[1])
            reading = BandedPass(model, begin, self.sink_tokens, reach, caches, what_if=what_if)
            reading.length = model.regime(begin + 1)
            model.forward(ids[:, begin:end], reading, begin=begin, last=1)
            begin = end
        return [(c.keys.view().clone(), c.values.view().clone()) for c in caches]


def _rows(policy: Duo) -> tuple[tuple[float, ...], ...]:
    """The rows of numbers in the file that a policy names: a regular one on this machine, and never a large one."""
    try:
        return numbers(rows_of(files.contents(Path(policy.file), MOST_BYTES).decode("utf-8-sig")))
    except ValueError as e:
        raise ValueError(
            f"{policy.name}: {quoted(policy.file)} cannot be read as numbers: give a text file on this machine with a "
            "row for each layer and a number for each KV head, or scores=measured"
        ) from e
