"""BLOOM (Scao et al. 2022): ALiBi, in an attention class of its own that adds the residual itself."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .bias import carried, slopes
from .positions import Alibi, AttentionModule


class Attention(nn.Module):
    """BLOOM's projections around our attention."""

    def __init__(self, inner: AttentionModule) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: Tensor, residual: Tensor, **_) -> tuple[Tensor, None]:
        """The layer's output, from whoever is reading."""
        inner = self.inner
        query, key, value = inner._reshape(inner.query_key_value(hidden_states))
        out = carried(inner, query, key, value, slopes(inner, query), inner.inv_norm_factor, bias_scaled=False)
        return inner.dense(out.flatten(2)) + residual, None


def adapt(twin: PreTrainedModel) -> Alibi:
    """Replace the attention of every layer, in place; its positions are ALiBi."""
    transformer: Any = twin.transformer
    for layer in transformer.h:
        layer.self_attention = Attention(layer.self_attention)
    return Alibi()
