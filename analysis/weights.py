"""How the weights of a model lie in memory: as it came, or packed into 8 or 4 bits for a processor.

A token that is generated alone must fetch every weight, so its time is theirs: fewer bytes, or bytes in the order in
which they are read, are all that helps.  Only CPUs pack here, with torch's own kernels; these multiply in bfloat16.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

WEIGHTS = ("model", "int8", "int4")
"""As the model came; 8 bits, a scale for each row; 4 bits, a scale and a minimum for 32 weights, like Q4_1 blocks."""
GROUP = 32


class Int8(nn.Module):
    """A linear layer whose weights are 8-bit integers times one scale a row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.bfloat16())
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        out = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]).bfloat16(), self.weight, self.scale)
        return _finish(out, x, self.bias)


class Int4(nn.Module):
    """A linear layer whose weights are 4-bit integers: of each 32, the smallest is 0 and the largest 15."""

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
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        return _finish(torch._weight_int4pack_mm_for_cpu(rows, self.weight, GROUP, self.scale), x, self.bias)


def _finish(out: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    out = out.view(*x.shape[:-1], -1).to(x.dtype)
    return out if bias is None else out + bias


def pack(network: PreTrainedModel, weights: str) -> None:
    """Replace the linear layers of a network on the CPU by packed ones, `weights`: int8 or int4.

    The output layer always gets 8 bits: in 4, it alone would cost 7 % of perplexity.  A layer whose size does not fit
    the kernel stays as it was.  Raises ValueError where packing is not possible.
    """
    if network.device.type != "cpu":
        raise ValueError(
            f"{weights} weights are for the CPU, and this model is on {network.device.type}: choose weights model"
        )
    output = network.get_output_embeddings()
    for name, module in list(network.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        outputs, inputs = module.weight.shape
        if outputs % 16 == 0 and inputs % GROUP == 0:
            fine = weights == "int8" or module is output
            network.set_submodule(name, (Int8 if fine else Int4)(module))


def check(weights: str) -> None:
    """Raises ValueError where there are no such weights."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, not {weights!r}")


def lay_out(network: PreTrainedModel) -> None:
    """Let wide float32 matrices lie with their outputs side by side: a single row then goes through them faster.

    Same numbers, same shapes, other strides; measured on a matrix of 1,536 × 576: 11 GB/s before, 18 after.
    """
    for module in network.modules():
        if (
            isinstance(module, nn.Linear)
            and module.weight.dtype == torch.float32
            and module.weight.device.type == "cpu"
        ):
            outputs, inputs = module.weight.shape
            if outputs >= 2 * inputs:
                module.weight.data = module.weight.data.T.contiguous().T
