"""A model with fewer KV heads than it was trained with: heads of a group are averaged (Ainslie et al. 2023).

Without the training that the paper does afterwards: so that a person sees what the smaller cache costs without it.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

PROJECTIONS = "k_proj", "v_proj"


def pool(network: PreTrainedModel, kv_heads: int) -> bool:
    """Average the KV heads of a network down to `kv_heads`, in place; whether it had more.

    Raises ValueError where that number does not divide them, where keys and values have no plain matrices of their own,
    or where each head has a norm.
    """
    config = network.config
    heads = config.num_attention_heads
    before = getattr(config, "num_key_value_heads", None) or heads
    if kv_heads < 1 or before % kv_heads:
        fits = ", ".join(str(n) for n in range(1, before + 1) if before % n == 0)
        raise ValueError(f"{kv_heads} KV heads cannot be made of {before}: choose one of {fits}")
    if kv_heads == before:
        return False
    # Layers that do more than multiply, as quantized ones do, would be others when they are averaged.
    plain = [m for m in network.modules() if all(type(getattr(m, name, None)) is nn.Linear for name in PROJECTIONS)]
    layers: list[Any] = plain
    if len(layers) != config.num_hidden_layers:
        raise ValueError(
            f"the family {config.model_type!r} has no plain matrices k_proj and v_proj in each of its layers, so its "
            "KV heads are not averaged: leave kv-heads as they are"
        )
    if any(isinstance(part, nn.ModuleList) and len(part) == before for layer in layers for part in layer.modules()):
        raise ValueError(
            f"the family {config.model_type!r} normalises each head by itself, so its KV heads are not averaged: leave "
            "kv-heads as they are"
        )
    for layer in layers:
        for name in PROJECTIONS:
            setattr(layer, name, _averaged(getattr(layer, name), before, kv_heads))
        layer.num_key_value_groups = heads // kv_heads
        if "num_key_value_heads" in vars(layer):
            layer.num_key_value_heads = kv_heads
    config.num_key_value_heads = kv_heads
    return True


def _averaged(linear: nn.Linear, before: int, after: int) -> nn.Linear:
    def average(rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (after, before // after, -1)).mean(1).flatten(0, 1)

    weight = average(linear.weight.detach())
    new = nn.Linear(
        weight.shape[1], weight.shape[0], bias=linear.bias is not None, device=weight.device, dtype=weight.dtype
    )
    new.weight.data = weight
    if linear.bias is not None:
        new.bias.data = average(linear.bias.detach())
    return new.requires_grad_(False)
