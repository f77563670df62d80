"""Logits of some tokens, as far as they are looked at: the NLL, the most probable token, and how far two of them are
apart.

A chunk has as many logits as its tokens times the vocabulary, so they become probabilities some rows at a time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 1 << 19
"""Logits that become probabilities at a time, 2 MB of float32: more would not stay in a processor's cache."""
MANY = 512
"""Rows that do so on other devices, which have no such cache, but want few and large steps; all take memory."""


class Logits(NamedTuple):
    """What a lane predicts of some tokens, in the dtype that the model tells it in."""

    rows: Float[Tensor, "tokens vocabulary"]
    totals: Float[Tensor, " tokens"]
    """The logarithm of the sum of the exponentials of each row, float32."""

    @classmethod
    def of(cls, rows: Float[Tensor, "tokens vocabulary"]) -> "Logits":
        """The logits of a pass."""
        return cls(rows, torch.cat([_total(some) for some in rows.split(_size(rows))]))

    @classmethod
    def joined(cls, parts: "Sequence[Logits]") -> "Logits":
        """Parts that follow one another, as one."""
        return parts[0] if len(parts) == 1 else cls(*(torch.cat(of) for of in zip(*parts, strict=True)))

    def cut(self, begin: int, end: int) -> "Logits":
        """Those of tokens begin … end − 1."""
        return Logits(self.rows[begin:end], self.totals[begin:end])

    def nll(self, targets: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """−ln p of each target in nats, float32."""
        return self.totals - self.rows.gather(-1, targets[:, None])[:, 0].float()

    @property
    def top(self) -> Int[Tensor, " tokens"]:
        """The token with the largest logit at each position, which a greedy decoder takes; of several the first."""
        # As argmax has it, in half the time.
        return torch.cat([some.max(-1).indices for some in self.rows.split(_size(self.rows))])

    def divergence(self, other: "Logits") -> Float[Tensor, " tokens"]:
        """KL(these ‖ others) of each row in nats, over the whole vocabulary; float32.

        Only rounding is between this and the exact value, about 1e-6; what it would bring below zero is zero.
        """
        size = _size(self.rows)
        blocks = zip(*(of.split(size) for of in (*self, *other)), strict=True)
        return torch.cat([_divergence(*some) for some in blocks]).clamp(min=0)


def _total(rows: Float[Tensor, "tokens vocabulary"]) -> Float[Tensor, " tokens"]:
    if not rows.is_cuda:
        return torch.logsumexp(rows.float(), -1)
    # One kernel where that is five, and half the memory.
    return rows[:, 0].float() - torch.log_softmax(rows, -1, dtype=torch.float32)[:, 0]


def _size(rows: Float[Tensor, "tokens vocabulary"]) -> int:
    """Rows of a block."""
    return max(1, BLOCK // rows.shape[-1]) if rows.device.type == "cpu" else MANY


def _divergence(p: Tensor, p_total: Tensor, q: Tensor, q_total: Tensor) -> Tensor:
    """Σ p (ln p − ln q), which is Σ p (logit of p − logit of q) − (total of p − total of q)."""
    p, q = p.float(), q.float()
    probabilities = (p - p_total[:, None]).exp_()
    return (p - q).mul_(probabilities).sum(-1) - (p_total - q_total)
