"""Window attention: only the newest tokens stay in the cache."""

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from .base import Banded, setting


@dataclass(frozen=True)
class Window(Banded):
    """Keeps the last `window` tokens.  Memory is constant; the model breaks when its first token leaves the cache."""

    name: ClassVar[str] = "window"
    title: ClassVar[str] = "Window"

    window: int = setting(256, "Newest tokens kept.", low=1)
    block: int = setting(1, "Tokens that leave together, as where memory is handed out in blocks.", low=1, rare=True)

    @property
    @override
    def plain(self) -> str:
        return f"Window {self.window}{self._blocks}"
