"""What all policies have in common that rank the slots of a cache by what the model computed.

Each KV head keeps the slots that its policy scores highest, so what is kept differs from head to head and from layer to
layer.  A policy says one thing: the score of every slot, from what one layer has seen of it.  Which slots are safe
whatever their score, and how many go, is said here; the cache itself is ranking.py's.
"""

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .base import Policy, setting


@dataclass(eq=False)
class Seen:
    """What one layer knows of its slots at the moment when some must go.  Slots stand in the order of the text.

    Attention is the mean over the query heads that share a KV head, as it was given when the query was read.
    """

    keys: Float[Tensor, "kv_heads slots dim"]
    """Before rotation."""
    values: Float[Tensor, "kv_heads slots dim"]
    places: Int[Tensor, "kv_heads slots"]
    """Where in the text each slot was read."""
    total: Float[Tensor, "kv_heads slots"] | None
    """Attention that each slot has got so far; None unless the policy asks for it (`totals`)."""
    rows: Float[Tensor, "kv_heads queries slots"] | None
    """Attention that the newest queries gave, oldest first; as many as the policy asks for (`looks_back`)."""
    layer: int


@dataclass(frozen=True)
class Ranked(Policy):
    """Keeps the `budget` slots of each KV head that score highest."""

    totals: ClassVar[bool] = False
    """Whether the score needs the attention that each slot got so far."""

    budget: int = setting(256, "Tokens that each KV head keeps.", low=2)
    sinks: int = setting(4, "First tokens that are safe whatever their score.", low=0, high=1024)
    recent: int = setting(64, "Newest tokens that are safe whatever their score.", low=1)
    interval: int = setting(1, "Tokens between two evictions: 1 is exact and slow, 16 is much faster.", low=1)
    positions: str = setting(
        "cache", "Whether places are slots of the cache or places in the text.", choices=("cache", "text")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        safe, least = self.sinks + self.recent, self.smallest - self.interval + 1
        if safe > least:
            raise ValueError(
                f"{self.name}: sinks + recent are {safe} tokens, and after an eviction {max(0, least)} are kept: "
                "choose a larger budget, or fewer of them, or a smaller interval"
            )

    @property
    def looks_back(self) -> int:
        """Of how many of the newest queries the score needs the attention that they gave."""
        return 0

    @property
    def smallest(self) -> int:
        """The smallest budget of any layer."""
        return self.budget

    def budget_of(self, layer: int, layers: int) -> int:
        """The most slots that a layer holds."""
        return self.budget

    def score(self, seen: Seen) -> Float[Tensor, "kv_heads slots"]:
        """How much each slot is worth keeping."""
        raise NotImplementedError

    def safe(self, places: Int[Tensor, "kv_heads slots"]) -> Bool[Tensor, "kv_heads slots"]:
        """Which slots stay whatever their score, beside the newest."""
        return places < self.sinks

    def order(self, seen: Seen) -> Int[Tensor, "kv_heads slots"]:
        """The slots from the one that goes first to the one that stays longest; of equal scores the older goes."""
        scores = self.score(seen).masked_fill(self.safe(seen.places), float("inf"))
        scores[:, scores.shape[1] - self.recent :] = float("inf")
        return scores.argsort(stable=True)

    @property
    def plain(self) -> str:
        own = {f.name: f.default for f in fields(self)}
        sinks = "" if self.sinks == own["sinks"] else f", {self.sinks or 'no'} sinks"
        every = "" if self.interval == 1 else f", every {self.interval}"
        positions = "" if self.positions == "cache" else ", text positions"
        return f"{self.title} {self.budget}{sinks}{every}{positions}"

    @property
    def capacity(self) -> int:
        return self.budget


def smoothed(x: Float[Tensor, "*rows slots"], kernel: int) -> Float[Tensor, "*rows slots"]:
    """The mean of each value and its neighbours; at the ends, of those that there are."""
    pooled = torch.nn.functional.avg_pool1d(x[:, None], kernel, stride=1, padding=kernel // 2, count_include_pad=False)
    return pooled[:, 0]
