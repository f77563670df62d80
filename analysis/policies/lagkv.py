"""LagKV: a token is worth what makes it stand out from the tokens that follow (Liang et al. 2025, arXiv:2504.04704)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, Ranked, sinks_setting, tolerance

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LagKV(Ranked):
    """Keeps the tokens whose keys and values vary most, measured by the range of the tokens that come next.

    Slots behind the sinks are cut into stretches of `recent`, counted from the newest; the next stretch gives, for
    every dimension of the rotated keys and of the values, the range that this one is measured by.  The last has no next
    one, so it is protected.  The paper scores a stretch once, when the next has been read, and keeps a share of each,
    so its cache grows with the text; here all slots are ranked at every eviction, against whatever stands behind them
    then.  The first stretch may be shorter: its scores are weighed by its length, so that its slots stay no longer.
    """

    name: ClassVar[str] = "lagkv"
    title: ClassVar[str] = "Lagged range"

    sinks: int = sinks_setting(16)
    recent: int = setting(64, "Newest tokens, protected whatever their score; a stretch (the paper's lag).", low=2)

    @override
    def score(self, state: LayerState) -> "Tensor":
        import torch

        assert state.rotated is not None, "keys that are ranked have been rotated"
        lag, (heads, slots, dim) = self.recent, state.rotated.shape
        # Counted from the newest, so that every stretch but the last has a whole one behind it.
        padding = -slots % lag
        pieces = torch.zeros(2, heads, padding + slots, dim, device=state.rotated.device)
        pieces[0, :, padding:], pieces[1, :, padding:] = state.rotated, state.values
        pieces = pieces.view(2 * heads, -1, lag, dim)
        later = pieces[:, 1:]
        low, high = later.amin(2, keepdim=True), later.amax(2, keepdim=True)
        span = high - low
        # A range that is nothing but rounding would make a score of rounding.
        largest = torch.maximum(low.abs(), high.abs()).amax(3, keepdim=True)
        least = tolerance(state.keys.dtype) * largest.clamp(min=1e-30)
        above = pieces[:, :-1] - low
        # In numbers and not in truth values, which take several times as long; so does torch's own std.
        beyond = above.abs().gt_(torch.where(span <= least, least, -1))
        scaled = above.mul_(beyond).div_(torch.maximum(span, least))
        n, mean, norm = scaled.shape[-1], scaled.mean(-1), torch.linalg.vector_norm(scaled, dim=-1)
        spread = ((norm.square() / n - mean.square()).clamp(min=0) * n / (n - 1)).sqrt()
        # Sinks are part of no stretch.
        sinks = self.protected(state.positions)[:, : slots - lag]
        outside = torch.nn.functional.pad(sinks, (padding, 0), value=True).unflatten(1, (-1, lag))
        spread = spread.unflatten(0, (2, -1)).masked_fill(outside, float("-inf"))
        # Few slots would get more of a softmax than many: by its length, an even share is one in every stretch.
        lengths = (~outside).sum(-1, keepdim=True) / lag
        worth = (spread.softmax(-1).sum(0) * lengths).flatten(1)[:, padding:]
        return torch.nn.functional.pad(worth, (0, lag))
