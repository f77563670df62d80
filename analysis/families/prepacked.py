"""Products of float32 layers with weights in the order in which they are multiplied.

A library brings the weights of a product into an order of its own, anew each time.  With AVX2 alone that takes half of
the time of a product with 16 rows, a quarter with 128, and a tenth with 512.  oneDNN lets it be done once.
With AVX-512, weights with their outputs side by side (models/quantization.py) are fast as they lie, where a processor
is Intel's.  On one of AMD they are not: packed, 16 rows take half of the time there, and 512 a tenth less, or a quarter
with the many outputs of a head.
The weights themselves stay where they are, for one row and for others.
"""

from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn

MOST = 2 << 30
"""Bytes of the layers of a network that are held twice for this."""


def worth(network: nn.Module) -> bool:
    """Whether this processor gains by it, and its memory has plenty of room for the layers."""
    if not gains() or not torch.backends.mkldnn.is_available():
        return False
    size = sum(m.weight.nbytes for m in network.modules() if type(m) is nn.Linear)
    return size <= MOST and 2 * size <= psutil.virtual_memory().available


def gains() -> bool:
    """Whether this processor multiplies packed float32 weights faster than those that lie with outputs side by side."""
    instructions = torch.backends.cpu.get_cpu_capability()
    return instructions == "AVX2" or (
        instructions == "AVX512" and torch.cpu.get_capabilities().get("cpu_name", "").startswith("AMD")
    )


def prepack(network: nn.Module) -> None:
    """Let the layers of a network be multiplied so; none whose forward pass is another."""
    for module in network.modules():
        if type(module) is nn.Linear and "forward" not in vars(module):
            forward: Any = Product(module.weight, module.bias, prepacks=True)
            module.forward = forward


class Product:
    """The product of a layer.  `prepacks`: float32 weights are packed when they first meet more than one row."""

    def __init__(
        self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None, *, prepacks: bool
    ) -> None:
        self.weight, self.bias = weight, bias
        self._packs = prepacks and weight.device.type == "cpu" and weight.dtype == torch.float32
        self._packed: Tensor | None = None

    def __call__(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The layer's output."""
        if not self._packs or x.numel() <= x.shape[-1]:
            return nn.functional.linear(x, self.weight, self.bias)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
