"""Sliding window with recomputation: the newest tokens are encoded anew for every token, or for every few."""

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from .base import Recomputed, setting


@dataclass(frozen=True)
class Recompute(Recomputed):
    """Predicts a token from the `window` tokens before it, encoded anew from position 0.  Good, and slow: T·L² in all.

    A `stride` n above 1 encodes once for n tokens, whose contexts are then `window` to `window` + n − 1 tokens long.
    """

    name: ClassVar[str] = "recompute"
    title: ClassVar[str] = "Recompute"

    window: int = setting(256, "Tokens encoded before the predicted one.", low=1)
    stride: int = setting(1, "Tokens predicted from one encoding.", low=1)

    @property
    @override
    def plain(self) -> str:
        return f"Recompute {self.window} / {self.stride}"
