"""A transformer small enough to be trained while somebody watches, with five ways to turn logits into weights.

Knows nothing of what it is trained on, and nothing of pretrained models.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Activations:
    """What the heads of one forward pass did, a tensor for each layer."""

    weights: list[Float[Tensor, "batch heads queries keys"]] = field(default_factory=list)
    values: list[Float[Tensor, "batch heads keys"]] = field(default_factory=list)
    """Norms of the values."""


class Attention(nn.Module):
    """Causal attention of several heads, whose logits become weights in one of the ways of ATTENTIONS (recipe.py)."""

    def __init__(self, kind: str, width: int, heads: int) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        self.project, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.sink = nn.Parameter(torch.zeros(heads)) if kind == "learned" else None

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        later: Bool[Tensor, "queries keys"],
        record: Activations | None,
    ) -> Float[Tensor, "batch tokens width"]:
        """The output of all heads, [batch, tokens, width]; `later` [queries, keys]: which keys come after a query."""
        batch, tokens, width = x.shape
        q, k, v = self.project(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.kind == "softmax" and record is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            weights = self.weigh(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), later)
            out = weights @ v
            if record is not None:
                record.weights.append(weights)
                record.values.append(v.norm(dim=-1))
        return self.out(out.transpose(1, 2).reshape(batch, tokens, width))

    def weigh(
        self, logits: Float[Tensor, "batch heads queries keys"], later: Bool[Tensor, "queries keys"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Weights of logits; what comes later than a query gets none."""
        if self.kind == "relu":
            return F.relu(logits.masked_fill(later, 0))
        if self.kind == "sigmoid":
            # Shifted by the length, so that a row begins with a sum near one (Ramapuram et al. 2024).
            return torch.sigmoid(logits - math.log(logits.shape[-1])).masked_fill(later, 0)
        logits = logits.masked_fill(later, float("-inf"))
        if self.kind == "softmax":
            return torch.softmax(logits, -1)
        extra = logits.new_zeros(self.heads) if self.sink is None else self.sink
        extra = extra.view(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        return torch.softmax(torch.cat((logits, extra), -1), -1)[..., :-1]


class Block(nn.Module):
    """One layer: attention, then two matrices with a ReLU between them, each added to what came in."""

    def __init__(self, kind: str, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attention = Attention(kind, width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        later: Bool[Tensor, "queries keys"],
        record: Activations | None,
    ) -> Float[Tensor, "batch tokens width"]:
        """What the next layer gets."""
        x = x + self.attention(self.first(x), later, record)
        return x + self.mlp(self.second(x))


class Transformer(nn.Module):
    """A transformer with learned positions; the same generator makes the same model.

    Embeddings begin with unit variance, so that positions are told apart from the first step on.
    """

    tokens: nn.Embedding
    positions: nn.Embedding
    later: Tensor

    def __init__(
        self, kind: str, vocabulary: int, length: int, width: int, layers: int, heads: int, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(kind, width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("later", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)
        for part in self.modules():
            if isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, generator=rng)
            elif isinstance(part, nn.Linear):
                bound = 1 / math.sqrt(part.in_features)
                nn.init.uniform_(part.weight, -bound, bound, generator=rng)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(
        self, ids: Int[Tensor, "batch tokens"], record: Activations | None = None
    ) -> Float[Tensor, "batch tokens vocabulary"]:
        """Logits of the next token; what the heads did is added to `record`."""
        tokens = ids.shape[1]
        x = self.tokens(ids) + self.positions.weight[:tokens]
        for block in self.blocks:
            x = block(x, self.later[:tokens, :tokens], record)
        return self.head(self.norm(x))
