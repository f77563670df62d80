"""DuoAttention: some heads keep everything, the others sinks + window (Xiao et al. 2024, arXiv:2410.10819)."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from .base import Band, Policy, setting
from .dense import Dense
from .streaming import Streaming


@dataclass(frozen=True)
class Duo(Policy):
    """Keeps everything in `full` percent of all KV heads, and sinks + window in the others.

    The paper learns which heads retrieve; here they are those that look most at the first tokens, measured on the
    beginning of the text: a head that waits on the sink waits for something that may be far away, one that never does
    looks at its neighbours.  Or those that a file rates highest: a row for each layer, a number for each KV head, as
    the paper's authors publish them.  Sizes and positions are those that the authors' scripts read with.
    """

    name: ClassVar[str] = "duo"
    title: ClassVar[str] = "Duo"

    full: int = setting(50, "Percent of the KV heads that keep everything.", low=0, high=100)
    sinks: int = setting(64, "First tokens that the other heads keep for ever.", low=0, high=1024)
    window: int = setting(256, "Newest tokens that the other heads keep.", low=1)
    positions: str = setting(
        "text", "How distances to the sinks are counted in the other heads.", choices=("cache", "text")
    )
    scores: str = setting(
        "measured", "What rates the heads: measured, or the path of a file of numbers.", pattern=r"[^,]+"
    )

    @cached_property
    def parts(self) -> tuple[Band, Band]:
        """What the heads that keep everything do, and what the others do."""
        return Dense(), Streaming(self.sinks, self.window, self.positions)

    @property
    def plain(self) -> str:
        chosen = "" if self.scores == "measured" else f", by {self.scores}"
        positions = "" if self.positions == "text" else ", cache positions"
        return f"Duo {self.full} % full, {self.sinks} + {self.window}{positions}{chosen}"

    @property
    def capacity(self) -> int | None:
        return None if self.full else self.sinks + self.window
