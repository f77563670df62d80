"""The rules once more, as plainly as they can be said: what the engine must equal.

One query at a time, a list of the text positions that it reaches, and the family's own pass over whole matrices.
Slow, and only for tiny models.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from analysis.families.positions import Angles, AttentionModule
from analysis.families.rotary import Adapted


def kept(t: int, sinks: int, window: int, step: int = 1) -> list[int]:
    """Text positions that query t attends to: s + r cached tokens and itself, evicted after the forward pass, `step`
    tokens together."""
    cached: list[int] = []
    for token in range(t):
        cached.append(token)
        if len(cached) > sinks + window:
            cached = cached[:sinks] + cached[sinks + step :]
    return [*cached, t]


def edge(t: int, sinks: int, window: int, step: int) -> int:
    """The oldest token of the window that query t reaches: `step` tokens leave together, and one of these groups begins
    behind the sinks, whether those are held or not."""
    return next(first for first in itertools.count(sinks % step, step) if t - first <= window)


def standing(model: Adapted, attention: AttentionModule, count: int) -> Callable[..., Angles | None]:
    """What `rotate` needs for any of the positions 0 … count − 1 in a layer, which are asked for once."""
    angles = model.angles(attention, torch.arange(count))
    return lambda positions: None if angles is None else (angles[0][:, positions], angles[1][:, positions])


def read(
    model: PreTrainedModel, tokens, sinks: int, window: int, positions: str, step: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """NLL of tokens 1 … and attention to the first 4 tokens [layers, heads, queries] of a llama, token by token.

    Kept, since an engine is compared with it at several sizes of its chunks; so nobody may change the model.
    """
    return _read(model, tuple(map(int, tokens)), sinks, window, positions, step)


@functools.lru_cache(maxsize=64)
def _read(
    model: PreTrainedModel, tokens, sinks: int, window: int, positions: str, step: int
) -> tuple[np.ndarray, np.ndarray]:
    config = model.config
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    dim = config.hidden_size // heads
    count = len(tokens) - 1
    reach = [kept(t, sinks, window, step) for t in range(count)]
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


class OneByOne:
    """A llama that reads one token at a time: per layer a plain list of kept keys, rotated by slot for every query."""

    def __init__(self, model: PreTrainedModel, sinks: int, window: int | None) -> None:
        self.model, self.sinks, self.window = model, sinks, window
        self.kept: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in model.model.layers]

    @torch.no_grad()
    def logits(self, token: int) -> torch.Tensor:
        """Logits [vocabulary] of what follows this token."""
        model, config = self.model, self.model.config
        dim = config.hidden_size // config.num_attention_heads
        groups = config.num_attention_heads // config.num_key_value_heads
        hidden = model.model.embed_tokens(torch.tensor([token]))
        for layer, kept in zip(model.model.layers, self.kept, strict=True):
            x, attention = layer.input_layernorm(hidden), layer.self_attn
            kept.append((attention.k_proj(x).view(-1, dim), attention.v_proj(x).view(-1, dim)))
            keys, values = (
                torch.stack(t).repeat_interleave(groups, 1).transpose(0, 1) for t in zip(*kept, strict=True)
            )
            cos, sin = model.model.rotary_emb(x[None], torch.arange(len(kept))[None])
            query = attention.q_proj(x).view(-1, 1, dim)
            query, _ = apply_rotary_pos_emb(query[None], query[None], cos[:, -1:], sin[:, -1:])
            _, keys = apply_rotary_pos_emb(keys[None], keys[None], cos, sin)
            weights = torch.softmax(query[0] @ keys[0].transpose(1, 2) * dim**-0.5, -1)
            hidden = hidden + attention.o_proj((weights @ values).flatten()[None])
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            if self.window is not None and len(kept) > self.sinks + self.window:
                del kept[self.sinks]
        return model.lm_head(model.model.norm(hidden))[0]
