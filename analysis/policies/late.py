"""Late sinks: are the first tokens special, or only early?  Other tokens take their part in StreamingLLM's cache."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, Ranked, positions_setting, recent_setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Late(Ranked):
    """Keeps the newest tokens, and `sinks` others that are not the first: those from `start` on.

    With `start` 0 it is sinks + window; with any other, the first tokens leave like all others do.
    """

    name: ClassVar[str] = "late"
    title: ClassVar[str] = "Late sinks"
    reproducible: ClassVar[bool] = True

    sinks: int = setting(4, "Tokens kept for ever.", low=0, high=1024)
    recent: int = recent_setting(1, low=1)
    positions: str = positions_setting("cache")
    start: int = setting(16, "Position in the text of the first token kept for ever.", low=0, high=4096)

    def __post_init__(self) -> None:
        super().__post_init__()
        # How many leave together says nothing of when the first does.
        if self.start + self.sinks > self.budget:
            raise ValueError(
                f"{self.name}: the first {self.start + self.sinks} tokens must be in the cache before any leaves: "
                "choose a smaller start or a larger budget"
            )

    @property
    @override
    def protected_slots(self) -> int:
        # They may begin inside a block.
        aligned, anywhere = self.sinks, self.sinks + self.block - 1
        return super().protected_slots + (self.allocated(anywhere) - self.allocated(aligned) if self.sinks else 0)

    @override
    def protected(self, positions: "Tensor") -> "Tensor":
        return (positions >= self.start) & (positions < self.start + self.sinks)

    @override
    def score(self, state: LayerState) -> "Tensor":
        # Positions that rounding makes equal leave in their order all the same.
        return state.positions.float()

    @property
    @override
    def plain(self) -> str:
        return f"{super().plain}, from {self.start}"
