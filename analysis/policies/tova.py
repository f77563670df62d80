"""TOVA, token omission via attention: what the last query ignored goes (Oren et al. 2024, arXiv:2401.06104)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, Ranked, agreed, recent_setting, sinks_setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TOVA(Ranked):
    """Drops the token that the newest query gave the least attention, on average over all heads of a layer.

    As in the paper all heads of a layer drop the same token, and none is protected, not even the newest.  With `agree`
    head each KV head drops its own, by the mean of the query heads that share it.
    """

    name: ClassVar[str] = "tova"
    title: ClassVar[str] = "Last query"

    sinks: int = sinks_setting(0)
    recent: int = recent_setting(0, low=0)
    agree: str = setting(
        "layer", "Who drops the same token: all heads of a layer, or each KV head its own.", choices=("layer", "head")
    )

    @property
    @override
    def observation_window(self) -> int:
        return 1

    @override
    def score(self, state: LayerState) -> "Tensor":
        assert state.recent_attention is not None, "it was asked for"
        given = state.recent_attention[:, -1].float()
        return agreed(given, state.positions) if self.agree == "layer" else given

    @property
    @override
    def plain(self) -> str:
        return super().plain + ("" if self.agree == "layer" else ", head by head")
