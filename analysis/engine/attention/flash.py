"""A window of keys by a GPU's fused kernel, which tells the log-sum-exp of every query.

The kernel knows causal windows, so it computes no score that a band does not have, and keeps none.  What a query gives
to sinks, and to first tokens that stand in the window, is a few scores of their own: with the log-sum-exp they are
joined (call.py's `Pieces` once more), and sink mass falls out.  What the kernel cannot do is left to banded.py.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .band import Band
from .call import Call

DIMS = 256
"""The largest head of which the kernel has a version."""


def serves(call: Call, band: Band) -> bool:
    """Whether the kernel can read this band for this call: half precision on a GPU that has it, whole windows, and
    weights that nobody wants to change."""
    query, changed = call.query, call.interventions
    return (
        query.is_cuda
        and query.dtype == call.value.dtype
        and query.dtype in (torch.bfloat16, torch.float16)
        and call.dim % 8 == 0
        and call.dim <= DIMS
        and call.softcap is None
        and band.step == 1
        and (changed is None or changed.knockout == "none")
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def windowed(
    query: Float[Tensor, "1 heads queries dim"],
    keys: Float[Tensor, "1 kv_heads slots dim"],
    values: Float[Tensor, "1 kv_heads slots dim"],
    reach: int | None,
    scaling: float,
) -> tuple[Float[Tensor, "1 queries heads dim"], Float[Tensor, "1 heads queries"]]:
    """The output of queries that stand at the end of the keys, and the log-sum-exp of their scores in float32.

    Each (rotated, as are the keys) sees its own key and `reach` before it; None: all before it.
    """
    q, k, v = (x.transpose(1, 2) for x in (query, keys, values))
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, q.shape[1], k.shape[1], 0.0, True, False, scale=scaling, window_size_left=reach
    )
    return out, lse


def joined_with_first(
    call: Call,
    window: tuple[Float[Tensor, "1 queries heads dim"], Float[Tensor, "1 heads queries"]],
    to_sinks: Float[Tensor, "kv_heads rows sinks"] | None,
    sink_values: Float[Tensor, "kv_heads sinks dim"],
    to_observed: Float[Tensor, "kv_heads rows observed"] | None,
    counted: int,
) -> tuple[Float[Tensor, "1 queries heads dim"], Float[Tensor, "heads queries"]]:
    """The output over sinks and window, and the attention to first tokens.

    Scores: to the sinks, of which the first `counted` are observed, and to the observed tokens of the window; rows are
    the query heads of a group, each with its queries.
    """
    out, lse = window
    kv_heads, queries = call.kv_heads, call.queries
    total = call.with_sinks(lse.view(kv_heads, -1, 1))
    if to_sinks is not None:
        to_sinks = to_sinks.float()
        total = torch.cat((to_sinks, total), -1)
    total = torch.logsumexp(total, -1, keepdim=True)
    mass = torch.zeros_like(total)
    if to_observed is not None:
        mass = mass + (to_observed.float() - total).exp().sum(-1, keepdim=True)
    if to_sinks is not None or call.sinks is not None:
        share = (lse.view_as(total) - total).exp().view(1, call.heads, queries, 1)
        out = out * share.transpose(1, 2).to(out.dtype)
    if to_sinks is not None:
        weights = (to_sinks - total).exp()
        mass = mass + weights[..., :counted].sum(-1, keepdim=True)
        to_add = (weights.to(sink_values.dtype) @ sink_values).view(1, call.heads, queries, call.dim)
        out = out + to_add.transpose(1, 2)
    return out, mass.view(call.heads, queries)
