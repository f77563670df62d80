"""The engine: lanes that read one text, each under its own policy, each with its own cache and at its own place.

`stream` yields what the lanes learn, chunk by chunk.  A chunk goes through the model in one forward pass and every
token of it gets exactly what it would have got alone (attention/band.py), so the size of a chunk changes no number.
This module knows nothing of files or screens.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..families.rotary import Adapted
from ..policies import Policy
from .check import adapt
from .context import SharedContext
from .fidelity import Fidelity
from .lane import Lane
from .step import Step
from .tracing import Traced

CHUNK = 512
"""Tokens of a chunk unless said: larger ones are a little faster at most, smaller ones waste more."""
SINK_TOKENS = 4


@runtime_checkable
class Loaded(Protocol):
    """A model in memory with what belongs to it, such as models.LanguageModel."""

    adapted: Adapted
    tokenizer: PreTrainedTokenizerBase | None
    one_token: Traced | None


def open_lanes(
    model: Loaded | PreTrainedModel | Adapted,
    tokens: ArrayLike,
    policies: Sequence[Policy],
    *,
    sink_tokens: int = SINK_TOKENS,
    history: int = 0,
    top: bool = False,
    fidelity: bool = False,
) -> list[Lane]:
    """Lanes at the beginning of a text.

    `model`: a LanguageModel, or any causal transformers model that can be adapted; `tokens`: token ids, [tokens];
    `history`: of how many of the newest tokens queries and keys are kept, for maps; `top`: steps also tell the most
    probable tokens; `fidelity`: and how far each lane is from the first one (fidelity.py).  Raises ValueError where the
    text is too short or more than one, a token is not in the vocabulary, or the family cannot be read.
    """
    ids = np.asarray(tokens)
    if max(ids.shape, default=1) < ids.size:
        raise ValueError(f"lanes read one text, [tokens], and these are several, {[*ids.shape]}: stream each by itself")
    ids = ids.reshape(-1)
    if len(ids) < 2:
        raise ValueError(f"a text needs at least 2 tokens to predict one from another, and this one has {len(ids)}")
    if ids.dtype.kind not in "iu":
        raise ValueError(f"token ids must be whole numbers, and these are {ids.dtype}: use those of a tokenizer")
    if not policies:
        raise ValueError("choose at least one policy to read the text with")
    if isinstance(policies, str | Policy) or not all(isinstance(policy, Policy) for policy in policies):
        raise ValueError(f"policies are a list of what parse returns, such as [parse('dense')], and not {policies!r}")
    if sink_tokens < 0:
        raise ValueError(f"sink mass is that of 0 first tokens or more, not {sink_tokens}")
    loaded = not isinstance(model, Adapted | PreTrainedModel)
    adapted = model.adapted if loaded else model if isinstance(model, Adapted) else adapt(model)
    embedding: Any = adapted.network.get_input_embeddings()
    vocabulary = embedding.num_embeddings
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"token ids must be between 0 and {vocabulary - 1} for this model, and the text has ids from "
            f"{ids.min()} to {ids.max()}: use the ids of the model's own tokenizer"
        )
    context = SharedContext(adapted, ids.astype(np.int32), sink_tokens, history)
    context.top, context.fidelity = top, Fidelity() if fidelity else None
    if loaded:
        context.tokenizer, context.tracer = model.tokenizer, lambda: model.one_token
    return [Lane(i, policy, context) for i, policy in enumerate(policies)]


def next_lane(lanes: Sequence[Lane], upto: int | None = None) -> Lane | None:
    """Whose turn it is, None when all are done: of the lanes that may read on, the one that has had the least time.

    Where all may read only up to a position, or are measured against the first of them, it is the lane that is furthest
    behind: so they stay together.
    """
    waiting = [lane for lane in lanes if not lane.done and (upto is None or lane.position < upto)]
    together = upto is not None or any(lane.context.fidelity for lane in waiting)
    return min(waiting, key=lambda lane: lane.position if together else lane.seconds, default=None)


def stream(
    model: Loaded | PreTrainedModel | Adapted,
    tokens: ArrayLike,
    policies: Sequence[Policy],
    *,
    chunk: int = CHUNK,
    sink_tokens: int = SINK_TOKENS,
    history: int = 0,
    fidelity: bool = False,
) -> Iterator[Step]:
    """Steps of lanes that read the text until every lane has read it to its end: by equal shares of time, or with
    `fidelity` chunk after chunk together."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, not {chunk}")
    lanes = open_lanes(model, tokens, policies, sink_tokens=sink_tokens, history=history, fidelity=fidelity)
    while (lane := next_lane(lanes)) is not None:
        yield lane.read(chunk)
