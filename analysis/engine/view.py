"""What a lane shows of itself: what it held when it last stood still.

A lane replaces its view after every step and never changes one, so that maps and screens can be drawn from it in any
thread while the lane reads on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attention.token import TokenPass
from .context import SharedContext
from .history import QKChunk
from .kv.store import Chunk
from .layers.slots import Held, prefix_of


@dataclass(frozen=True, eq=False)
class View:
    """What a lane held when it had read `read` tokens."""

    context: SharedContext
    read: int
    held: Sequence[Held]
    """Which tokens are held, by groups of heads that hold the same."""
    layers: Sequence[Any]
    """What each layer holds, from which chunks of the same store take keys."""
    settled: Sequence[Chunk]
    decoded: tuple[TokenPass, ...]
    """Newest tokens whose queries and keys are not in one chunk yet."""

    @cached_property
    def chunks(self) -> Sequence[Chunk]:
        """Queries and keys of the newest tokens, oldest first, from which maps are drawn."""
        return [*self.settled, QKChunk.of(self.decoded)] if self.decoded else self.settled

    @property
    def sinks(self) -> int:
        """First tokens whose keys are held, without a gap, by all heads."""
        return prefix_of(self.held)

    @property
    def first(self) -> int:
        """The text position from which on every token is held by all heads."""
        return self.read - min((some.suffix for some in self.held), default=self.read)

    @property
    def shares(self) -> NDArray[np.float32] | None:
        """Which share of all KV heads holds each token that was read, [read]; None where all hold the same."""
        alike = {some.alike for some in self.held}
        if not alike or (len(alike) == 1 and None not in alike):
            return None
        counts = np.zeros(self.read, np.float32)
        for some in self.held:
            some.add_to(counts)
        return np.divide(counts, sum(some.heads for some in self.held), dtype=np.float32)
