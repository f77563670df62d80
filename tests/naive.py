"""The rules once more, as plainly as they can be said: what the engine must equal.

One query at a time, a list of the text positions that it reaches, and the family's own pass over whole matrices.
Slow, and only for tiny models.
"""

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def kept(t: int, sinks: int, window: int) -> list[int]:
    """Text positions that query t attends to: s + r cached tokens and itself, evicted after the forward pass."""
    cached: list[int] = []
    for token in range(t):
        cached.append(token)
        if len(cached) > sinks + window:
            cached = cached[:sinks] + cached[-window:]
    return [*cached, t]


def read(model: PreTrainedModel, tokens, sinks: int, window: int, positions: str) -> tuple[np.ndarray, np.ndarray]:
    """NLL of tokens 1 … and attention to the first 4 tokens [layers, heads, queries] of a llama, token by token."""
    config = model.config
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    dim = config.hidden_size // heads
    count = len(tokens) - 1
    reach = [kept(t, sinks, window) for t in range(count)]
    mass = np.zeros((config.num_hidden_layers, heads, count), np.float32)
    with torch.no_grad():
        hidden = model.model.embed_tokens(torch.as_tensor(np.asarray(tokens[:count], np.int64)))
        for depth, layer in enumerate(model.model.layers):
            x = layer.input_layernorm(hidden)
            q, k, v = (
                p(x).view(count, -1, dim)
                for p in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            )
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            out = torch.zeros(count, heads, dim)
            for t in range(count):
                slots = torch.arange(len(reach[t])) if positions == "cache" else torch.tensor(reach[t])
                cos, sin = model.model.rotary_emb(x[None], slots[None])
                _, keys = apply_rotary_pos_emb(k[None, reach[t]], k[None, reach[t]], cos, sin, unsqueeze_dim=2)
                query, _ = apply_rotary_pos_emb(q[None, [t]], q[None, [t]], cos[:, -1:], sin[:, -1:], unsqueeze_dim=2)
                weights = torch.softmax((query[0, 0][None] * keys[0]).sum(-1).T * dim**-0.5, -1)
                out[t] = torch.einsum("hs,shd->hd", weights, v[reach[t]])
                mass[depth, :, t] = weights[:, [i for i, p in enumerate(reach[t]) if p < 4]].sum(-1)
            hidden = hidden + layer.self_attn.o_proj(out.flatten(1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits = model.lm_head(model.model.norm(hidden))
    nll = -torch.log_softmax(logits, -1)[torch.arange(count), torch.as_tensor(np.asarray(tokens[1:], np.int64))]
    return nll.numpy(), mass
