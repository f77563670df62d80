"""What the mask of a layer says, where the layer itself does not.

Some families keep a sliding window in the mask that they make and hand none of it to the attention function, which
sees no mask here.  So while a network is probed, transformers makes its masks with a function of ours, which lets each
mask carry the rule that it was made of; and a rule can be asked about any query, however far into a text.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionMaskInterface
from transformers.masking_utils import eager_mask

PROBED = "sinkscope-probe"
FAR = (2**18 - 1, 150_001, 5_000)
"""Queries that a rule is asked about."""
AHEAD = 64
"""Tokens behind a query that it must not see."""
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether (batch, head, query, key) may be seen."""


class Ruled(Tensor):
    """A mask with its rule, which it keeps when it is moved to the device of a layer and loses when it is changed."""

    rule: Rule | None = None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.to and isinstance(out, Ruled):
            out.rule = getattr(next(iter(args), None), "rule", None)
        return out


def _masked(*, mask_function: Rule, **more: Any) -> Tensor:
    """What transformers calls for every mask of a network that is probed."""
    settings: dict[str, Any] = more | {"allow_is_bidirectional_skip": False}
    mask = eager_mask(mask_function=mask_function, **settings)
    mask = mask.as_subclass(Ruled)
    mask.rule = mask_function
    return mask


def rule_of(mask: Tensor | None) -> Rule | None:
    """The rule that a mask was made of; None where it was not made by transformers' own functions."""
    return getattr(mask, "rule", None)


def window_of(rule: Rule, device: torch.device) -> int | None:
    """The tokens that a query sees, itself included; None for all before it.

    Raises ValueError, half a sentence, where that is no window that moves with the query.
    """
    zero, counts = torch.zeros((), dtype=torch.int64, device=device), {}
    for query in FAR:
        keys = torch.arange(query + AHEAD, device=device)
        seen = rule(zero, zero, torch.tensor(query, device=device), keys).expand(len(keys))
        if seen[query + 1 :].any():
            raise ValueError("its tokens see some that come after them")
        count = counts[query] = int(seen.sum())
        if not count or not seen[query + 1 - count : query + 1].all():
            raise ValueError("its tokens do not see all of the tokens nearest to them")
    window = max((n for query, n in counts.items() if n <= query), default=None)
    if window is not None and any(n != min(query + 1, window) for query, n in counts.items()):
        raise ValueError("its tokens see the text in chunks, some more of them and some fewer")
    return window


AttentionMaskInterface.register(PROBED, _masked)
