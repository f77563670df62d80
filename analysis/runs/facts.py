"""What a screen says of a model: written into run folders, so that a run is seen without its model in memory."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models.cache_cost import CacheCost
from ..settings import quoted

if TYPE_CHECKING:
    from ..models.language_model import LanguageModel


@dataclass(frozen=True)
class ModelFacts:
    """What is worth knowing of a model where it is not in memory."""

    name: str
    trained_length: int | None
    """Tokens of the longest text that it was trained on, where that is known."""
    bytes_per_token: int
    """Bytes that one cached token takes: keys and values of all layers."""
    layers: int
    heads: int
    """Query heads of a layer."""
    kv_heads: int
    """Key-value heads of a layer."""
    device: str
    """Where it was: cpu, cuda or mps."""
    card: dict[str, str]
    """What a page says of it, a few words each."""
    sharings: tuple[CacheCost, ...]
    """What its cache costs with more and with fewer KV heads."""

    @classmethod
    def of(cls, model: "LanguageModel") -> "ModelFacts":
        """The facts of a model that is in memory."""
        return cls(
            name=model.name,
            trained_length=model.trained_length,
            bytes_per_token=model.bytes_per_token,
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            device=model.device,
            card=model.card,
            sharings=tuple(model.cache_costs),
        )

    def has(self, layer: int, head: int) -> bool:
        """Whether there is such a query head."""
        return 0 <= layer < self.layers and 0 <= head < self.heads


def head_of(name: str) -> tuple[int, int]:
    """A head that is written layer.head.  Raises ValueError where it is not."""
    if not (found := re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", name.strip())):
        raise ValueError(f"a head is written layer.head, such as 1.3, and not {quoted(name)}")
    return int(found[1]), int(found[2])
