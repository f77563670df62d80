"""Dense attention: every token stays in the cache."""

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from .base import Banded


@dataclass(frozen=True)
class Dense(Banded):
    """Keeps everything.  Its memory grows with every token, and past the trained length the model loses its way."""

    name: ClassVar[str] = "dense"
    title: ClassVar[str] = "Dense"

    @property
    @override
    def plain(self) -> str:
        return "Dense"
