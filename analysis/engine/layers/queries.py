"""What a layer remembers of the queries that it has read: how many, their mean, and how they are spread around it.

Nothing of a single query is kept, so this takes as much memory after a million tokens as after one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..state import State


@dataclass(frozen=True, eq=False)
class QueryMoments:
    """The first two moments of some queries of every head, float32."""

    count: int
    mean: Float[Tensor, "heads dim"]
    scatter: Float[Tensor, "heads dim dim"]
    """The sum of the outer products of what queries differ by from their mean."""

    @classmethod
    def of(cls, queries: Float[Tensor, "heads queries dim"]) -> "QueryMoments":
        """Of these queries, at least one."""
        mean = queries.float().mean(1)
        apart = queries - mean[:, None]
        return cls(queries.shape[1], mean, apart.transpose(1, 2) @ apart)

    def followed_by(self, queries: Float[Tensor, "heads queries dim"]) -> "QueryMoments":
        """Of these queries too, at least one (Chan et al. 1983): squares of what is far from 0 would cancel."""
        newer = queries.float().mean(1, keepdim=True)
        count, moved = self.count + queries.shape[1], newer - self.mean[:, None]
        share = queries.shape[1] / count
        # What lies between the two means is one more row to be multiplied with itself.
        apart = torch.cat((queries - newer, moved * (self.count * share) ** 0.5), 1)
        scatter = torch.baddbmm(self.scatter, apart.transpose(1, 2), apart)
        return QueryMoments(count, self.mean + moved[:, 0] * share, scatter)

    @property
    def covariance(self) -> Float[Tensor, "heads dim dim"]:
        """The mean of those outer products."""
        return self.scatter / self.count

    def state(self) -> State:
        """What is remembered."""
        return State({"count": self.count}, {"mean": self.mean, "scatter": self.scatter})

    @classmethod
    def loaded(cls, state: State, like: Float[Tensor, "kv_heads slots dim"]) -> "QueryMoments":
        """What a state says, where keys are `like` these.  Raises ValueError where it is of another model."""
        mean = state.tensor("mean", like, (None, like.shape[2]), torch.float32)
        scatter = state.tensor("scatter", like, (*mean.shape, like.shape[2]), torch.float32)
        return cls(state.value("count", int), mean, scatter)
