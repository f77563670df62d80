"""Linear layers that read the same input, multiplied as one matrix.

Queries, keys and values, and the two halves of a gated MLP, are projected from one hidden state each, and one wide
product is faster than several narrow ones.  Which layers these are is found by looking at what they are handed, not by
their names.  Their weights lie behind one another in memory, each where its own layer still finds it: nothing is held
twice, and a network that shares them goes on as before.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .prepacked import Product


class Fusable(nn.Module, ABC):
    """A linear layer of a kind of its own, with weights [outputs, …], that can be multiplied together with others."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    @abstractmethod
    def fused(cls, layers: Sequence[Any], bias: Tensor | None) -> Callable[[Tensor], Tensor] | None:
        """One product of x [*batch, inputs] with the weights of these layers, which are parts of its own from then on:
        their outputs behind one another, and `bias`, that of them all.  None where they cannot be one."""


Linear = nn.Linear | Fusable


@contextmanager
def fusing(network: nn.Module, rows: int = 0) -> Generator[None]:
    """Fuse the layers of a network that a forward pass in this context hands the same input; `rows`: up to so
    many meet weights that are packed once (prepacked.py)."""
    calls: list[tuple[Linear, Tensor]] = []

    def look(module: Linear, given: tuple) -> None:
        """Remember what a layer is handed."""
        calls.append((module, given[0]))

    # Those of which something else has changed the forward pass, such as its device, are left alone.
    kinds = (m for m in network.modules() if type(m) is nn.Linear or isinstance(m, Fusable))
    linears = [m for m in kinds if "forward" not in vars(m)]
    hooks = [m.register_forward_pre_hook(look) for m in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    parents = {id(child): id(module) for module in network.modules() for child in module.children()}
    groups: dict[tuple, list[Linear]] = {}
    for module, x in calls:
        # The inputs are kept until here, so no two of them have one id.
        groups.setdefault((id(x), parents[id(module)], _kind(module)), []).append(module)
    for group in groups.values():
        if len({id(module.weight) for module in group}) == len(group) > 1:
            _fuse(group, rows)


def _kind(module: Linear) -> tuple:
    """What layers have in common that can be one matrix."""
    weight = module.weight
    return type(module), weight.dtype, weight.device, weight.shape[1], module.bias is None


def _fuse(group: list[Linear], rows: int) -> None:
    # All have one, or none (`_kind`).
    biases = [module.bias.detach() for module in group if module.bias is not None]
    first, bias = group[0], torch.cat(biases) if biases else None
    if isinstance(first, Fusable):
        product = first.fused(group, bias)
    else:
        product = Product(joined([module.weight for module in group]), bias, rows)
    if product is None:
        return
    fused = _Fused(product, [len(module.weight) for module in group])
    for number, module in enumerate(group):
        forward: Any = _Part(fused, number)
        module.forward = forward


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors, alike in all other dimensions, as one along this, of which each then is a part."""
    first, size = parts[0], sum(part.shape[dim] for part in parts)
    begin = first.data_ptr()
    for part in parts:
        if part.stride() != first.stride() or part.data_ptr() != begin or _storage(part) != _storage(first):
            break
        begin += part.shape[dim] * first.stride(dim) * part.element_size()
    else:
        # They have been joined before, for another twin of the same network.
        return first.detach().as_strided((*first.shape[:dim], size, *first.shape[dim + 1 :]), first.stride())
    # As they lay, which may be with their outputs side by side.
    beside = first.ndim == 2 and all(part.stride(0) == 1 for part in parts)
    whole = (
        torch.cat([p.detach().T for p in parts], 1 - dim).T if beside else torch.cat([p.detach() for p in parts], dim)
    )
    for part, its in zip(parts, whole.split([p.shape[dim] for p in parts], dim), strict=True):
        part.data = its
    return whole


def _storage(w: Tensor) -> int:
    return w.untyped_storage().data_ptr()


class _Fused(threading.local):
    """One product for several layers.  What it gave to one is kept for the others of the same thread."""

    def __init__(self, product: Callable[[Tensor], Tensor], sizes: list[int]) -> None:
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
