"""KeyDiff: keys that point where all keys point are redundant (Park et al. 2025, arXiv:2504.15364)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, Ranked, recent_setting, sinks_setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KeyDiff(Ranked):
    """Keeps the tokens whose keys differ most, in direction, from the mean direction of all keys held.

    As in the paper keys are compared as the cache has them, rotated, and no token is protected; reads no attention.
    The paper drops tokens after each block of a prompt, which is an `interval` of a block here.
    """

    name: ClassVar[str] = "keydiff"
    title: ClassVar[str] = "Key difference"
    scale: ClassVar[float] = 1.0

    sinks: int = sinks_setting(0)
    recent: int = recent_setting(0, low=0)
    keys: str = setting(
        "rotated", "Whether keys are compared where they stand, or before rotation.", choices=("rotated", "unrotated")
    )

    @override
    def score(self, state: LayerState) -> "Tensor":
        from torch.nn.functional import cosine_similarity, normalize

        keys = state.rotated if self.keys == "rotated" else state.keys
        assert keys is not None, "keys that are ranked have been rotated"
        keys = keys.float()
        return -cosine_similarity(keys, normalize(keys, dim=-1).mean(1, keepdim=True), dim=-1)

    @property
    @override
    def plain(self) -> str:
        return super().plain + ("" if self.keys == "rotated" else ", before rotation")
