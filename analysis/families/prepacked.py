"""Products of float32 layers with weights in the order in which they are multiplied.

A library brings the weights of a product into an order of its own, anew each time.  With AVX2 alone that takes half of
the time of a product with 16 rows, a quarter with 128, and a tenth with 512.  oneDNN lets it be done once.
With AVX-512 on a processor of Intel, weights with their outputs side by side (models/quantization.py) are as fast as
they lie where rows are many; packed, 16 rows take a quarter less, and those of a head nearly half.  On one of AMD 16
rows take half of the time, and 512 a tenth less, or a quarter with the many outputs of a head.
The weights themselves stay where they are, for one row and for others.
"""

import sys
from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn

MOST = 2 << 30
"""Bytes of the layers of a network that are held twice for this."""


ALL, FEW = sys.maxsize, 24
"""Rows of a product that gains by it, at most.  Few are those of policies that rank slots: they read 16 at a time."""


def worth(network: nn.Module) -> int:
    """Rows up to which products gain by it; 0 where none do, or memory has not plenty of room for the layers."""
    rows = gained()
    if not rows or not torch.backends.mkldnn.is_available():
        return 0
    size = sum(m.weight.nbytes for m in network.modules() if type(m) is nn.Linear)
    return rows if size <= MOST and 2 * size <= psutil.virtual_memory().available else 0


def gained() -> int:
    """Rows up to which this processor multiplies packed float32 weights faster than those that lie with outputs side by
    side."""
    instructions = torch.backends.cpu.get_cpu_capability()
    if instructions == "AVX2":
        return ALL
    if instructions == "AVX512":
        return ALL if torch.cpu.get_capabilities().get("cpu_name", "").startswith("AMD") else FEW
    return 0


def prepack(network: nn.Module, rows: int) -> None:
    """Let the layers of a network be multiplied so, by up to so many rows; none whose forward pass is another."""
    for module in network.modules():
        if type(module) is nn.Linear and "forward" not in vars(module):
            forward: Any = Product(module.weight, module.bias, rows)
            module.forward = forward


class Product:
    """The product of a layer.  `rows`: up to so many, and more than one, meet packed weights if these are float32."""

    def __init__(
        self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None, rows: int = 0
    ) -> None:
        self.weight, self.bias = weight, bias
        self.rows = rows if weight.device.type == "cpu" and weight.dtype == torch.float32 else 0
        self._packed: Tensor | None = None

    def __call__(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The layer's output."""
        if not 1 < x.numel() // x.shape[-1] <= self.rows:
            return nn.functional.linear(x, self.weight, self.bias)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
