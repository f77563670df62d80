"""Context shift: when the context is full, an engine drops the older half of it at once (llama.cpp)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from typing_extensions import override

from .base import Banded, setting


@dataclass(frozen=True)
class Shift(Banded):
    """Keeps the first `keep` tokens.  When more than `window` others are held, the older half of the window leaves at
    once, and what stays moves down.

    This is what llama.cpp does when a context of keep + window tokens is full (`--keep`, and its context shift).  With
    keep 0 the first tokens leave too, and the text turns to garbage.  A token meets `window` of the others at most, as
    under all policies here: llama.cpp counts the token itself among them, and so drops its half a token or two earlier.
    """

    name: ClassVar[str] = "shift"
    title: ClassVar[str] = "Context shift"
    positions: ClassVar[str] = "cache"

    window: int = setting(252, "Tokens held beside the first ones when the older half of them leaves.", low=2)
    keep: int = setting(4, "First tokens kept for ever.", low=0, high=1024)

    @property
    @override
    def sinks(self) -> int:
        return self.keep

    @property
    @override
    def step(self) -> int:
        return self.window // 2

    @override
    def with_room(self, tokens: int) -> "Shift":
        # Half of it is left when the rest leaves: as much as there is to be room for.
        return replace(self, window=2 * (self.window + tokens))

    @property
    @override
    def plain(self) -> str:
        return f"Context shift {self.keep} + {self.window}"
