"""What a layer asks for: queries, keys and values, and the family's own settings of attention; and softmax in pieces.

Every pass begins with a Call, so that what a family hands to its attention (scaling, softcap, sliding window, learned
sinks) and what a policy's interventions change is read in one place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...families.positions import AttentionModule
from ..interventions import Interventions

Pieces = Sequence[tuple[Tensor, Tensor]]
"""Outputs [*rows, dim] of pieces of the keys, each with the log-sum-exp [*rows] of its scores (flash-decoding)."""


@dataclass(frozen=True, eq=False)
class Call:
    """One layer's call for attention, with queries and keys before rotation."""

    layer: int
    query: Float[Tensor, "batch heads queries dim"]
    key: Float[Tensor, "batch kv_heads queries dim"]
    value: Float[Tensor, "batch kv_heads queries dim"]
    scaling: float
    softcap: float | None = None
    sliding_window: int | None = None
    """Tokens that a query sees in this layer by the family's own rule, itself included; None: all."""
    sinks: Float[Tensor, " heads"] | None = None
    """One more logit of each head without a token: learned by the family (s_aux), by an intervention, or by both."""
    interventions: Interventions | None = None

    @classmethod
    def of(
        cls,
        attention: AttentionModule,
        query: Float[Tensor, "batch heads queries dim"],
        key: Float[Tensor, "batch kv_heads queries dim"],
        value: Float[Tensor, "batch kv_heads queries dim"],
        interventions: Interventions | None = None,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        sliding_window: int | None = None,
        s_aux: Float[Tensor, " heads"] | None = None,
        **_,
    ) -> "Call":
        """The call of a transformers attention module, with the keywords that families pass to it."""
        layer = int(attention.layer_idx)
        if interventions is not None:
            s_aux = interventions.sink(s_aux, layer, query)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return cls(layer, query, key, value, scaling, softcap, sliding_window, s_aux, interventions)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.query.shape[1]

    @property
    def kv_heads(self) -> int:
        """KV heads."""
        return self.key.shape[1]

    @property
    def groups(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    @property
    def queries(self) -> int:
        """Tokens that ask, of each text of the batch."""
        return self.query.shape[2]

    @property
    def dim(self) -> int:
        """Dimensions of a head."""
        return self.query.shape[3]

    def of_tokens(self, begin: int, end: int) -> "Call":
        """The call of some of its tokens alone."""
        if end - begin == self.queries:
            return self
        query, key, value = (x[:, :, begin:end] for x in (self.query, self.key, self.value))
        return replace(self, query=query, key=key, value=value)

    def capped(self, scores: Tensor) -> Tensor:
        """Scores that approach `softcap` and never pass it."""
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def with_sinks(
        self, scores: Float[Tensor, "*batch groups rows columns"]
    ) -> Float[Tensor, "*batch groups rows columns_and_sink"]:
        """Scores with the sinks' logits as one more column.  Rows go through the heads in order, each with its
        queries, whether the heads stand in `groups` of one or of several."""
        if self.sinks is None:
            return scores
        kv_heads, rows = scores.shape[-3:-1]
        column = self.sinks.repeat_interleave(kv_heads * rows // self.heads).view(kv_heads, rows, 1)
        return torch.cat((scores, column.expand(*scores.shape[:-1], 1).to(scores.dtype)), -1)

    @property
    def knocks_out(self) -> bool:
        """Whether something is knocked out somewhere."""
        return self.interventions is not None and self.interventions.knockout != "none"

    def intervene(
        self,
        scores: Tensor,
        weights: Tensor,
        total: Tensor | None,
        first_tokens: Callable[[], tuple[Tensor, Tensor | bool]],
        pieces: Pieces = (),
    ) -> tuple[Tensor, Tensor | None]:
        """The weights that meet the values, and their log-sum-exp, after interventions.

        `first_tokens` is asked where something is to be knocked out: whether each column [.., columns] is one of the
        text's first tokens, and whether each row [.., rows, 1] is the query of none of them.
        """
        if self.interventions is None or not self.knocks_out:
            return weights, total
        masked = self.interventions.masked(scores, self.layer, self.kv_heads, self.heads)
        if masked is None:
            return weights, total
        early, later = first_tokens()
        dtype = weights.dtype
        return self.interventions.apply(
            masked & early & later, scores, weights, total, lambda s: weigh(s, pieces, dtype)
        )


def weigh(
    scores: Float[Tensor, "*rows columns"], pieces: Pieces, dtype: torch.dtype, *, free: bool = False
) -> tuple[Float[Tensor, "*rows columns"], Float[Tensor, "*rows"] | None]:
    """The weights of these scores; where pieces with a log-sum-exp of their own share the sum, its logarithm too.

    `free`: a processor may write the weights where the scores were, which is half of the memory.
    """
    if not pieces:
        out = scores if free and scores.device.type == "cpu" else None
        return torch.softmax(scores, -1, out=out).to(dtype), None
    total = torch.logsumexp(torch.stack([torch.logsumexp(scores.float(), -1), *(lse for _, lse in pieces)]), 0)
    return (scores - total[..., None]).exp().to(dtype), total


def joined(out: Tensor, pieces: Pieces, total: Tensor | None) -> Tensor:
    """The output of scores that were weighed with pieces, with what the pieces give to it added in place."""
    for piece, lse in pieces:
        assert total is not None
        out += piece * (lse - total).exp()[..., None].to(out.dtype)
    return out


def partial(
    q: Float[Tensor, "*batch rows dim"],
    k: Float[Tensor, "*batch columns dim"],
    v: Float[Tensor, "*batch columns dim"],
    call: Call,
) -> tuple[Float[Tensor, "*batch rows dim"], Float[Tensor, "*batch rows"]]:
    """Attention of all rows (scaled queries) to all of these keys, and each row's log-sum-exp."""
    if q.device.type == "cpu" and call.softcap is None and q.dtype == v.dtype:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=1.0)
    if q.is_cuda and call.softcap is None and q.dtype == v.dtype and call.dim % 8 == 0:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=1.0)
        return out, lse[..., : q.shape[-2]]
    s = call.capped(q @ k.transpose(-1, -2))
    lse = torch.logsumexp(s.float(), -1)
    return (s - lse[..., None]).exp().to(v.dtype) @ v, lse
