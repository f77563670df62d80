"""How the weights of a model lie in memory: as it came, or packed into 8 or 4 bits for a processor.

A token that is generated alone must fetch every weight, so its time is theirs: fewer bytes, or bytes in the order in
which they are read, are all that helps.  Only CPUs pack here, with torch's own kernels; these multiply in bfloat16.
The output layer alone does not: its sums are exact to float32 rounding, so that logits are no coarser than the model's.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..families.fused import Fusable, joined
from .dtypes import WEIGHTS

GROUP = 32
OUTPUTS = 64
"""The kernel for 4 bits has the weights of so many outputs in one block at most: in whole blocks, those of several
layers lie behind one another as those of one would."""
DIGITS = 4
"""An input of the output layer is an integer of so many digits, each a signed byte, times one scale a row."""
LARGEST = 127 * 256 ** (DIGITS - 1)
ROWS = 16
"""From so many input rows on, float32 products are faster than those of digits."""
BLOCK = 1 << 18
"""Weights of the output layer that become float32 at a time: they stay in the processor's cache."""


class Int8(Fusable):
    """A linear layer whose weights are 8-bit integers times one scale a row."""

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        levels, scale = _to_8_bits(linear)
        self.register_buffer("weight", levels)
        self.register_buffer("scale", scale.bfloat16())
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Products in bfloat16, in the dtype of `x`."""
        return _times_8_bits(x, self.weight, self.scale, self.bias)

    @classmethod
    def fused(cls, layers: Sequence["Int8"], bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """One product for all of them."""
        weight, scale = (joined([getattr(layer, name) for layer in layers]) for name in ("weight", "scale"))
        return partial(_times_8_bits, weight=weight, scale=scale, bias=bias)


class Int4(Fusable):
    """A linear layer whose weights are 4-bit integers: of each 32, the smallest is 0 and the largest 15."""

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        groups = weight.unflatten(1, (-1, GROUP))
        low = groups.amin(-1)
        scale = ((groups.amax(-1) - low) / 15).clamp(min=1e-12)
        levels = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).flatten(1).to(torch.int32)
        self.register_buffer("weight", torch._convert_weight_to_int4pack_for_cpu(levels, 1))
        # The kernel counts levels from the middle one.
        self.register_buffer("scale", torch.stack((scale, low + 8 * scale), -1).transpose(0, 1).bfloat16().contiguous())
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Products in bfloat16, in the dtype of `x`."""
        return _times_4_bits(x, self.weight, self.scale, self.bias)

    @classmethod
    def fused(cls, layers: Sequence["Int4"], bias: Tensor | None) -> Callable[[Tensor], Tensor] | None:
        """One product for all of them; None where one of them, but the last, ends within a block of the kernel."""
        if any(len(layer.weight) % OUTPUTS for layer in layers[:-1]):
            return None
        weight, scale = joined([layer.weight for layer in layers]), joined([layer.scale for layer in layers], 1)
        return partial(_times_4_bits, weight=weight, scale=scale, bias=bias)


class Output(nn.Module):
    """An output layer of 8-bit integers times one scale a row, whose logits are exact to float32 rounding.

    Exact are the products with these integers, whatever the processor; the integers themselves are the model's weights
    to within 1/254 of the largest weight of a row.  Logits come in float32, whatever the inputs.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        levels, scale = _to_8_bits(linear)
        self.register_buffer("weight", levels)
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.digits = sums_of_bytes_are_exact(levels)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Logits in float32."""
        rows = x.reshape(-1, x.shape[-1]).float()
        out = (self._by_digits if self.digits and len(rows) < ROWS else self._by_blocks)(rows)
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias

    def _by_digits(self, rows: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        """Integer products, which no order of summation can change: inputs are rounded to 2⁻³¹ of their largest."""
        unit = rows.abs().amax(1, keepdim=True).double().clamp(min=1e-300) / LARGEST
        left, digits = (rows / unit).round().to(torch.int64), []
        for _ in range(DIGITS):
            digits.append((left + 128) % 256 - 128)
            left = (left - digits[-1]) // 256
        # The weights first, as they lie: the other way round they are brought into another order, anew each time.
        sums = _sums_of_bytes(self.weight, torch.cat(digits).to(torch.int8)).unflatten(0, (DIGITS, -1))
        # Each digit's in one piece of memory, in the pass over them that makes floats of them.
        sums = sums.to(torch.float32, memory_format=torch.contiguous_format)
        # The largest last: so the small ones are not rounded away one by one.
        out = sums[0]
        for i in range(1, DIGITS):
            out = out + sums[i] * 256.0**i
        return out * self.scale * unit.float()

    def _by_blocks(self, rows: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        """Float32 products with the integers, some rows of them at a time."""
        outputs, inputs = self.weight.shape
        size = max(1, BLOCK // inputs)
        block, out = rows.new_empty(min(size, outputs), inputs), rows.new_empty(outputs, len(rows))
        for begin in range(0, outputs, size):
            part = self.weight[begin : begin + size]
            torch.mm(block[: len(part)].copy_(part), rows.T, out=out[begin : begin + size])
        return out.T * self.scale


def sums_of_bytes_are_exact(weight: Tensor) -> bool:
    """Whether this processor adds up products of bytes and these weights [outputs, inputs] without loss.

    Older ones cut sums of two products off at 16 bits, which the largest inputs bring about if any do.
    """
    inputs = weight.shape[1]
    if inputs * 128**2 >= 2**31:
        return False
    expected = weight.sum(1, dtype=torch.int64)
    for rows in (1, ROWS - 1):
        same = torch.tensor([127, -128, 1, -1] * rows, dtype=torch.int8)
        try:
            sums = _sums_of_bytes(weight, same[:, None].expand(-1, inputs).contiguous())
        except RuntimeError:
            return False
        if not torch.equal(sums.long(), same.long()[:, None] * expected):
            return False
    return True


def _sums_of_bytes(weight: Tensor, rows: Tensor) -> Tensor:
    """Products [rows, outputs] of rows of bytes [rows, inputs] and weights [outputs, inputs], as 32-bit integers."""
    return torch._int_mm(weight, rows.T.contiguous()).T


def _to_8_bits(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weights as integers from −127 to 127, and the scale of each row."""
    weight = linear.weight.detach().float()
    scale = weight.abs().amax(1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8).contiguous(), scale


def _times_8_bits(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    out = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]).bfloat16(), weight, scale)
    return _finish(out, x, bias)


def _times_4_bits(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).bfloat16()
    # Where a layer is fused with others, its own scales lie among theirs.
    return _finish(torch._weight_int4pack_mm_for_cpu(rows, weight, GROUP, scale.contiguous()), x, bias)


def _finish(out: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    out = out.view(*x.shape[:-1], -1).to(x.dtype)
    return out if bias is None else out + bias


def make_linear(network: PreTrainedModel) -> None:
    """Let layers whose weights are transposed, as GPT-2's are, be linear ones: the same weights, where they lie.

    What is done with linear layers, such as packing, is done with them then.
    """
    for name, module in list(network.named_modules()):
        # One of which something else has changed the forward pass, such as its device, is left alone.
        if isinstance(module, Conv1D) and "forward" not in vars(module):
            linear = nn.Linear(module.nx, module.nf, device="meta")
            linear.weight, linear.bias = nn.Parameter(module.weight.detach().T, requires_grad=False), module.bias
            network.set_submodule(name, linear)


def pack(network: PreTrainedModel, weights: str) -> None:
    """Replace the linear layers of a network on the CPU by packed ones, `weights`: int8 or int4.

    The output layer always gets 8 bits (in 4, it alone would cost 7 % of perplexity) and exact products.  Another whose
    size does not fit the kernel, or that does more than multiply, stays as it was.  Raises ValueError where packing is
    not possible, or none would fit.
    """
    if network.device.type != "cpu":
        raise ValueError(
            f"{weights} weights are for the CPU, and this model is on {network.device.type}: choose weights model"
        )
    output = network.get_output_embeddings()
    linears = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear) and _only_multiplies(m)}
    fitting = {name: m for name, m in linears.items() if m is output or _fits(m)}
    if all(module is output for module in fitting.values()):
        raise ValueError(
            f"{weights} weights are for linear layers of n × 16 outputs and n × {GROUP} inputs, and this "
            f"{network.config.model_type} has none before its output: choose weights model"
        )
    for name, module in fitting.items():
        kind = Output if module is output else Int8 if weights == "int8" else Int4
        network.set_submodule(name, kind(module))


def _only_multiplies(linear: nn.Linear) -> bool:
    """Whether a linear layer does no more than that: a router may be derived from one, and choose."""
    if type(linear) is nn.Linear:
        return True
    row = linear.weight[:1]
    out, expected = linear(row), nn.functional.linear(row, linear.weight, linear.bias)
    return isinstance(out, Tensor) and bool((out - expected).norm() <= 0.01 * expected.norm())


def _fits(linear: nn.Linear) -> bool:
    return linear.out_features % 16 == 0 and linear.in_features % GROUP == 0


def check(weights: str) -> None:
    """Raises ValueError where there are no such weights."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, not {weights!r}")


LARGE = 1 << 26
"""Weights of a matrix that takes longer to be laid out than a conversation gains by it: one row goes through an output
layer of 262,144 × 640 in 57 ms, in 46 when it is laid out, and that takes 2 s."""


def lay_out(network: PreTrainedModel) -> None:
    """Let float32 matrices, but for very large ones, lie with their outputs side by side: a few rows then go through
    them faster.

    Same numbers, same shapes, other strides.  Measured on a matrix of 1,536 × 576 without AVX-512, one row: 11 GB/s
    before, 18 after; on one of 576 × 1,536 with AVX-512, 16 rows: 85 GFLOP/s before, 225 after.  From 64 rows on it
    makes no difference.
    """
    for module in network.modules():
        if (
            isinstance(module, nn.Linear)
            and module.weight.dtype == torch.float32
            and module.weight.device.type == "cpu"
            and module.weight.numel() < LARGE
            and module.weight.stride(0) != 1
        ):
            module.weight.data = module.weight.data.T.contiguous().T
