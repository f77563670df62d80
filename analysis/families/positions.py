"""How a position is put into queries and keys: rotated, as a linear bias of the distance, or not at all.

All three are asked the same: `angles` of some positions, made once for all layers of a kind, and `rotate`, which puts
them into vectors that came without.  Where a family's frequencies depend on the length of the context, `of_length` says
how it rotates in one of that length (families/frequencies.py).  Nothing here knows what is kept or why.
"""

import copy
import functools
import inspect
import sys
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from .frequencies import Angles, OfLength, Rule, rule_of, unknown

SAME = Rule()
"""The same frequencies at all lengths."""
AttentionModule = Any
"""A family's own attention module, with a `layer_idx`: torch says nothing of what its attributes are."""
LENGTHS_KEPT = 8
"""Lengths of which a rotary module is remembered."""


@runtime_checkable
class Positions(Protocol):
    """What a family does with positions."""

    name: str
    fixed: str
    """Why a cached key cannot stand at another position than the one where it was read; empty where it can."""
    added: int
    """Dimensions at the end of every head that carry a position and are not the model's own."""
    rule: Rule
    """At which lengths of the context other frequencies are taken."""

    def of_length(self, length: int) -> "Positions":
        """What the family does in a context of `length` tokens."""

    def kind(self, attention: AttentionModule) -> tuple:
        """What tells the angles of one layer from those of another: equal kinds have equal angles."""

    def angles(
        self, attention: AttentionModule, positions: Int[Tensor, " tokens"], dtype: torch.dtype
    ) -> Angles | None:
        """What `rotate` needs for positions: two tensors [1, tokens, *]; None: nothing is rotated."""

    def rotate(self, attention: AttentionModule, x: Tensor, angles: Angles) -> Tensor:
        """x [batch, heads, tokens, dim] put at those positions; linear in x."""


class _Alike:
    """Positions that are put in alike in all layers, however long the context is."""

    rule = SAME

    def of_length(self, length: int) -> Any:
        """The same at all lengths."""
        return self

    def kind(self, attention: AttentionModule) -> tuple:
        """All layers are alike."""
        return ()


class Rotary:
    """The family's own rotary module and its own function that applies it.

    Raises ValueError where it gives no cosines and sines, or chooses frequencies by a rule that is not known.
    """

    name, fixed, added = "rotary", "", 0

    def __init__(self, module: nn.Module, network: PreTrainedModel) -> None:
        self.module = module
        self._types = types = layer_types_of(module, network)
        self.rotated: dict[int, int] = {}
        """Dimensions of a head that each layer rotates."""
        self.rule = known_rule(module, network)
        if not self.rule:
            return

        @functools.lru_cache(LENGTHS_KEPT)
        def of_regime(length: int) -> "Rotary":
            twin = copy.copy(self)
            twin.module = OfLength(module, length, types)
            return twin

        self._of_regime = of_regime
        self.module = of_regime(self.rule.regime(1)).module

    def of_length(self, length: int) -> "Rotary":
        """The same family with the frequencies that it takes in a context of `length` tokens."""
        return self._of_regime(self.rule.regime(length)) if self.rule else self

    def kind(self, attention: AttentionModule) -> tuple:
        """Whether the layer rotates anything, and its type where the rotary module is told it."""
        return (self.rotated[attention.layer_idx] == 0, *self._layer_type(attention))

    def _layer_type(self, attention: AttentionModule) -> tuple[str, ...]:
        return (self._types[attention.layer_idx],) if self._types else ()

    def angles(
        self, attention: AttentionModule, positions: Int[Tensor, " tokens"], dtype: torch.dtype
    ) -> Angles | None:
        """Cosines and sines, by the family's own module; None where the layer rotates nothing."""
        if self.rotated[attention.layer_idx] == 0:
            return None
        if not len(positions):
            # Some scalings look at the largest position.
            one = self.angles(attention, positions.new_zeros(1), dtype)
            return None if one is None else (one[0][:, :0], one[1][:, :0])
        home = next(self.module.buffers()).device
        like = torch.empty(0, device=home, dtype=dtype)
        return self.module(like, positions[None].to(home), *self._layer_type(attention))

    def rotate(
        self, attention: AttentionModule, x: Float[Tensor, "batch heads tokens dim"], angles: Angles
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """x at these positions, by the family's own function, in the dimensions that it rotates."""
        apply = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        dims = self.rotated[attention.layer_idx]
        if dims == x.shape[-1]:
            return apply(x, x[:, :0], *angles)[0]
        return torch.cat((apply(x[..., :dims], x[:, :0, :, :dims], *angles)[0], x[..., dims:]), -1)


class Alibi(_Alike):
    """A bias of −slope × distance (Press et al. 2022), carried by two more dimensions of every head.

    A query ends in (a, 0) where a = slope / scaling, and a key in (0, 1).  At position p they become (a, −a·p) and
    (p, 1), whose product is a·(p of the key − p of the query): so positions are as movable as rotary ones.  Half
    precision has too few digits for a position, so what is rotated is float32 whatever came.
    """

    name, fixed, added = "ALiBi", "", 2

    def angles(self, attention: AttentionModule, positions: Int[Tensor, " tokens"], dtype: torch.dtype) -> Angles:
        """Positions, and negated positions, each [1, tokens, 1]."""
        p = positions.float()[None, :, None]
        return p, -p

    def rotate(
        self, attention: AttentionModule, x: Float[Tensor, "batch heads tokens dim"], angles: Angles
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """x at these positions, in float32: its last two dimensions change."""
        x = x.float()
        first, second = x[..., -2:-1], x[..., -1:]
        ahead, back = (a[:, None] for a in angles)
        return torch.cat((x[..., :-2], first + ahead * second, second + back * first), -1)


class Fixed(_Alike):
    """Positions that the network puts in itself, in a way that cannot be taken out again: a cached key carries the
    position where it was read."""

    added = 0

    def __init__(self, name: str, why: str, rule: Rule = SAME) -> None:
        self.name, self.fixed, self.rule = name, why, rule

    def angles(self, attention: AttentionModule, positions: Int[Tensor, " tokens"], dtype: torch.dtype) -> None:
        """Nothing is rotated."""
        return

    def rotate(self, attention: AttentionModule, x: Tensor, angles: Angles) -> Tensor:
        """x as it is."""
        return x


LEARNED = Fixed("learned", "adds learned positions to its embeddings")
BOUND = Fixed("rotary, not movable", "does more to its keys after it has rotated them")
SEVERAL = Fixed(BOUND.name, "rotates by several modules, and which one a layer asks is not known here")


def bound(rotaries: Sequence[nn.Module], network: PreTrainedModel) -> Fixed:
    """The positions of a network that keeps these rotary modules of its own.

    Raises ValueError where one of them chooses frequencies by a rule that is not known.
    """
    rules = [known_rule(m, network) for m in rotaries]
    ends = [end for rule in rules if (end := rule.regime_end(1)) is not None]
    positions = BOUND if len(rotaries) == 1 else SEVERAL
    return Fixed(positions.name, positions.fixed, Rule((min(ends),))) if ends else positions


def known_rule(module: nn.Module, network: PreTrainedModel) -> Rule:
    """At which lengths a rotary module takes other frequencies.

    Raises ValueError where it gives no cosines and sines, or chooses frequencies by a rule that is not known.
    """
    types = layer_types_of(module, network)
    rule = rule_of(module, types)
    if not rule and network.device.type != "meta" and (why := unknown(module, types)):
        raise ValueError(f"the family {network.config.model_type!r} is not supported yet: {why}")
    return rule


def layer_types_of(module: nn.Module, network: PreTrainedModel) -> Sequence[str]:
    """The types of a network's layers, where its rotary module is told of which type a layer is."""
    return network.config.layer_types if "layer_type" in inspect.signature(module.forward).parameters else ()
