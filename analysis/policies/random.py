"""Chance: the control for every policy that chooses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from .base import setting
from .ranked import LayerState, Ranked, positions_setting

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Random(Ranked):
    """Keeps an even sample of the whole text, and the newest tokens.  With `sinks` 0 the first ones may go too.

    Every token draws a lot once, for each layer and KV head, and the highest stay; so a seed means the same sample
    whatever the chunks.
    """

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "Random"
    reproducible: ClassVar[bool] = True

    positions: str = positions_setting("cache")
    seed: int = setting(0, "Another seed is another sample.", low=0, high=2**31 - 1)

    @override
    def score(self, state: LayerState) -> "Tensor":
        return lots(state, self.seed)


def lots(state: LayerState, seed: int) -> "Float[Tensor, 'kv_heads slots']":
    """A number between 0 and 1 for each slot, which looks random, and is the same whenever it is asked for."""
    import torch

    heads = torch.arange(len(state.positions), device=state.positions.device)[:, None]
    return lot(state.positions, 1 + heads + 1000 * state.layer + 1_000_003 * seed)


def lot(positions: "Tensor", stream: "Tensor") -> "Tensor":
    """Numbers between 0 and 1 that look random, the same for the same position and stream on every device, to as many
    digits as it has.

    Integer hashing after Steele et al. 2014, "Fast splittable pseudorandom number generators", in 64 bits.
    """
    x = positions * -7046029254386353131 + stream * -4658895280553007687
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return ((x >> 11) & ((1 << 53) - 1)).to(widest(x.device)) * 2.0**-53


def widest(device: "torch.device") -> "torch.dtype":
    """What has most digits of the numbers on a device: Apple's GPUs have no float64."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64
