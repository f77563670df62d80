"""What a cached token costs with more and with fewer KV heads.  Knows nothing of models in memory."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheCost:
    """What the cache takes when the query heads of a layer share so many KV heads."""

    name: str
    """MHA, GQA or MQA."""
    kv_heads: int
    token: int
    """Bytes of one cached token."""
    length: int
    """Tokens of the longest text that the model was trained on."""
    own: bool
    """Whether the model is like this; otherwise the figures are predicted."""
