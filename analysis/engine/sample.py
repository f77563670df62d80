"""A small network of the same making as a large one: what is tried at loading, in its place.

Everything that decides how a family attends is kept: its layers, one of each making with the weights that it has, its
norms and positions.  Left out are the layers that are made like others, and nearly all of the vocabulary.  Windows
become so small that a short text goes beyond them.  It computes in float32, in which a wrong mask cannot hide behind
rounding.  Weights that are float32 already are not copied; the network itself is never touched.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..families.rotary import copied

VOCABULARY, WINDOW = 256, 11
LEAST, MOST = 2, 8
"""Layers of a sample."""
ROOM = 4 << 30
"""Bytes that the float32 weights of a sample may take; a larger one keeps the weights that the network has."""
REACH = re.compile(r"window|chunk|index_?topk|local_attention|block_size|token_budget")
"""Names of sizes beyond which a layer attends in another way."""
INDEX = re.compile(r"^(layer_?(idx|id|index|number|num)|idx)$")


def sample(network: PreTrainedModel, *, whole: bool = False) -> PreTrainedModel:
    """A smaller network with the same layers, float32 where it can be; `whole`: with all layers and the windows as
    they are."""
    small = copied(network) if whole else _shortened(network)
    _widen(small)
    if not whole:
        _narrow(small)
    return small


def packed(network: nn.Module) -> bool:
    """Whether the weights are not plain numbers, and are multiplied by kernels of their own."""
    weights = (getattr(m, "weight", None) for m in network.modules())
    integers = any(isinstance(w, Tensor) and not w.is_floating_point() for w in weights)
    return integers or getattr(network, "is_quantized", False)


def _shortened(network: PreTrainedModel) -> PreTrainedModel:
    """The same network with one layer of each making; all weights are shared with it."""
    count = getattr(network.config, "num_hidden_layers", 0)
    named = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    lists = [m for n, m in named if not any(n.startswith(other + ".") for other, _ in named)]
    memo: dict[int, Any] = {}
    kept = _kept(lists, network.config) if lists and count > LEAST else list(range(count))
    if len(kept) < count:
        for layers in lists:
            memo |= {id(m): nn.Identity() for i, m in enumerate(layers) if i not in kept}
    names = [n for n, m in named if any(m is layers for layers in lists)]
    small = copied(network, memo)
    if len(kept) < count:
        for name in names:
            layers: Any = small.get_submodule(name)
            _shorten(layers, kept)
        for config in {id(c): c for m in small.modules() if (c := getattr(m, "config", None)) is not None}.values():
            _shorten_config(config, kept, count)
    return small


def _kept(lists: list[nn.ModuleList], config: Any) -> list[int]:
    """One layer of each making, and no fewer than two."""
    count = len(lists[0])
    first: dict[tuple, int] = {}
    for i in range(count):
        making = tuple(_making(layers[i]) for layers in lists)
        per_layer = tuple(str(v[i]) for v in vars(config).values() if isinstance(v, list | tuple) and len(v) == count)
        first.setdefault((making, per_layer), i)
    kept = sorted(first.values())[:MOST]
    return sorted({*kept, *range(min(LEAST, count))}) if len(kept) < LEAST else kept


def _making(layer: nn.Module) -> tuple:
    """What a layer is made of: its modules and the plain settings of each, but for which layer it is."""
    return tuple(
        (name, type(m), tuple((k, v) for k, v in vars(m).items() if _plain(k, v))) for name, m in layer.named_modules()
    )


def _plain(name: str, value: Any) -> bool:
    return isinstance(value, int | float | str | bool | None) and not INDEX.match(name)


def _shorten(layers: nn.ModuleList, kept: list[int]) -> None:
    for new, old in enumerate(kept):
        for module in layers[old].modules():
            for name, value in vars(module).items():
                if INDEX.match(name) and value == old:
                    setattr(module, name, new)
    layers._modules = {str(new): layers[old] for new, old in enumerate(kept)}


def _shorten_config(config: Any, kept: list[int], count: int) -> None:
    if getattr(config, "num_hidden_layers", None) != count:
        return
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(config, name, type(value)(value[i] for i in kept))
    config.num_hidden_layers = len(kept)


def _widen(small: PreTrainedModel) -> None:
    """A vocabulary of a few tokens, and float32 weights, where they are plain numbers."""
    _cut_vocabulary(small)
    if packed(small) or 4 * sum(p.numel() for p in small.parameters() if p.dtype != torch.float32) > ROOM:
        return
    for module in small.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.is_floating_point() and weight.dtype != torch.float32:
                module._parameters[name] = nn.Parameter(weight.float(), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point() and buffer.dtype != torch.float32:
                module._buffers[name] = buffer.float()


def _cut_vocabulary(small: PreTrainedModel) -> None:
    embedding, head = small.get_input_embeddings(), small.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or type(head) is not nn.Linear:
        return
    count = embedding.num_embeddings
    if head.out_features != count or count <= VOCABULARY:
        return
    rows = torch.linspace(0, count - 1, VOCABULARY, device=embedding.weight.device).long()
    embedding.weight = _taken(embedding.weight, rows)
    embedding.num_embeddings, embedding.padding_idx = VOCABULARY, None
    head.weight, head.out_features = _taken(head.weight, rows), VOCABULARY
    if head.bias is not None:
        head.bias = _taken(head.bias, rows)
    for module in small.modules():
        if getattr(getattr(module, "config", None), "vocab_size", None) == count:
            config: Any = module.config
            config.vocab_size = VOCABULARY


def _taken(weight: Tensor, rows: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach()[rows.to(weight.device)], requires_grad=False)


def _narrow(small: PreTrainedModel) -> None:
    """Windows that a short text goes beyond."""
    owners = [*small.modules(), *(m.config for m in small.modules() if getattr(m, "config", None) is not None)]
    for owner in owners:
        for name, value in list(vars(owner).items()):
            if type(value) is int and value > WINDOW and REACH.search(name) and "layer" not in name:
                setattr(owner, name, WINDOW)
