"""What all policies have in common that rank the slots of a cache by what the model computed.

Each KV head keeps the slots that its policy scores highest, so what is kept differs from head to head and from layer to
layer.  A policy says one thing: the score of every slot, from what one layer knows of it.  Which slots are protected
whatever their score, what a tie means, and how many go, is said here; the cache itself is the engine's.
docs/policies.md compares each policy with its paper and with its authors' code.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from .base import Policy, setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


TOGETHER = 16
"""Tokens that go through a model together even where some slot leaves after each: most of what a pass costs, it costs
for one token as for these."""


@dataclass(frozen=True, eq=False)
class FutureQueries:
    """The queries that one layer expects, as normally distributed as those that it has read."""

    mean: "Float[Tensor, 'heads dim']"
    """Before rotation, times the scaling of scores; float32."""
    covariance: "Float[Tensor, 'heads dim dim']"
    keys: "Float[Tensor, 'kv_heads slots dim']"
    """The keys as those queries will meet them: rotated to where they stand and on by the mean of the queries' own
    rotations, so that their product with a query before rotation is a score."""


@dataclass(eq=False)
class LayerState:
    """What one layer knows of its slots at the moment when some must go.  Slots stand in the order of the text.

    Where KV heads hold differently many, the slots of all of them stand in one row, and `own` says whose they are.
    Attention is the mean over the query heads that share a KV head, as it was given when the query was read.
    """

    keys: "Float[Tensor, 'kv_heads slots dim']"
    """Before rotation.  These and all others are as the cache holds them: where they are quantized, what that left."""
    values: "Float[Tensor, 'kv_heads slots dim']"
    positions: "Int[Tensor, 'kv_heads slots']"
    """Where in the text each slot was read."""
    accumulated_attention: "Float[Tensor, 'kv_heads slots'] | None"
    """Attention that each slot has got so far; None unless the policy asks for it (`accumulates_attention`)."""
    recent_attention: "Float[Tensor, 'kv_heads queries slots'] | None"
    """Attention that the newest queries gave, oldest first; as many as the policy asks for (`observation_window`)."""
    layer: int
    rotated: "Float[Tensor, 'kv_heads slots dim'] | None" = None
    """The keys where they stand: rotated to their positions, as the newest query met them."""
    future_queries: "FutureQueries | None" = None
    """None unless the policy asks for them (`future_positions`)."""
    own: "Bool[Tensor, 'owners slots'] | None" = None
    """Which slots of the one row are those of each KV head; None where each has a row of its own."""


def sinks_setting(usual: int) -> Any:
    """A setting for first tokens that stay."""
    return setting(usual, "First tokens that are protected whatever their score.", low=0, high=1024)


def recent_setting(usual: int, *, low: int) -> Any:
    """A setting for newest tokens that stay."""
    return setting(usual, "Newest tokens that are protected whatever their score.", low=low)


def positions_setting(usual: str) -> Any:
    """A setting for what positions count."""
    told = "Whether positions are slots of the cache or positions in the text."
    return setting(usual, told, choices=("cache", "text"))


@dataclass(frozen=True)
class Ranked(Policy):
    """Keeps the `budget` slots of each KV head that score highest.

    Scores that differ by no more than rounding does are equal, and of equal ones the older slot goes.
    """

    store: ClassVar[str] = "ranked"
    quantizable: ClassVar[bool] = True
    accumulates_attention: ClassVar[bool] = False
    """Whether the score needs the attention that each slot got so far."""
    reproducible: ClassVar[bool] = False
    """Whether scores come out the same however many tokens were read at once, so that only identical ones are equal."""
    scale: ClassVar[float] = 0.0
    """The least size that a difference of scores is measured by; 0: the scores' own."""

    budget: int = setting(256, "Tokens that each KV head keeps.", low=2)
    sinks: int = sinks_setting(4)
    recent: int = recent_setting(64, low=1)
    interval: int = setting(1, "Tokens between two evictions: 1 is exact and slow, 16 is much faster.", low=1)
    positions: str = positions_setting("text")
    block: int = setting(
        1, "Slots that leave together: so many successive ones, counted from a head's first.", low=1, rare=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.smallest - self.interval + 1
        if self.protected_slots > least:
            blocks = "" if self.block == 1 else f", in blocks of {self.block} up to {self.protected_slots} slots"
            smaller = "a smaller interval" if self.block == 1 else "a smaller interval or block"
            raise ValueError(
                f"{self.name}: sinks + recent are {self.sinks + self.recent} tokens{blocks}, and after an eviction "
                f"{max(0, least)} are kept: choose a larger budget, or fewer of them, or {smaller}"
            )

    @property
    def observation_window(self) -> int:
        """Of how many of the newest queries the score needs the attention that they gave."""
        return 0

    @property
    def future_positions(self) -> int:
        """At how many of the next positions the score needs the queries that are expected; 0: it needs none."""
        return 0

    @property
    def protected_slots(self) -> int:
        """How many slots must have room after an eviction: those that may share a block with protected ones, the newest
        where they do not fill a block yet, and one block at least."""
        return max(self.block, self.allocated(self.sinks) + self.recent + self.block - 1)

    @property
    def smallest(self) -> int:
        """The smallest budget of any layer."""
        return self.budget

    def budget_of(self, layer: int, layers: int) -> int:
        """The most slots that a layer holds."""
        return self.budget

    def score(self, state: LayerState) -> "Float[Tensor, 'kv_heads slots']":
        """How much each slot is worth keeping."""
        raise NotImplementedError

    def merged(
        self,
        values: "Float[Tensor, 'kv_heads slots dim']",
        state: LayerState,
        leaves: "Int[Tensor, 'kv_heads evicted']",
    ) -> "Float[Tensor, 'kv_heads slots dim']":
        """What the values of all slots become when some leave; most policies drop what leaves, and change none.

        Where values are quantized, those that change are quantized anew.
        """
        return values

    def protected(self, positions: "Int[Tensor, 'kv_heads slots']") -> "Bool[Tensor, 'kv_heads slots']":
        """Which slots stay whatever their score, beside the newest."""
        return positions < self.sinks

    def left(self, held: int, budget: int) -> int:
        """How many of so many slots stay when some must go, in whole blocks."""
        return held - self.allocated(held - (budget - self.interval + 1))

    @property
    def every(self) -> int:
        """Tokens between two evictions, which are of whole blocks."""
        return self.allocated(self.interval)

    @property
    @override
    def pass_tokens(self) -> int:
        return self.every * -(-TOGETHER // self.every)

    @override
    def first_protected(self, read: int) -> int:
        import torch

        # Not all policies protect the first ones.
        return int(self.protected(torch.arange(min(self.sinks, read))[None]).long().cumprod(1).sum())

    @override
    def with_room(self, tokens: int) -> "Ranked":
        return replace(self, budget=self.budget + tokens + self.interval)

    def order(self, states: "Sequence[LayerState]", first: int | None = None) -> "Int[Tensor, 'rows slots']":
        """The slots of every head from the one that goes first to the one that stays longest, or only the `first` of
        them.  Rows are the heads of all these layers, one layer after the other: all have equally many slots, and lie
        on one device.
        """
        levels = self.levels(states)
        # One is found without a sort.
        return levels.argmin(1, keepdim=True) if first == 1 else levels.argsort(stable=True)[:, :first]

    def levels(self, states: "Sequence[LayerState]") -> "Float[Tensor, 'rows slots']":
        """Numbers by which slots go, the lowest first, and of equal ones the older: their scores, and infinity where
        they are protected.  Of a block all have one, the mean of its slots.  Rows as in `order`.
        """
        import torch

        positions = torch.cat([state.positions for state in states])
        scores = torch.cat([self.score(state) for state in states])
        scores.masked_fill_(self.protected(positions), float("inf"))
        scores[:, max(0, scores.shape[1] - self.recent) :] = float("inf")
        within = 0.0 if self.reproducible else tolerance(states[0].keys.dtype)
        if self.block == 1:
            return levelled(scores, within, self.scale)
        whole = scores.shape[1] // self.block * self.block
        of_blocks = levelled(scores[:, :whole].unflatten(1, (-1, self.block)).mean(2), within, self.scale)
        scores[:, :whole] = of_blocks.repeat_interleave(self.block, 1)
        scores[:, whole:] = float("inf")
        return scores

    @property
    @override
    def plain(self) -> str:
        own = {f.name: f.default for f in fields(self)}
        sinks = "" if self.sinks == own["sinks"] else f", {self.sinks or 'no'} sinks"
        every = "" if self.interval == 1 else f", every {self.interval}"
        positions = "" if self.positions == own["positions"] else f", {self.positions} positions"
        return f"{self.title} {self.budget}{sinks}{every}{positions}{self._blocks}"

    @property
    @override
    def capacity(self) -> int | None:
        return self.budget

    @property
    @override
    def full_from(self) -> int | None:
        return self.smallest

    @override
    def at_budget(self, tokens: int) -> "Policy":
        # A small cache that protects many of the newest tokens would be a window.
        return (
            super().at_budget(tokens)
            if self.capacity is None
            else replace(self, budget=tokens, recent=min(self.recent, tokens // 4))
        )

    @override
    def cautions(self, tokens: int | None, trained_length: int | None) -> list[str]:
        notes = super().cautions(tokens, trained_length)
        beyond = tokens is not None and trained_length is not None and tokens > trained_length
        if self.positions == "text" and beyond:
            notes.append(
                f"{self.label}: positions are counted in the text, and after {trained_length} tokens they are beyond "
                "what the model was trained on: choose positions=cache to read on"
            )
        return notes


def tolerance(dtype: "torch.dtype") -> float:
    """The share of a score by which two may differ and still be equal.

    The rounding of a key or a weight depends on how many tokens were read at once, by a few units of the last digit in
    float32 and by less than one in half precision, which is rounded once, at the end.
    """
    import torch

    return max(128 * torch.finfo(torch.float32).eps, torch.finfo(dtype).eps / 4)


def levelled(scores: "Float[Tensor, 'rows slots']", within: float, scale: float = 0.0) -> "Float[Tensor, 'rows slots']":
    """Scores of which neighbours, when they rise, that differ by no more than a share `within` are one: the lowest of
    them.

    `scale`: differences are measured by this where the scores are smaller.
    """
    if not within:
        return scores
    import torch

    rising, slots = scores.sort()
    near = rising.abs().clamp_(scale, torch.finfo(rising.dtype).max).mul_(within)
    # Infinity is one by itself: nothing is near it.
    alike = rising[:, 1:] - rising[:, :-1] <= torch.maximum(near[:, 1:], near[:, :-1])
    lowest = rising.clone()
    lowest[:, 1:].masked_fill_(alike, float("-inf"))
    return torch.empty_like(rising).scatter_(1, slots, lowest.cummax(1).values)


def agreed(
    scores: "Float[Tensor, 'kv_heads slots']", positions: "Int[Tensor, 'kv_heads slots']"
) -> "Float[Tensor, 'kv_heads slots']":
    """The mean over all heads of what a slot's token scores; in a head that does not hold the token it scores 0."""
    import torch

    heads, slots = scores.shape
    found = torch.searchsorted(
        positions[None].expand(heads, -1, -1).contiguous(), positions[:, None].expand(-1, heads, -1).contiguous()
    ).clamp(max=slots - 1)
    held = positions[None].expand(heads, -1, -1).gather(2, found) == positions[:, None]
    return (scores[None].expand(heads, -1, -1).gather(2, found) * held).mean(1)


def pooled(x: "Float[Tensor, '*rows slots']", kernel: int, pooling: str) -> "Float[Tensor, '*rows slots']":
    """The mean or the maximum of each value and its neighbours; beyond the ends there are zeros."""
    import torch

    if pooling == "max":
        return torch.nn.functional.max_pool1d(x[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]
    return torch.nn.functional.avg_pool1d(x[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]
