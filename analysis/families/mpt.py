"""MPT (MosaicML 2023): ALiBi, in an attention class of its own."""

import sys
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .bias import carried
from .positions import Alibi, AttentionModule

TAKEN = 8
"""What transformers takes for `alibi_bias_max`, whatever a configuration says (MptModel.forward)."""


class Attention(nn.Module):
    """MPT's projections around our attention."""

    def __init__(self, inner: AttentionModule, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, hidden_states: Tensor, **_) -> tuple[Tensor, None]:
        """The layer's output, from whoever is reading."""
        inner = self.inner
        fused = inner.Wqkv(hidden_states)
        if inner.clip_qkv:
            fused = fused.clamp(-inner.clip_qkv, inner.clip_qkv)
        query, key, value = (
            x.unflatten(-1, (inner.n_heads, inner.head_dim)).transpose(1, 2) for x in fused.chunk(3, -1)
        )
        build = sys.modules[type(inner).__module__].build_mpt_alibi_tensor
        bias = build(inner.n_heads, 2, self.most, device=query.device)
        out = carried(inner, query, key, value, bias[:, 0, 1] - bias[:, 0, 0], inner.softmax_scale, bias_scaled=False)
        return inner.out_proj(out.flatten(2)), None


def adapt(twin: PreTrainedModel) -> Alibi:
    """Replace the attention of every layer, in place; its positions are ALiBi.

    Raises ValueError where they are not, or are not what the model was trained with.
    """
    attention = twin.config.attn_config
    if not attention.alibi:
        raise ValueError("this MPT model was trained without ALiBi, which is not supported yet: choose another one")
    if attention.alibi_bias_max != TAKEN:
        raise ValueError(
            f"this MPT model was trained with an ALiBi of alibi_bias_max {attention.alibi_bias_max}, and transformers "
            f"reads every MPT model with {TAKEN}, so its own numbers are wrong: choose another one"
        )
    transformer: Any = twin.transformer
    for block in transformer.blocks:
        block.attn = Attention(block.attn, attention.alibi_bias_max)
    return Alibi()
