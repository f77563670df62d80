"""What pages ask of the lanes of a reading, and what there is to see of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.policies import Policy
from analysis.runs.run import Track

if TYPE_CHECKING:
    # A page is on screen before torch is loaded.
    from analysis.engine.layers.slots import Held


@dataclass(frozen=True)
class SwitchRequest:
    """Lane `lane` is to read on under `policy`; `pin`: with the first tokens back in its cache."""

    lane: int
    policy: Policy
    pin: bool


@dataclass(frozen=True, eq=False)
class LaneSnapshot:
    """What there is to see of a lane after its last whole chunk."""

    policy: Policy
    position: int
    """The next token to be predicted."""
    done: bool
    spans: "Sequence[Held]"
    """Which tokens are cached, by groups of heads."""
    cached_tokens: int
    cached_bytes: int
    """What is cached just now, also where nothing was read since a switch."""

    @property
    def sinks(self) -> int:
        """First tokens whose keys all heads cache, without a gap."""
        from analysis.engine.layers.slots import prefix_of

        return prefix_of(self.spans)


@dataclass(frozen=True, eq=False)
class ReadingSnapshot:
    """What there is to see of a run: the tracks of its lanes and, once it reads, the lanes, each [lanes]."""

    tracks: tuple[Track, ...]
    lanes: tuple[LaneSnapshot, ...]
    total: int
    """Tokens of the text."""
    seconds: float
    """Wall-clock time spent reading, pauses not counted."""
