"""A store whose slots are ranked over all KV heads of a layer, which share one budget and hold differently many."""

from ..attention.ragged import RaggedPass
from ..history import RaggedChunk
from ..layers.ragged import RaggedLayer
from ..layers.ranked import RankedLayer
from .ranked import RankedStore
from .store import Store


class RaggedStore(RankedStore):
    """Slots that differ from head to head, in which and in how many."""

    # All of its layers are of one kind.
    layers: list[RaggedLayer]  # ty: ignore[incompatible-attribute-override]
    chunk_kind = RaggedChunk
    layer_kind = RaggedLayer
    pass_kind = RaggedPass

    def ranked(self, read: int) -> list[RankedLayer]:
        """What the heads hold, as many slots of each as the one with the fewest has, of which nothing has been observed
        yet."""
        return [layer.rows() for layer in self.layers]

    def ragged(self, read: int) -> list[RaggedLayer]:
        """What every head holds, and what has been observed of it."""
        return self.layers

    def _taken(self, other: Store, read: int) -> list[RaggedLayer]:
        return other.ragged(read)
