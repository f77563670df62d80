"""ALiBi in two more dimensions of every head (positions.Alibi), for the families whose attention is adapted."""

import sys

import torch
from torch import Tensor, nn

from .rotary import ask


def slopes(attention: nn.Module, like: Tensor) -> Tensor:
    """The bias by which each head favours a key one place nearer, [heads], by the family's own function."""
    build = sys.modules[type(attention).__module__].build_alibi_tensor
    bias = build(torch.ones(1, 2, dtype=torch.int64, device=like.device), like.shape[1], torch.float32)
    return bias[:, 0, 1] - bias[:, 0, 0]


def carried(
    attention: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slope: Tensor,
    scaling: float,
    *,
    bias_scaled: bool = True,
) -> Tensor:
    """Attention with a bias of −slope × distance, [batch, tokens, heads, dim].

    `bias_scaled`: whether the family scales the bias with the scores.
    """
    # The slope, too, has more digits than half precision holds.
    query, dim = query.float(), query.shape[-1]
    pull = (slope if bias_scaled else slope / scaling)[None, :, None, None]
    query = torch.cat((query, pull.expand(*query.shape[:-1], 1), torch.zeros_like(query[..., :1])), -1)
    key = torch.cat((key, torch.zeros_like(key[..., :1]), torch.ones_like(key[..., :1])), -1)
    value = nn.functional.pad(value, (0, 2))
    return ask(attention, query, key, value, scaling=scaling)[..., :dim]
