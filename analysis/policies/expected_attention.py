"""Expected attention: what queries to come will look at, if they are like those so far (Devoto et al. 2025,
arXiv:2510.00636)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, Ranked, recent_setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ExpectedAttention(Ranked):
    """Keeps the tokens that queries to come are expected to look at, weighed by how long their values are.

    As in the authors' code queries are taken for normally distributed before rotation, and rotated by the mean of the
    rotations of the next `future` positions; then the expected weight has a closed form.  It is shared out among all
    slots but the sinks, the mean over query heads that share a key is taken, and nothing but the sinks is protected.
    The authors compress a prompt once, by the mean and covariance of the prompt's queries.  Here these are of all
    queries that were read until the eviction (since the last switch from another policy), without those of the sinks,
    also of tokens that have left since.
    """

    name: ClassVar[str] = "expected-attention"
    title: ClassVar[str] = "Expected attention"

    recent: int = recent_setting(0, low=0)
    future: int = setting(512, "Next positions over which the rotation of queries is averaged.", low=1, high=65536)

    @property
    @override
    def future_positions(self) -> int:
        return self.future

    @override
    def score(self, state: LayerState) -> "Tensor":
        import torch

        queries = state.future_queries
        assert queries is not None, "they were asked for"
        keys = queries.keys
        kv_heads, slots, dim = keys.shape
        # The covariances of all query heads of a KV head side by side: k·m + k·Ck / 2 as one product with k.
        mean = queries.mean.view(kv_heads, 1, -1)
        halves = (queries.covariance / 2).view(kv_heads, -1, dim, dim).transpose(1, 2).flatten(2)
        apart = torch.baddbmm(mean, keys, halves).view(kv_heads, slots, -1, dim)
        logits = (apart * keys[:, :, None]).sum(-1).transpose(1, 2)
        logits = logits.masked_fill(self.protected(state.positions)[:, None], float("-inf"))
        return logits.softmax(-1).mean(1) * state.values.float().norm(dim=-1)
