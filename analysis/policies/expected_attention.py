"""Expected attention: what queries to come will look at, if they are like those so far (Devoto et al. 2025,
arXiv:2510.00636)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, Ranked

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ExpectedAttention(Ranked):
    """Keeps the tokens that queries to come are expected to look at, weighed by how long their values are.

    As in the authors' code queries are taken for normally distributed before rotation, and rotated by the mean of the
    rotations of the next `future` positions; then the expected weight has a closed form.  It is shared out among all
    slots but the sinks, the mean over query heads that share a key is taken, and nothing but the sinks is protected.
    The authors compress a prompt once, by the mean and covariance of the prompt's queries.  Here these are of all
    queries that were read until the eviction (since the last switch), without those of the sinks, also of tokens that
    have left since.
    """

    name: ClassVar[str] = "expected-attention"
    title: ClassVar[str] = "Expected attention"

    recent: int = setting(0, "Newest tokens that are protected whatever their score.", low=0)
    future: int = setting(512, "Next positions over which the rotation of queries is averaged.", low=1, high=65536)

    @property
    @override
    def future_positions(self) -> int:
        return self.future

    @override
    def score(self, state: LayerState) -> "Tensor":
        queries = state.future_queries
        assert queries is not None, "they were asked for"
        # All query heads of a KV head beside its keys.
        keys = queries.keys[:, None]
        mean, covariance = (x.unflatten(0, (len(keys), -1)) for x in (queries.mean, queries.covariance))
        logits = (keys @ mean[..., None])[..., 0] + ((keys @ covariance) * keys).sum(-1) / 2
        logits = logits.masked_fill(self.protected(state.positions)[:, None], float("-inf"))
        return logits.softmax(-1).mean(1) * state.values.float().norm(dim=-1)
