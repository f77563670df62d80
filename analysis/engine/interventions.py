"""Interventions: attention changed on purpose, to see what the first tokens are for.

A policy says what is kept; its interventions say what attention does with it.  Two things can be changed: the softmax
may get one more logit without a value (off by one: Miller 2023, "Attention is off by one"; a logit of another size is
what gpt_oss learns for each head), and the share that the first tokens get may be knocked out, for all heads or some.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..policies import Policy


@dataclass(eq=False)
class Interventions:
    """What is changed in the attention of one lane."""

    logit: float | None = None
    """An extra logit beside those of the tokens."""
    knockout: str = "none"
    """values: the first tokens are seen, and empty; weights: they are not seen, and the others make up for it."""
    heads: frozenset[tuple[int, int]] | None = None
    """Layer and head of each head that is changed; None: all."""
    own: Sequence[Sequence[int]] | None = None
    """Query heads of each layer that a pass over some of them has, in its order; None: all."""
    _made: dict[tuple, Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, policy: Policy) -> "Interventions | None":
        """What a policy's settings ask for; None where nothing is changed."""
        logit = {"ordinary": None, "off-by-one": 0.0, "logit": policy.logit}[policy.softmax]
        if logit is None and policy.knockout == "none":
            return None
        return cls(logit, policy.knockout, policy.changed_heads)

    def sink(
        self, s_aux: Float[Tensor, " heads"] | None, layer: int, query: Float[Tensor, "batch heads queries dim"]
    ) -> Float[Tensor, " heads"] | None:
        """The logit of the extra sink of each head, [heads]; together with one that the family learned."""
        if self.logit is None:
            return s_aux
        key = "logit", layer, query.device
        if key not in self._made:
            changed = self._changed(layer, query.shape[1])
            extra = torch.full((len(changed),), float("-inf")).masked_fill(changed, self.logit)
            self._made[key] = extra.to(query.device) if changed.any() else None
        extra = self._made[key]
        if extra is None or s_aux is None:
            return s_aux if extra is None else extra
        return torch.logaddexp(s_aux.float(), extra)

    def logit_of(self, layer: int, head: int) -> float | None:
        """The extra logit of one head, where it has one."""
        return self.logit if self.heads is None or (layer, head) in self.heads else None

    def masked(self, scores: Tensor, layer: int, kv_heads: int, heads: int) -> Bool[Tensor, "kv_heads rows 1"] | None:
        """Which rows of scores [.., kv_heads, rows, columns] belong to a head that is knocked out; None where none
        does.

        Rows are the query heads of a group, each with its queries.
        """
        rows = scores.shape[-2]
        key = layer, rows, scores.device
        if key not in self._made:
            mask, groups = self._changed(layer, heads), heads // kv_heads
            by_row = mask.view(kv_heads, groups, 1).expand(-1, -1, rows // groups).reshape(kv_heads, rows, 1)
            self._made[key] = by_row.to(scores.device) if mask.any() else None
        return self._made[key]

    def apply(
        self,
        masked: Tensor,
        scores: Tensor,
        weights: Tensor,
        total: Tensor | None,
        weigh: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    ) -> tuple[Tensor, Tensor | None]:
        """The weights that meet the values, and the logarithm of their sum, where `masked` [.., rows, columns] is
        knocked out; `weigh` makes both of scores."""
        if self.knockout == "values":
            return weights.masked_fill(masked, 0), total
        return weigh(scores.masked_fill(masked, float("-inf")))

    def _changed(self, layer: int, heads: int) -> Bool[Tensor, " heads"]:
        """Which heads of a layer are changed."""
        present = range(heads) if self.own is None else self.own[layer]
        return torch.tensor([self.heads is None or (layer, head) in self.heads for head in present])
