"""Networks that leave queries and keys as they are, so that others rotate them.

A family's rotary module answers cos = 1 and sin = 0, which rotates nothing.  To multiply by these still costs as much
as to rotate.  So, where it is sure that a layer's attention does no more than that, it is left out.
"""

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .frequencies import Angles

ROTATES = "apply_rotary_pos_emb"
"""What families call the function that rotates queries and keys."""


class Unrotated(nn.Module):
    """Stands where a family's rotary module stood and leaves queries and keys as they are."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary
        self.fill = (1.0, 0.0)

    def forward(self, x: Tensor, position_ids: Tensor, *args, **kwargs) -> Angles:
        """Cosines of 1 and sines of 0, unless it is filled otherwise."""
        # At position 0: some scalings change, and stay changed, at a far position.
        cos, sin = self.rotary(x[:1, :1], torch.zeros_like(position_ids[:1, :1]), *args, **kwargs)
        return torch.full_like(cos, self.fill[0]), torch.full_like(sin, self.fill[1])


def leave_out(attention: nn.Module, width: int) -> None:
    """Let a layer's attention, whose module answers cos = 1 and sin = 0, call no function that rotates; `width`:
    dimensions that it rotates.  An attention that is not known to do without it is left alone."""
    if "forward" not in vars(attention) and (forward := _without(type(attention), width)) is not None:
        bound: Any = types.MethodType(forward, attention)
        attention.forward = bound


@functools.cache
def _without(kind: type[nn.Module], width: int) -> Callable | None:
    """The forward pass of attentions of this kind with queries and keys given back where they were rotated, two by two;
    None where it is not sure that this is the same."""
    forward, rotate = kind.forward, getattr(sys.modules[kind.__module__], ROTATES, None)
    # A decorated function is another's, which says nothing of what it calls.
    if not isinstance(forward, types.FunctionType) or forward.__globals__.get(ROTATES) is not rotate:
        return None
    if rotate is None or ROTATES not in forward.__code__.co_names or not _leaves(rotate, width):
        return None
    known = forward.__globals__ | {ROTATES: _given_back}
    twin = types.FunctionType(forward.__code__, known, forward.__name__, forward.__defaults__, forward.__closure__)
    twin.__kwdefaults__ = forward.__kwdefaults__
    return twin


def _given_back(query: Tensor, key: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return query, key


def _leaves(rotate: Callable, width: int) -> bool:
    """Whether queries and keys come back as they were from cos = 1 and sin = 0."""
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 2, 3, width, generator=draw), torch.randn(1, 1, 3, width, generator=draw)
    # Some families have one angle for two dimensions.
    for angles in (width, width // 2):
        one = torch.ones(1, 3, angles)
        try:
            out = rotate(query, key, one, torch.zeros_like(one))
        except (TypeError, ValueError, RuntimeError, IndexError):
            continue
        return isinstance(out, tuple) and len(out) == 2 and torch.equal(out[0], query) and torch.equal(out[1], key)
    return False
