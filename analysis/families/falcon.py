"""Falcon (Almazrouei et al. 2023): rotary positions, or ALiBi in its small models, in an attention class of its own."""

import sys
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .bias import carried, slopes
from .positions import Alibi, AttentionModule
from .rotary import ask


class Attention(nn.Module):
    """Falcon's projections around our attention.  Keys of a group are kept once, where Falcon repeats them."""

    def __init__(self, inner: AttentionModule, alibi: bool) -> None:
        super().__init__()
        self.inner, self.alibi = inner, alibi

    def forward(
        self, hidden_states: Tensor, alibi: Tensor | None = None, position_embeddings=None, **_
    ) -> tuple[Tensor, None]:
        """The layer's output, from whoever is reading."""
        inner = self.inner
        fused = inner.query_key_value(hidden_states)
        if inner.new_decoder_architecture:
            groups = inner.num_heads // inner.num_kv_heads
            parts = fused.unflatten(-1, (inner.num_kv_heads, groups + 2, inner.head_dim))
            query, key, value = parts[..., :-2, :].flatten(2, 3), parts[..., -2, :], parts[..., -1, :]
        else:
            query, key, value = inner._split_heads(fused)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if self.alibi:
            out = carried(inner, query, key, value, slopes(inner, query), inner.inv_norm_factor)
        else:
            apply = sys.modules[type(inner).__module__].apply_rotary_pos_emb
            query, key = apply(query, key, *(position_embeddings or ()))
            out = ask(inner, query, key, value, scaling=inner.inv_norm_factor)
        return inner.dense(out.flatten(2)), None


def adapt(twin: PreTrainedModel) -> Alibi | None:
    """Replace the attention of every layer, in place; its positions are ALiBi, or None where they are rotary."""
    alibi = twin.config.alibi
    transformer: Any = twin.transformer
    for layer in transformer.h:
        layer.self_attention = Attention(layer.self_attention, alibi)
    return Alibi() if alibi else None
