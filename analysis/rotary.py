"""Positions taken out of the model's hands.

A cache that evicts must hold keys as they are *before* rotary embedding, since the place at which a key stands changes
when others leave.  So an adapted network rotates nothing: its rotary modules answer cos = 1 and sin = 0, and the
attention function (attention.py) rotates queries and keys itself, with the family's own rotary module and the family's
own `apply_rotary_pos_emb`, at positions that we choose.  Nothing here knows what is kept or why.
"""

import copy
import inspect
import sys
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

IMPLEMENTATION = "sinkscope"

Angles = tuple[Tensor, Tensor]


class Unrotated(nn.Module):
    """Stands where a family's rotary module stood and leaves queries and keys as they are."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary
        self.fill = (1.0, 0.0)

    def forward(self, x: Tensor, position_ids: Tensor, *args, **kwargs) -> Angles:
        cos, sin = self.rotary(x[:1, :1], position_ids[:1, :1], *args, **kwargs)
        return torch.full_like(cos, self.fill[0]), torch.full_like(sin, self.fill[1])


@dataclass(eq=False)
class Adapted:
    """A network whose positions are ours, with the attention module and the rotated head dimensions of each layer."""

    network: PreTrainedModel
    rotary: nn.Module
    attentions: dict[int, nn.Module]
    rotated: dict[int, int]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    _kinds: dict[int, tuple] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    def angles(self, attention: nn.Module, positions: Tensor) -> Angles | None:
        """cos and sin, each [1, tokens, dim], of this layer at integer positions [tokens]; None: no rotary."""
        if self.rotated[attention.layer_idx] == 0:
            return None
        x = torch.empty(0, device=positions.device, dtype=self.dtype)
        return self.rotary(x, positions[None], *self._kind(attention))

    def kind(self, attention: nn.Module) -> tuple:
        """What tells the angles of one layer from those of another: equal kinds have equal angles."""
        layer = attention.layer_idx
        if layer not in self._kinds:
            self._kinds[layer] = (self.rotated[layer] == 0, *self._kind(attention))
        return self._kinds[layer]

    def _kind(self, attention: nn.Module) -> tuple:
        takes_kind = "layer_type" in inspect.signature(self.rotary.forward).parameters
        return (attention.layer_type,) if takes_kind else ()

    def rotate(
        self, attention: nn.Module, x: Float[Tensor, "batch heads tokens dim"], angles: Angles | None
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """x rotated by the family's own function; dimensions that the family leaves alone stay as they are."""
        if angles is None:
            return x
        apply = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        dims = self.rotated[attention.layer_idx]
        if dims == x.shape[-1]:
            return apply(x, x[:, :0], *angles)[0]
        return torch.cat((apply(x[..., :dims], x[:, :0, :, :dims], *angles)[0], x[..., dims:]), -1)


def adapt(network: PreTrainedModel) -> Adapted:
    """An adapted twin of a network: the same weights in memory, rotating nothing.  The network itself is untouched.

    Raises ValueError, naming the family, where its cached keys cannot be moved by this mechanism.
    """
    family, config = network.config.model_type, network.config
    shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared).eval().requires_grad_(False)
    places = [n for n, m in twin.named_modules() if type(m).__name__.endswith("RotaryEmbedding")]
    if len(places) != 1:
        raise ValueError(
            f"the family {family!r} is not supported yet: its positions are not one rotary embedding that can be taken "
            "out of the model; choose a model of the llama, mistral, qwen, gemma, phi3, gpt_neox or olmo kind"
        )
    rotary = twin.get_submodule(places[0])
    twin.set_submodule(places[0], Unrotated(rotary))
    twin.config._attn_implementation = IMPLEMENTATION
    for module in twin.modules():
        if getattr(module, "config", None) is not None:
            module.config._attn_implementation = IMPLEMENTATION
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    adapted = Adapted(
        network=twin,
        rotary=rotary,
        attentions={},
        rotated={},
        layers=layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
    _probe(adapted, twin.get_submodule(places[0]))
    return adapted


@dataclass(eq=False)
class _Probe:
    """Sees which dimensions of a query are zero when cos and sin are: those are the ones that the family rotates."""

    adapted: Adapted

    def attend(self, attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, **_) -> Tensor:
        rotated = query.shape[-1] if query.is_meta else int((query == 0).flatten(0, 2).all(0).sum())
        self.adapted.attentions[attention.layer_idx] = attention
        self.adapted.rotated[attention.layer_idx] = rotated
        # As many heads of values as of queries, so that any family can go on from here.
        return query.transpose(1, 2)


def _probe(adapted: Adapted, unrotated: Unrotated) -> None:
    """Fill in what only a forward pass tells: which module is the attention of each layer, and what it rotates."""
    family = adapted.network.config.model_type
    ids = torch.arange(2, device=adapted.device)[None]
    unrotated.fill = (0.0, 0.0)
    try:
        with torch.inference_mode():
            adapted.network(input_ids=ids, use_cache=False, logits_to_keep=1, reading=_Probe(adapted))
    except (TypeError, AttributeError, KeyError, IndexError, RuntimeError) as e:
        raise ValueError(f"the family {family!r} is not supported yet: its forward pass cannot be read ({e})") from e
    finally:
        unrotated.fill = (1.0, 0.0)
    if sorted(adapted.rotated) != list(range(adapted.layers)):
        raise ValueError(
            f"the family {family!r} is not supported yet: {len(adapted.rotated)} of its {adapted.layers} layers use "
            "transformers' attention interface"
        )


def _attention(attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, *, reading, **kwargs):
    """What transformers calls for every layer: the chunk that is being read knows what to do."""
    return reading.attend(attention, query, key, value, **kwargs), None


# No mask function is registered beside it: then transformers makes no mask, and looks for nothing on the host.
AttentionInterface.register(IMPLEMENTATION, _attention)
