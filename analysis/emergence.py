"""A sink that grows while one watches: a very small transformer trained where a head mostly has nothing to do.

The task is bigram-backcopy (Guo et al. 2024, "Active-dormant attention heads"): tokens follow a table of bigrams, but after
a trigger the next one copies the token before the trigger.  Only at triggers has attention work; everywhere else it must
do nothing, and what it then does depends on whether its weights must sum to one.  Knows nothing of pretrained models.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .settings import Settings, setting

ATTENTIONS = {
    "softmax": "Softmax",
    "learned": "Softmax + learned sink logit",
    "off-by-one": "Softmax off by one",
    "relu": "ReLU",
    "sigmoid": "Sigmoid",
}
TRIGGERS = 3
"""Tokens of the vocabulary after which the one before is copied."""
TOGETHER = 16
"""Batches whose sequences are drawn at a time."""
HELD_OUT = 256
"""Sequences on which everything is measured: always the same."""


@dataclass(frozen=True)
class Recipe(Settings):
    """What is trained and how.  The same recipe gives the same curves."""

    name: ClassVar[str] = "emergence"
    title: ClassVar[str] = "A sink that grows"

    attention: str = setting("softmax", "What turns logits into weights.", choices=tuple(ATTENTIONS))
    layers: int = setting(1, "Layers.", low=1, high=4)
    heads: int = setting(1, "Heads of a layer.", low=1, high=8)
    width: int = setting(64, "Width of the model.", low=16, high=256)
    vocabulary: int = setting(64, "Tokens, the one that begins a text among them.", low=16, high=256)
    length: int = setting(128, "Tokens of a sequence.", low=16, high=512)
    batch: int = setting(64, "Sequences of a step.", low=1, high=512)
    steps: int = setting(1600, "Steps of training.", low=1, high=100_000)
    rate: float = setting(0.003, "Learning rate.", low=1e-5, high=0.1)
    decay: float = setting(0.01, "Weight decay.", low=0, high=1)
    bos: str = setting("yes", "Whether every sequence begins with the same token.", choices=("yes", "no"))
    seed: int = setting(0, "Another seed is another table, another start and other sequences.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads: choose a multiple")


class Task:
    """Bigrams, and copies behind triggers; token 0 begins a sequence, 1 … TRIGGERS are triggers."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        chance = np.random.default_rng(recipe.seed)
        # Few likely followers each, as words have.
        table = chance.dirichlet(np.full(recipe.vocabulary - 1, 0.05), recipe.vocabulary)
        self.table = np.concatenate((np.zeros((recipe.vocabulary, 1)), table), 1)
        self._sums = np.cumsum(self.table, 1)
        self._chance = np.random.default_rng(recipe.seed + 1)
        self._waiting: list[NDArray[np.int64]] = []

    def batch(self) -> Int[Tensor, "batch tokens"]:
        """The next sequences to be trained on."""
        if not self._waiting:
            count = self.recipe.batch
            drawn = self.draw(count * TOGETHER, self._chance)
            self._waiting = [drawn[i * count : (i + 1) * count] for i in range(TOGETHER)]
        return torch.from_numpy(self._waiting.pop(0))

    def held_out(self) -> Int[Tensor, "sequences tokens"]:
        return torch.from_numpy(self.draw(HELD_OUT, np.random.default_rng(self.recipe.seed + 2)))

    def draw(self, count: int, chance: np.random.Generator) -> NDArray[np.int64]:
        """Sequences [count, length + 1]: the last token is only predicted."""
        length, lots = self.recipe.length + 1, chance.random((count, self.recipe.length + 1))
        tokens = np.zeros((count, length), np.int64)
        if self.recipe.bos == "no":
            tokens[:, 0] = 1 + (lots[:, 0] * (self.recipe.vocabulary - 1)).astype(int)
        for t in range(1, length):
            before = tokens[:, t - 1]
            follower = (self._sums[before] < lots[:, t : t + 1]).sum(1).clip(1, self.recipe.vocabulary - 1)
            copied = is_trigger(before) & (t >= 2)
            tokens[:, t] = np.where(copied, tokens[:, max(0, t - 2)], follower)
        return tokens


def is_trigger(tokens):
    return (tokens >= 1) & (tokens <= TRIGGERS)


class Attention(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.kind, self.heads = recipe.attention, recipe.heads
        self.project, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.sink = nn.Parameter(torch.zeros(recipe.heads)) if recipe.attention == "learned" else None

    def forward(self, x: Float[Tensor, "batch tokens width"], unseen: Tensor, keep: dict | None) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.project(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if keep is None and self.kind == "softmax":
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            weights = self.weigh(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), unseen)
            out = weights @ v
            if keep is not None:
                keep["weights"].append(weights)
                keep["values"].append(v.norm(dim=-1))
        return self.out(out.transpose(1, 2).reshape(batch, tokens, width))

    def weigh(self, scores: Float[Tensor, "batch heads queries keys"], unseen: Tensor) -> Tensor:
        """Weights of scores; `unseen` [queries, keys]: what comes later."""
        if self.kind == "relu":
            # Over as many keys as there are to see, so that long rows do not weigh more (Wortsman et al. 2023).
            return F.relu(scores).masked_fill(unseen, 0) / (~unseen).sum(-1, keepdim=True)
        if self.kind == "sigmoid":
            # Shifted by the length, for the same reason (Ramapuram et al. 2024).
            return torch.sigmoid(scores - math.log(scores.shape[-1])).masked_fill(unseen, 0)
        scores = scores.masked_fill(unseen, float("-inf"))
        if self.kind == "softmax":
            return torch.softmax(scores, -1)
        extra = scores.new_zeros(1, self.heads, 1, 1) if self.sink is None else self.sink.view(1, -1, 1, 1)
        extra = extra.expand(len(scores), -1, scores.shape[2], -1)
        return torch.softmax(torch.cat((scores, extra), -1), -1)[..., :-1]


class Block(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(recipe)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, unseen: Tensor, keep: dict | None) -> Tensor:
        x = x + self.attention(self.first(x), unseen, keep)
        return x + self.mlp(self.second(x))


class Small(nn.Module):
    """A transformer with learned positions."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.tokens = nn.Embedding(recipe.vocabulary, recipe.width)
        self.places = nn.Embedding(recipe.length, recipe.width)
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(recipe.layers))
        self.norm, self.head = nn.RMSNorm(recipe.width), nn.Linear(recipe.width, recipe.vocabulary, bias=False)
        unseen = torch.ones(recipe.length, recipe.length, dtype=torch.bool).triu(1)
        self.register_buffer("unseen", unseen, persistent=False)
        for part in (self.tokens, self.places):
            nn.init.normal_(part.weight, std=0.1)

    def forward(self, ids: Int[Tensor, "batch tokens"], keep: dict | None = None) -> Tensor:
        tokens = ids.shape[1]
        x = self.tokens(ids) + self.places.weight[:tokens]
        for block in self.blocks:
            x = block(x, self.unseen[:tokens, :tokens], keep)
        return self.head(self.norm(x))


@dataclass(frozen=True, eq=False)
class Moment:
    """What the model is like after so many steps, measured on the held-out sequences.

    `weight` [layers, heads]: mean weight on the first token at queries that are no triggers; `norm` [layers, heads]: norm of the
    first token's value against the mean of the others'; `loss`, `triggers`: NLL in nats over all and over copied tokens.
    """

    step: int
    loss: float
    triggers: float
    weight: NDArray[np.float32]
    norm: NDArray[np.float32]
    map: NDArray[np.float32]
    """Weights of the last layer's first head on the first held-out sequence, [queries, keys]."""


class Training:
    """One model on its way."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.task, self.step = recipe, Task(recipe), 0
        torch.manual_seed(recipe.seed)
        self.model = Small(recipe)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), recipe.rate, betas=(0.9, 0.99), weight_decay=recipe.decay, fused=True
        )
        self._held_out = self.task.held_out()

    def advance(self, steps: int) -> None:
        """Train on, for so many steps or to the end of the recipe."""
        for _ in range(min(steps, self.recipe.steps - self.step)):
            ids = self.task.batch()
            logits = self.model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step()
            self.step += 1

    @torch.no_grad()
    def measure(self) -> Moment:
        keep: dict[str, list[Tensor]] = {"weights": [], "values": []}
        ids = self._held_out
        logits = self.model(ids[:, :-1], keep)
        nll = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        copied = is_trigger(ids[:, 1:-1])
        free = ~is_trigger(ids[:, 1:-1])
        weight = [w[:, :, 1:, 0].mul(free[:, None]).sum((0, 2)) / free.sum() for w in keep["weights"]]
        norm = [v[..., 0].mean(0) / v[..., 1:].mean((0, 2)) for v in keep["values"]]
        return Moment(
            self.step,
            float(nll.mean()),
            float(nll[:, 1:][copied].mean()),
            torch.stack(weight).numpy(),
            torch.stack(norm).numpy(),
            keep["weights"][-1][0, 0].numpy().copy(),
        )


def train(recipe: Recipe, every: int = 25) -> Iterator[Moment]:
    """Moments of a training from its start to its end, one after each `every` steps."""
    training = Training(recipe)
    yield training.measure()
    while training.step < recipe.steps:
        training.advance(every)
        yield training.measure()
