"""What one lane learned from one chunk of the text."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..policies import Policy


@dataclass(frozen=True)
class Step:
    """What one lane learned from one chunk.  All arrays are about the predicted tokens, at positions start … stop − 1.

    `nll` [tokens] in nats; `cache_tokens` and `cache_bytes` [tokens]: what was held when the token was predicted, after
    eviction, in bytes with the empty slots of blocks that are not full; `sink_mass` [layers, heads, tokens]: the
    attention that the predicting query gave to the first tokens of the text; `seconds`: compute time of the chunk.
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
    """In a conversation, who said each token [tokens] (chat/template.py)."""
    each: NDArray[np.float64] | None = None
    """Compute time of each token [tokens], where they were not read together."""
    top: NDArray[np.int32] | None = None
    """The most probable token at each position [tokens], where that was asked for (SharedContext.top)."""
    kl: NDArray[np.float32] | None = None
    """Where lanes are measured against one of them, KL(reference ‖ lane) of each token in nats [tokens]; NaN where the
    reference has not read it beside the lane."""
    agree: NDArray[np.float32] | None = None
    """With it, whether the reference has the same most probable token [tokens]: 1 or 0, or NaN."""
    output_error: NDArray[np.float32] | None = None
    """With it, how far the output of each head's attention is from the reference's over these tokens [layers, heads];
    NaN where that has not read them beside the lane (fidelity.py)."""

    def since(self, position: int) -> "Step":
        """The same of its tokens from a text position on, which is one of them."""
        cut = position - self.start
        arrays = ("token_ids", "nll", "cache_tokens", "cache_bytes")
        more: dict[str, Any] = {name: getattr(self, name)[cut:] for name in arrays}
        some = ("roles", "each", "top", "kl", "agree")
        more |= {name: held[cut:] for name in some if (held := getattr(self, name)) is not None}
        seconds = self.seconds * len(more["nll"]) / len(self.nll)
        return replace(self, start=position, sink_mass=self.sink_mass[..., cut:], seconds=seconds, **more)

    @property
    def stop(self) -> int:
        """The text position behind the last predicted token."""
        return self.start + len(self.token_ids)
