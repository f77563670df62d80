"""Linear layers that read the same input, multiplied as one matrix.

Queries, keys and values, and the two halves of a gated MLP, are projected from one hidden state each, and one wide
product is faster than several narrow ones.  Which layers these are is found by looking at what they are handed, not by
their names.  Their weights lie behind one another in memory, each where its own layer still finds it: nothing is held
twice, and a network that shares them goes on as before.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .prepacked import Product


@contextmanager
def fusing(network: nn.Module, *, prepacks: bool = False) -> Generator[None]:
    """Fuse the layers of a network that a forward pass in this context hands the same input; `prepacks`: with weights
    packed once (prepacked.py)."""
    calls: list[tuple[nn.Linear, Tensor]] = []

    def look(module: nn.Linear, given: tuple) -> None:
        """Remember what a layer is handed."""
        calls.append((module, given[0]))

    # Those of which something else has changed the forward pass, such as its device, are left alone.
    linears = [m for m in network.modules() if type(m) is nn.Linear and "forward" not in vars(m)]
    hooks = [m.register_forward_pre_hook(look) for m in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    parents = {id(child): id(module) for module in network.modules() for child in module.children()}
    groups: dict[tuple, list[nn.Linear]] = {}
    for module, x in calls:
        # The inputs are kept until here, so no two of them have one id.
        groups.setdefault((id(x), parents[id(module)], _kind(module)), []).append(module)
    for group in groups.values():
        if len({id(module.weight) for module in group}) == len(group) > 1:
            _fuse(group, prepacks=prepacks)


def _kind(module: nn.Linear) -> tuple:
    """What layers have in common that can be one matrix."""
    weight = module.weight
    return weight.dtype, weight.device, weight.shape[1], module.bias is None


def _fuse(group: list[nn.Linear], *, prepacks: bool) -> None:
    weight = _joined([module.weight for module in group])
    bias = None if group[0].bias is None else torch.cat([module.bias.detach() for module in group])
    fused = _Fused(Product(weight, bias, prepacks=prepacks), [module.out_features for module in group])
    for number, module in enumerate(group):
        forward: Any = _Part(fused, number)
        module.forward = forward


def _joined(weights: list[Tensor]) -> Float[Tensor, "outputs inputs"]:
    """The weights as one matrix, of which each then is a part."""
    first, rows = weights[0], sum(len(w) for w in weights)
    begin, (down, across) = first.data_ptr(), first.stride()
    for w in weights:
        if w.stride() != (down, across) or w.data_ptr() != begin or _storage(w) != _storage(first):
            break
        begin += len(w) * down * w.element_size()
    else:
        # They have been joined before, for another twin of the same network.
        return first.detach().as_strided((rows, first.shape[1]), (down, across))
    # As they lay, which may be with their outputs side by side.
    beside = all(w.stride(0) == 1 for w in weights)
    whole = torch.cat([w.detach().T for w in weights], 1).T if beside else torch.cat([w.detach() for w in weights])
    for w, part in zip(weights, whole.split([len(w) for w in weights]), strict=True):
        w.data = part
    return whole


def _storage(w: Tensor) -> int:
    return w.untyped_storage().data_ptr()


class _Fused(threading.local):
    """One product for several layers.  What it gave to one is kept for the others of the same thread."""

    def __init__(self, product: Product, sizes: list[int]) -> None:
        self.product, self.sizes = product, sizes
        self.input: Tensor | None = None
        self.left: dict[int, Tensor] = {}

    def of(self, number: int, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The output of one layer."""
        if self.input is not x or number not in self.left:
            self.input, self.left = x, dict(enumerate(self.product(x).split(self.sizes, -1)))
        part = self.left.pop(number)
        if not self.left:
            self.input = None
        return part


class _Part:
    """The forward pass of a layer that is multiplied together with others."""

    def __init__(self, fused: _Fused, number: int) -> None:
        self.fused, self.number = fused, number

    def __call__(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return self.fused.of(self.number, x)
