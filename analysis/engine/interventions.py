"""What-ifs: attention bent on purpose, to see what the first tokens are for.

A policy says what is kept; a what-if says what attention does with it.  Two things can be bent: the softmax may get one
more logit without a value (off by one: Miller 2023, "Attention is off by one"; a logit of another size is what gpt_oss
learns for each head), and the share that the first tokens get may be knocked out, for all heads or for some.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..policies import Policy


@dataclass(eq=False)
class Interventions:
    """How the attention of one lane is bent."""

    logit: float | None = None
    """An extra logit beside those of the tokens."""
    knockout: str = "none"
    """values: the first tokens are seen, and empty; weights: they are not seen, and the others make up for it."""
    heads: frozenset[tuple[int, int]] | None = None
    """Layer and head of each head that is bent; None: all."""
    own: Sequence[Sequence[int]] | None = None
    """Which heads of each layer whoever asks here has, in this order; None: all."""
    _made: dict[tuple, Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, policy: Policy) -> "Interventions | None":
        """What a policy's settings ask for; None where nothing is bent."""
        logit = {"ordinary": None, "off-by-one": 0.0, "logit": policy.logit}[policy.softmax]
        if logit is None and policy.knockout == "none":
            return None
        return cls(logit, policy.knockout, policy.bent_heads)

    def sink(self, s_aux: Tensor | None, layer: int, query: Tensor) -> Tensor | None:
        """The logit of the extra sink of each head, [heads]; together with one that the family learned."""
        if self.logit is None:
            return s_aux
        key = "logit", layer, query.device
        if key not in self._made:
            bent = self._bent(layer, query.shape[1])
            extra = torch.full((len(bent),), float("-inf")).masked_fill(bent, self.logit)
            self._made[key] = extra.to(query.device) if bent.any() else None
        extra = self._made[key]
        if extra is None or s_aux is None:
            return s_aux if extra is None else extra
        return torch.logaddexp(s_aux.float(), extra)

    def logit_of(self, layer: int, head: int) -> float | None:
        """The extra logit of one head, where it has one."""
        return self.logit if self.heads is None or (layer, head) in self.heads else None

    def knocked_out(
        self, scores: Tensor, early: Tensor, later: Tensor | bool, layer: int, kv_heads: int, heads: int
    ) -> Tensor | None:
        """Which scores [.., kv_heads, rows, columns] are knocked out: bool of a shape that fits, or None for none.

        Rows are the query heads of a group, each with its queries.  early [.., columns]: whether a column is one of the
        first tokens; later [.., rows, 1]: whether a query is none of them, since those have nothing else to look at.
        """
        struck = None if self.knockout == "none" else self._struck(layer, kv_heads, heads, scores)
        return None if struck is None else struck & early & later

    def bend(
        self,
        struck: Tensor | None,
        scores: Tensor,
        weights: Tensor,
        total: Tensor | None,
        weigh: Callable[[Tensor], Any],
    ) -> tuple[Tensor, Tensor | None]:
        """The weights that meet the values, and the logarithm of their sum; `weigh` makes both of scores."""
        if struck is None:
            return weights, total
        if self.knockout == "values":
            return weights.masked_fill(struck, 0), total
        return weigh(scores.masked_fill(struck, float("-inf")))

    def _struck(self, layer: int, kv_heads: int, heads: int, scores: Tensor) -> Tensor | None:
        """True for every row of a head that is knocked out, [kv_heads, rows, 1]; None where none is."""
        rows = scores.shape[-2]
        key = layer, rows, scores.device
        if key not in self._made:
            mask, groups = self._bent(layer, heads), heads // kv_heads
            rowwise = mask.view(kv_heads, groups, 1).expand(-1, -1, rows // groups).reshape(kv_heads, rows, 1)
            self._made[key] = rowwise.to(scores.device) if mask.any() else None
        return self._made[key]

    def _bent(self, layer: int, heads: int) -> Tensor:
        """Which heads of a layer are bent, bool [heads]."""
        present = range(heads) if self.own is None else self.own[layer]
        return torch.tensor([self.heads is None or (layer, head) in self.heads for head in present])
