"""CaM, cache merging: the value of what leaves is added to what stays (Zhang et al. 2024, ICML)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .random import lots
from .ranked import LayerState, Ranked, positions_setting, recent_setting

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

TOGETHER = 64
"""Slots whose values are merged by one system of equations: more of them would be mostly zeros."""


@dataclass(frozen=True)
class CaM(Ranked):
    """Keeps the first tokens and the newest, and adds the value of a token that leaves to those of the next `merge`
    slots.

    As in the authors' code for streamed texts each of these gets a `merge`-th of the value, and chance decides whether:
    the probability is the attention that the token got so far over the mean of what these slots got, at most 1.  Keys
    are dropped.  Where several leave together they do so one after the other, the oldest first, so that a value may
    be passed on.  Every token draws a lot once, for each layer and KV head.
    """

    name: ClassVar[str] = "cam"
    title: ClassVar[str] = "Cache merging"
    reproducible: ClassVar[bool] = True
    accumulates_attention: ClassVar[bool] = True

    recent: int = recent_setting(1, low=1)
    positions: str = positions_setting("cache")
    merge: int = setting(16, "Slots behind a token that leaves to which its value is added.", low=1, high=1024)
    seed: int = setting(0, "Another seed adds other values.", low=0, high=2**31 - 1)

    @override
    def score(self, state: LayerState) -> "Tensor":
        # Positions that rounding makes equal leave in their order all the same.
        return state.positions.float()

    @override
    def merged(
        self,
        values: "Float[Tensor, 'kv_heads slots dim']",
        state: LayerState,
        leaves: "Int[Tensor, 'kv_heads evicted']",
    ) -> "Float[Tensor, 'kv_heads slots dim']":
        import torch

        got = state.accumulated_attention
        assert got is not None, "it was asked for"
        slots = torch.arange(got.shape[1], device=got.device)
        following = torch.nn.functional.pad(got[:, 1:], (0, self.merge)).unfold(1, self.merge, 1).sum(2)
        mean = following / (len(slots) - 1 - slots).clamp(1, self.merge)
        share = (lots(state, self.seed) * mean < got).float() / self.merge
        whole, leaving = values.float(), leaves.sort().values
        for begin in range(0, leaving.shape[1], TOGETHER):
            each = leaving[:, begin : begin + TOGETHER]
            # What leaves are the oldest slots behind the sinks.
            stop = begin + TOGETHER + self.allocated(self.sinks) + self.merge
            here, apart = whole[:, begin:stop], slots[begin:stop, None] - each[:, None]
            gives = ((apart > 0) & (apart <= self.merge)) * share.gather(1, each)[:, None]
            at = (each - begin)[..., None]
            before = gives.gather(1, at.expand(-1, -1, each.shape[1]))
            own = here.gather(1, at.expand(-1, -1, here.shape[2]))
            passed_on = torch.eye(each.shape[1], device=got.device) - before
            own = torch.linalg.solve_triangular(passed_on, own, upper=False, unitriangular=True)
            whole = torch.cat((whole[:, :begin], here + gives @ own, whole[:, stop:]), 1)
        return whole.to(values.dtype)
