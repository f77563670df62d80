"""Rotary frequencies that depend on the length of the context: longrope, dynamic NTK, and amplitudes such as phimoe's.

Some families choose their frequencies anew in every forward pass, by the largest position that is asked for.  Keys that
are read in chunks, or that stay in a cache, would then meet queries that were rotated with other frequencies.  So here
the choice is made once for a whole pass, by the family's own rule, and by nothing but a length: all lengths of one
*regime* are rotated alike, and where a regime ends, a pass ends too.

What "length" is when tokens are evicted is a decision: the distance from the first position that a query reaches to its
own, both counted, in the positions that the policy gives (`Band.length_of`).  It is the largest position, counted from
1, that the family would see if it were given the cache as its text.  Under dense attention it is the number of tokens
read; with cache positions and under a window it never passes the size of the cache and the query itself, so a small
cache keeps the frequencies of short texts for ever; with text positions and sinks it grows with the text.

What stays as it was: a cached key is rotated anew when the regime changes, but the hidden states from which it was
computed are those of its own moment.  (A forward pass over the whole prefix would compute these again, too, with the
frequencies of the longer text; `recompute` does.)
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Angles = tuple[Tensor, Tensor]
FAR = 8
"""How many times its trained length a module is asked about, to see whether its rule is one that is known."""


@dataclass(frozen=True)
class Rule:
    """At which lengths of the context a rotary module takes other frequencies.

    `steps`: longest contexts before a change (longrope: one); `growing`: beyond this length every length has its own
    (dynamic NTK), None where there is no such length.
    """

    steps: tuple[int, ...] = ()
    growing: int | None = None

    def __bool__(self) -> bool:
        return bool(self.steps) or self.growing is not None

    def regime(self, length: int) -> int:
        """The shortest context that is rotated as one of `length` tokens is."""
        if self.growing is not None and length > self.growing:
            return length
        return max((step + 1 for step in self.steps if step < length), default=1)

    def regime_end(self, length: int) -> int | None:
        """The longest context that is rotated as one of `length` tokens is; None where no length changes anything."""
        if self.growing is not None and length > self.growing:
            return length
        ends = [end for end in (*self.steps, self.growing) if end is not None and end >= length]
        return min(ends, default=None)


def rule_of(module: nn.Module, layer_types: Sequence[str]) -> Rule:
    """The rule of a rotary module; `layer_types`: those of its network's layers, where it is told them."""
    layer_types = _rotated(module, layer_types)
    kinds = _by_layer_type(getattr(module, "rope_type", "default"), layer_types)
    config = getattr(module, "config", None)
    parameters = _by_layer_type(getattr(config, "rope_parameters", None), layer_types)
    steps, growing = set(), None
    for kind, of_kind in zip(kinds, parameters, strict=True):
        if kind == "longrope" and any(of_kind[f"short_{n}"] != of_kind[f"long_{n}"] for n in _of_both(of_kind)):
            steps.add(int(of_kind["original_max_position_embeddings"]))
        elif "dynamic" in kind:
            length: Any = module.original_max_seq_len
            growing = int(length)
    return Rule(tuple(sorted(steps)), growing)


def _of_both(parameters: dict) -> list[str]:
    """What a longrope scaling has for short contexts and for long ones."""
    return [name for name in ("factor", "mscale") if f"short_{name}" in parameters]


def _by_layer_type(value, layer_types: Sequence[str]) -> list:
    """What a module has for each of its layer types, or for all."""
    by_type = layer_types and isinstance(value, dict) and set(layer_types) <= set(value)
    return [value[name] for name in layer_types] if by_type else [value]


def unknown(module: nn.Module, layer_types: Sequence[str]) -> str:
    """What is not known here about a rotary module that no rule was found for; empty where nothing is.

    The rotation of the first positions must stay as it is when far ones are asked about as well.
    """
    trained = getattr(module, "original_max_seq_len", None) or 4096
    near = torch.tensor([[0, 1]])
    for more in _of_types(module, layer_types):
        asked = copy.deepcopy(module)
        alone = _ask(asked, near, more)
        if not isinstance(alone, tuple):
            return "its rotary module gives something else than cosines and sines"
        for far in (trained, FAR * trained):
            beside = _ask(asked, torch.cat((near, torch.tensor([[far]])), 1), more)
            if not all(torch.equal(a, b[:, :2]) for a, b in zip(alone, beside, strict=True)):
                return "its rotary frequencies depend on the length of the text by a rule that is not known here"
    return ""


def _ask(module: nn.Module, positions: Tensor, more: tuple) -> Angles:
    home = next(module.buffers()).device
    with torch.no_grad():
        return type(module).forward(module, torch.empty(0, device=home), positions.to(home), *more)


def _rotated(module: nn.Module, layer_types: Sequence[str]) -> list[str]:
    """The types of layers that a module has frequencies for: beam leaves whole types unrotated."""
    has = getattr(module, "rope_type", None)
    return [name for name in dict.fromkeys(layer_types) if not isinstance(has, dict) or name in has]


def _of_types(module: nn.Module, layer_types: Sequence[str]) -> list[tuple]:
    """What a module takes beside positions, once for each type of layer."""
    return [(name,) for name in _rotated(module, layer_types)] if layer_types else [()]


class OfLength(nn.Module):
    """A rotary module whose choice of frequencies has been made, for a context of `length` tokens.

    It is a copy with tensors of its own, which nothing changes any more: several threads may ask it.
    """

    def __init__(self, rotary: nn.Module, length: int, layer_types: Sequence[str]) -> None:
        super().__init__()
        self.rotary, self._inner = copy.deepcopy(rotary), inspect.unwrap(type(rotary).forward)
        as_at_first(self.rotary)
        home = next(self.rotary.buffers()).device
        like = torch.empty(0, device=home)
        self._amplitudes: dict[tuple, Tensor] = {}
        # Not in inference mode: buffers that are made here are read outside of it, too.
        with torch.no_grad():
            for more in _of_types(rotary, layer_types):
                last = torch.tensor([[0, max(0, length - 1)]], device=home)
                type(self.rotary).forward(self.rotary, like, last, *more)
                # phimoe multiplies by a number that it chooses at every call: at position 0 the cosine is that number.
                self._amplitudes[more] = self._inner(self.rotary, like, last, *more)[0][:, :1]

    def forward(self, like: Tensor, positions: Tensor, *more) -> Angles:
        """Cosines and sines [1, tokens, dim] of integer positions [1, tokens], in the dtype of `like`."""
        with torch.no_grad():
            asked = torch.nn.functional.pad(positions, (1, 0))
            cos, sin = self._inner(self.rotary, like.float(), asked, *more)
            right = self._amplitudes[more] / cos[:, :1]
            return (cos[:, 1:] * right).to(like.dtype), (sin[:, 1:] * right).to(like.dtype)


def as_at_first(rotary: nn.Module) -> None:
    """Let a module that is a copy forget which lengths it has been asked about: dynamic NTK remembers the longest."""
    for name, buffer in list(rotary.named_buffers(recurse=False)):
        stem, original, _ = name.partition("original_inv_freq")
        if original:
            rotary.register_buffer(f"{stem}inv_freq", buffer.clone(), persistent=False)
        if original and hasattr(rotary, f"{stem}max_seq_len_cached"):
            setattr(rotary, f"{stem}max_seq_len_cached", rotary.original_max_seq_len)
