"""LagKV: a token is worth what makes it stand out from the tokens that follow (Liang et al. 2025, arXiv:2504.04704)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, Ranked, tolerance

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LagKV(Ranked):
    """Keeps the tokens whose keys and values vary most, measured by the range of the tokens that come next.

    Slots behind the sinks are cut into stretches of `recent`, counted from the newest; the next stretch gives, for
    every dimension of the rotated keys and of the values, the range that this one is measured by.  The last has no next
    one, so it is protected.  The paper scores a stretch once, when the next has been read, and keeps a share of each,
    so its cache grows with the text; here all slots are ranked at every eviction, against whatever stands behind them
    then.
    """

    name: ClassVar[str] = "lagkv"
    title: ClassVar[str] = "Lagged range"

    sinks: int = setting(16, "First tokens that are protected whatever their score.", low=0, high=1024)
    recent: int = setting(64, "Newest tokens, protected whatever their score; a stretch (the paper's lag).", low=2)

    @override
    def score(self, state: LayerState) -> "Tensor":
        import torch

        assert state.rotated is not None, "keys that are ranked have been rotated"
        x, lag, slots = torch.cat((state.rotated, state.values)).float(), self.recent, state.keys.shape[1]
        # Counted from the newest, so that every stretch but the last has a whole one behind it.
        padding = -slots % lag
        pieces = torch.cat((x[:, :1].expand(-1, padding, -1), x), 1).unflatten(1, (-1, lag))
        later = pieces[:, 1:]
        low, high = later.amin(2, keepdim=True), later.amax(2, keepdim=True)
        # A range that is nothing but rounding would make a score of rounding.
        least = tolerance(state.keys.dtype) * later.abs().amax((2, 3), keepdim=True).clamp(min=1e-30)
        above, span = pieces[:, :-1] - low, high - low
        scaled = above.masked_fill((span <= least) & (above.abs() <= least), 0) / torch.maximum(span, least)
        # Of n dimensions; torch's own std takes three times as long.
        n, mean = scaled.shape[-1], scaled.mean(-1)
        spread = ((scaled.square().mean(-1) - mean.square()).clamp(min=0) * n / (n - 1)).sqrt()
        # Sinks are part of no stretch.
        sinks = self.protected(state.positions).repeat(2, 1)[:, : slots - lag]
        outside = torch.nn.functional.pad(sinks, (padding, 0), value=True).unflatten(1, (-1, lag))
        spread = spread.masked_fill(outside, float("-inf"))
        worth = spread.softmax(-1).flatten(1)[:, padding:].unflatten(0, (2, -1)).sum(0)
        return torch.nn.functional.pad(worth, (0, lag))
