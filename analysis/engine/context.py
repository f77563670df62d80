"""What all lanes of a run share: the model, the text, and the keys and values of its first tokens.

A text may grow while it is read, and its first tokens can be encoded again after every lane has evicted them.  How a
lane reads is lane.py's matter.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from .. import texts
from ..families.positions import LEARNED
from ..families.rotary import Adapted, Reader
from ..policies import Policy
from .attention.band import Band
from .attention.banded import BandedPass
from .attention.graph import repeats
from .fidelity import Fidelity
from .interventions import Interventions
from .layers.banded import BandedLayer
from .state import State
from .tracing import Traced, one_token

SCORES = "head scores"
"""Under which scores of heads are kept, together with where they are from (head_scores.py)."""


@dataclass(eq=False)
class SharedContext:
    """What all lanes of a run share: the model, the text, and the keys and values of the text's first tokens.

    A text may grow at its end while it is read, as a conversation does.
    """

    model: Adapted
    tokens: NDArray[np.int32]
    sink_tokens: int
    """How many of the text's first tokens count as sinks where attention is observed."""
    history: int
    """Of how many of the newest tokens queries and keys are kept, for maps."""
    ids: Int[Tensor, " tokens"] = field(init=False)
    """The tokens once more, on the model's device."""
    watch: Callable[[BandedPass], None] | None = None
    """Is handed every pass over tokens that are read in a band, with what each layer computed in it."""
    tokenizer: Any = None
    """The model's own, for policies that put other tokens first."""
    tracer: Callable[[], Traced | None] | None = None
    """Gives the trace that a model keeps for all its runs; without one, each run makes its own."""
    top: bool = False
    """Whether a text that is read is also told the most probable token at each position."""
    fidelity: Fidelity | None = None
    """Measures the lanes against one of them, where that is asked for."""
    _prefixes: dict[tuple, list[tuple[Tensor, Tensor]]] = field(default_factory=dict, init=False)
    """Keys and values of first tokens, by which they are, how many are not the text's own, and how they are read."""
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False)
    _traced: Traced | None = field(default=None, init=False)
    _untraceable: bool = field(default=False, init=False)
    graphs: bool = field(default=False, init=False)
    """Whether single tokens may go through CUDA graphs (attention/graph.py)."""

    def __post_init__(self) -> None:
        self._room, self._ids = self.tokens, torch.as_tensor(self.tokens.astype(np.int64), device=self.model.device)
        self.ids = self._ids

    def allow(self, policy: Policy) -> None:
        """Raises ValueError where this model cannot be read under the policy: its cached keys cannot be moved as the
        policy moves them, it has no such heads, or the first tokens that the policy wants are not to be had."""
        self._named(policy.first, 1)
        model = self.model
        for layer, head in policy.changed_heads or ():
            if layer >= model.layers or head >= model.heads:
                raise ValueError(
                    f"{policy.label}: there is no head {layer}.{head}: layers are 0 to {model.layers - 1}, heads 0 to "
                    f"{model.heads - 1}"
                )
        if policy.cache != "own" and (model.positions.added or model.head_dim % 4):
            raise ValueError(
                f"{policy.label}: the heads of {model.network.config.model_type} "
                + ("carry positions" if model.positions.added else f"have {model.head_dim} dimensions")
                + ", which cannot be quantized: choose cache=own"
            )
        if not (why := model.positions.fixed):
            return
        family = model.network.config.model_type
        if policy.moves_keys:
            raise ValueError(
                f"{policy.label}: {family} {why}, so a cached key carries the position where it was read and cannot be "
                "moved when others leave: choose dense or recompute"
            )
        if (longest := model.longest) is None:
            return
        has = "has learned" if model.positions is LEARNED else "rotates alike no more than"
        if policy.capacity is not None and policy.capacity > longest:
            raise ValueError(
                f"{policy.label}: {family} {has} {longest:,} positions, and this needs {policy.capacity:,}: "
                "choose a smaller window"
            )
        if policy.capacity is None and len(self.tokens) - 1 > longest:
            raise ValueError(
                f"{policy.label}: {family} {has} {longest:,} positions, and the text has {len(self.tokens):,} "
                f"tokens: read at most {longest + 1:,}, or choose recompute"
            )

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What several lanes need and one of them makes."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def extend(self, tokens: NDArray[np.int32]) -> None:
        """Let the text go on with these tokens."""
        count, total = len(self.tokens), len(self.tokens) + len(tokens)
        if total > len(self._room):
            self._room = np.concatenate((self.tokens, np.zeros(max(1024, 2 * total) - count, np.int32)))
            self._ids = torch.cat((self.ids, self.ids.new_zeros(len(self._room) - count)))
        self._room[count:total] = tokens
        self._ids[count:total] = torch.as_tensor(np.asarray(tokens, np.int64), device=self._ids.device)
        self.tokens, self.ids = self._room[:total], self._ids[:total]

    def truncate(self, tokens: int) -> None:
        """Make the text its first `tokens` tokens, as it was at that length."""
        self.tokens, self.ids = self._room[:tokens], self._ids[:tokens]
        self._prefixes = {}

    def attended(self) -> list[Tensor] | None:
        """Where a pass puts the outputs of its attention; None where nobody wants them."""
        return None if self.fidelity is None else []

    @property
    def traced(self) -> bool:
        """Whether single tokens go through a trace of the model, or through graphs."""
        return self._traced is not None or self.graphs

    def trace(self, traced: Traced | None = None) -> None:
        """Make single tokens faster from now on: by graphs on a GPU (attention/graph.py), elsewhere by a trace of the
        model (tracing.py), which may have been `traced` before."""
        if self.model.device.type == "cuda":
            self.graphs = self.graphs or repeats(self.model)
        elif self._traced is None and not self._untraceable:
            self._traced = traced or (one_token(self.model) if self.tracer is None else self.tracer())
            self._untraceable = self._traced is None

    def decode(self, ids: Int[Tensor, "1 1"], one: Reader, begin: int) -> Float[Tensor, "1 1 vocabulary"]:
        """Logits of one token, through the trace where there is one; `begin`: as Adapted.forward has it."""
        if self._traced is not None:
            return self._traced(ids, one, begin)
        return self.model.forward(ids, one, begin=begin, last=1)

    def state(self) -> State:
        """What lanes have made of the text that could not be made so again, since a text may have grown: which heads
        are full ones; and whether single tokens go through a trace."""
        scores = {str(key[1]): made for key, made in self._made.items() if isinstance(key, tuple) and key[0] == SCORES}
        tensors = {str(i): torch.as_tensor(made) for i, made in enumerate(scores.values())}
        return State({"scores": list(scores), "traced": self.traced}, tensors)

    def load_state(self, state: State) -> None:
        """Know what was known then.  Raises ValueError where that is of another model."""
        model = self.model
        for i, name in enumerate(state.value("scores", list)):
            like = torch.empty(0)
            scores = state.tensor(str(i), like, (model.layers, model.kv_heads), torch.float64)
            self._made[SCORES, name] = scores.numpy()
        if state.value("traced", bool):
            self.trace()

    def starting(self, first: str, count: int) -> Int[Tensor, " tokens"]:
        """The token ids of the text, of which the first `count` are others: see `first` of a policy."""
        if first == "own":
            return self.ids
        named = self.once(("first", first, count), lambda: self._named(first, count))
        others = torch.as_tensor(named, dtype=self.ids.dtype, device=self.ids.device)
        return torch.cat((others[: len(self.ids)], self.ids[len(others) :]))

    def _named(self, first: str, count: int) -> list[int]:
        """Token ids that take the place of the text's first; raises ValueError where there are none of this name."""
        ids = self._written(first, count)
        embedding: Any = self.model.network.get_input_embeddings()
        if max(ids, default=0) >= embedding.num_embeddings:
            raise ValueError(
                f"first={first}: the tokenizer makes token {max(ids)} of this, and the model knows "
                f"{embedding.num_embeddings:,} tokens: choose first=own"
            )
        return ids

    def _written(self, first: str, count: int) -> list[int]:
        """The same, of whatever tokens the tokenizer has."""
        if first == "own":
            return []
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer, so its first tokens cannot be replaced: choose first=own")
        if first == "newlines":
            newline = self.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
            if not newline:
                raise ValueError("this model's tokenizer has no token for a newline: choose first=own")
            return newline * count
        if first == "bos":
            try:
                return list(texts.opening(self.tokenizer, "on"))
            except ValueError as e:
                raise ValueError("this model's tokenizer has no token that begins a text: choose first=newlines") from e
        # Another text's words, whatever this text begins with: its BOS would be this text's own again.
        return texts.tokenize(texts.play(first), self.tokenizer, bos="off", limit=max(2, count))[:count].tolist()

    def prefix(
        self,
        tokens: int,
        first: str = "own",
        count: int = 0,
        interventions: Interventions | None = None,
        unplaced: int = 0,
    ) -> list[tuple[Float[Tensor, "kv_heads first dim"], Float[Tensor, "kv_heads first dim"]]]:
        """Keys and values of the first tokens of each layer: they depend on nothing else.

        `first` and `count`: as `starting` has them; `interventions`: what is changed while they are read; `unplaced`:
        how many of them are read without a position.
        """
        tokens, ids = min(tokens, len(self.tokens)), (first, 0 if first == "own" else count)
        changed = () if interventions is None else (interventions.logit, interventions.knockout, interventions.heads)
        prefix = self._prefixes.get((*ids, unplaced, *changed))
        if prefix is None or prefix[0][0].shape[1] < tokens:
            prefix = self._encoded(self.starting(*ids)[None, :tokens], interventions, unplaced)
            self._prefixes[*ids, unplaced, *changed] = prefix
        return [(k[:, :tokens], v[:, :tokens]) for k, v in prefix]

    def _encoded(
        self, ids: Int[Tensor, "1 tokens"], interventions: Interventions | None, unplaced: int
    ) -> list[tuple[Float[Tensor, "kv_heads tokens dim"], Float[Tensor, "kv_heads tokens dim"]]]:
        """Keys and values of a text in each layer, as a lane that keeps everything reads it."""
        model, begin, count = self.model, 0, ids.shape[1]
        sinks = min(unplaced, count)
        band = Band(sinks, sinks, None, "none" if sinks else "text")
        layers = [BandedLayer.empty(model, layer) for layer in range(model.layers)]
        while begin < count:
            length = band.length_of(begin)
            # What has no position makes no context longer.
            end = min(count, sinks + (model.regime_end(length) or count))
            one = BandedPass(model, begin, self.sink_tokens, band, layers, interventions=interventions)
            one.length = model.regime(length)
            model.forward(ids[:, begin:end], one, begin=begin, last=1)
            begin = end
        return [layer.everything() for layer in layers]
