"""StreamingLLM: the first few tokens and the newest ones stay in the cache (Xiao et al. 2023, arXiv:2309.17453)."""

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from .base import Banded, setting


@dataclass(frozen=True)
class Streaming(Banded):
    """Keeps the first `sinks` tokens and the last `window`.  Memory is constant and the model stays itself.

    With positions `cache` a token counts its distance to a sink in cache slots (Xiao et al. 2023); with `text`, in
    tokens of the text; with `none`, sinks have no position.  `naive` is a bug of other tools, to see what it costs: a
    token takes the length of the cache for its position, and cached keys keep the positions that they were given once.
    """

    name: ClassVar[str] = "streaming"
    title: ClassVar[str] = "Sinks + window"

    sinks: int = setting(4, "First tokens kept for ever.", low=0, high=1024)
    window: int = setting(252, "Newest tokens kept.", low=1)
    positions: str = setting(
        "cache", "How distances to the sinks are counted.", choices=("cache", "text", "none", "naive")
    )
    block: int = setting(1, "Tokens that leave together, as where memory is handed out in blocks.", low=1, rare=True)

    @property
    @override
    def plain(self) -> str:
        counted = {"text": ", text positions", "none": ", sinks without position", "naive": ", naive positions"}
        return f"Sinks + window {self.sinks} + {self.window}{counted.get(self.positions, '')}{self._blocks}"
