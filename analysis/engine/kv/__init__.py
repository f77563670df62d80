"""KV stores: what a lane keeps, one kind of store for each way of keeping it, by the name that policies give."""

from ...policies import Policy
from ..context import SharedContext
from .banded import BandedStore
from .ragged import RaggedStore
from .ranked import RankedStore
from .recomputed import RecomputedStore
from .split import SplitStore
from .store import Store

STORES: dict[str, type[Store]] = {
    "banded": BandedStore,
    "ranked": RankedStore,
    "ragged": RaggedStore,
    "split": SplitStore,
    "recomputed": RecomputedStore,
}


def store_for(policy: Policy, context: SharedContext) -> Store:
    """An empty store of the kind that a policy names.  Raises ValueError where this model cannot be read under it."""
    context.allow(policy)
    return STORES[policy.store](context, policy)
