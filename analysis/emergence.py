"""A sink that grows while one watches: a small transformer trained where a head mostly has nothing to do.

The task is bigram-backcopy (Guo et al. 2024, "Active-dormant attention heads"): tokens follow a table of bigrams, but
after a trigger the next one copies the token before the trigger.  Only at triggers has attention work; everywhere else
it must do nothing, and what it then does depends on whether its weights must sum to one.  Beside it, for comparison,
the bundled plays in a small vocabulary.  Knows nothing of pretrained models.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .experiments import as_csv
from .settings import Settings, setting
from .small import ATTENTIONS, Seen, Small
from .vocabulary import SMALLEST, plays_in

TASKS = {"backcopy": "Bigrams and copies", "plays": "Shakespeare's plays"}
TRIGGERS = 4
"""Tokens of the vocabulary after which the one before is copied."""
SPREAD = 0.5
"""Concentration of the bigrams' Dirichlet distribution.  Where a token has very few followers (0.05), a head may look
at any of them and do no harm: the sink then stayed below 0.15."""
OFTEN = 0.1
"""How likely a trigger is after any token: seeds then differ in what is learned, not in how much there is to copy."""
TOGETHER = 16
"""Batches that are drawn at a time."""
HELD_OUT = 128
"""Sequences on which everything is measured: always the same."""
HELD_WEIGHTS = 2**26
"""Weights that are held at once while measuring: a quarter of a gigabyte."""


@dataclass(frozen=True)
class Recipe(Settings):
    """What is trained and how.  The same recipe gives the same curves, on the same kind of machine."""

    name: ClassVar[str] = "emergence"
    title: ClassVar[str] = "A sink that grows"

    attention: str = setting("softmax", "What turns logits into weights.", choices=tuple(ATTENTIONS))
    task: str = setting("backcopy", "What is learned: bigrams and copies, or the plays.", choices=tuple(TASKS))
    layers: int = setting(1, "Layers.", low=1, high=8)
    heads: int = setting(1, "Heads of a layer.", low=1, high=8)
    width: int = setting(64, "Width of the model.", low=16, high=512)
    vocabulary: int = setting(64, "Tokens, the one that begins a text among them.", low=16, high=4096)
    length: int = setting(128, "Tokens of a sequence.", low=16, high=512)
    batch: int = setting(64, "Sequences of a step.", low=1, high=512)
    steps: int = setting(800, "Steps of training.", low=1, high=100_000)
    rate: float = setting(0.005, "Learning rate of AdamW.", low=1e-5, high=0.1)
    decay: float = setting(0.01, "Weight decay.", low=0, high=1)
    bos: str = setting("yes", "Whether every sequence begins with the same token.", choices=("yes", "no"))
    seed: int = setting(0, "Another seed is another table, another start and other sequences.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads: choose a multiple")
        if self.task == "plays" and self.vocabulary < SMALLEST:
            raise ValueError(f"the plays need a vocabulary of {SMALLEST} tokens or more, not {self.vocabulary}")


class Task(Protocol):
    """Where sequences come from.  Token 0 begins a sequence where the recipe says so."""

    def draw(self, count: int, chance: np.random.Generator) -> NDArray[np.int64]:
        """Sequences [count, length + 1]: the last token is only predicted."""

    def held_out(self) -> NDArray[np.int64]:
        """The sequences on which is measured, [HELD_OUT, length + 1]."""

    def copies(self, ids: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
        """At which tokens attention has something to do."""


class Backcopy:
    """Bigrams, and copies behind triggers, which are tokens 1 … TRIGGERS."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        others = recipe.vocabulary - 1
        followers = np.random.default_rng(recipe.seed).dirichlet(np.full(others, SPREAD), recipe.vocabulary)
        triggers = followers[:, :TRIGGERS]
        triggers *= OFTEN / triggers.sum(1, keepdims=True)
        followers[:, TRIGGERS:] *= (1 - OFTEN) / followers[:, TRIGGERS:].sum(1, keepdims=True)
        # Cumulated, and every row one higher than the one before: one search then serves all rows.
        self._sums = (np.cumsum(followers, 1) + np.arange(recipe.vocabulary)[:, None]).ravel()

    def draw(self, count: int, chance: np.random.Generator) -> NDArray[np.int64]:
        length, others = self.recipe.length + 1, self.recipe.vocabulary - 1
        lots = chance.random((count, length))
        tokens = np.zeros((count, length), np.int64)
        if self.recipe.bos == "no":
            tokens[:, 0] = 1 + lots[:, 0] * others
        for t in range(1, length):
            before = tokens[:, t - 1]
            place = np.searchsorted(self._sums, before + lots[:, t]) - before * others
            tokens[:, t] = 1 + place.clip(0, others - 1)
            if t >= 3:
                # Behind two tokens or more: what begins a sequence is never copied.
                tokens[:, t] = np.where(is_trigger(before), tokens[:, t - 2], tokens[:, t])
        return tokens

    def held_out(self) -> NDArray[np.int64]:
        return self.draw(HELD_OUT, np.random.default_rng(self.recipe.seed + 2))

    def copies(self, ids: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
        found = is_trigger(ids)
        found[:, :2] = False
        return found


class Plays:
    """Stretches of the bundled plays; the last tenth is held out."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        ids = plays_in(recipe.vocabulary)
        self._read, self._held_out = np.split(ids, [len(ids) * 9 // 10])

    def draw(self, count: int, chance: np.random.Generator) -> NDArray[np.int64]:
        return self._stretches(self._read, count, chance)

    def held_out(self) -> NDArray[np.int64]:
        return self._stretches(self._held_out, HELD_OUT, np.random.default_rng(self.recipe.seed + 2))

    def copies(self, ids: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
        """None: nobody knows."""
        return torch.zeros_like(ids, dtype=torch.bool)

    def _stretches(self, ids: NDArray, count: int, chance: np.random.Generator) -> NDArray[np.int64]:
        length = self.recipe.length + 1
        begins = chance.integers(0, len(ids) - length, count)
        tokens = ids[begins[:, None] + np.arange(length)].astype(np.int64)
        if self.recipe.bos == "yes":
            tokens[:, 0] = 0
        return tokens


def is_trigger(tokens):
    return (tokens >= 1) & (tokens <= TRIGGERS)


@dataclass(frozen=True, eq=False)
class Moment:
    """What the model is like after so many steps, measured on the held-out sequences."""

    step: int
    loss: float
    """Mean NLL of all tokens, nats."""
    copied: float
    """Mean NLL of copied tokens; NaN where nothing is copied."""
    weight: NDArray[np.float32]
    """Mean weight on the first token where attention has nothing to do, [layers, heads]."""
    norm: NDArray[np.float32]
    """Norm of the first token's value, times the mean of the others', [layers, heads]."""
    head: tuple[int, int]
    """The layer and head that looks at the first token most."""
    map: NDArray[np.float16]
    """Its weights on the first held-out sequence, [queries, keys]."""

    @property
    def sink(self) -> float:
        """Weight on the first token of the head that looks at it most."""
        return float(self.weight[self.head])

    @property
    def value(self) -> float:
        """Norm of the first token's value in that head, times the others'."""
        return float(self.norm[self.head])


class Training:
    """One model on its way."""

    def __init__(self, recipe: Recipe, device: str | torch.device = "cpu") -> None:
        self.recipe, self.step, self._device = recipe, 0, torch.device(device)
        self.task: Task = {"backcopy": Backcopy, "plays": Plays}[recipe.task](recipe)
        r = recipe
        start = torch.Generator().manual_seed(r.seed)
        self.model = Small(r.attention, r.vocabulary, r.length, r.width, r.layers, r.heads, start).to(self._device)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), r.rate, weight_decay=r.decay, fused=True)
        self._chance = np.random.default_rng(r.seed + 1)
        self._waiting: list[NDArray[np.int64]] = []
        self._held_out = torch.from_numpy(self.task.held_out()).to(self._device)

    @property
    def done(self) -> bool:
        return self.step >= self.recipe.steps

    @property
    def example(self) -> NDArray[np.int64]:
        """The sequence whose map a moment holds, [length]."""
        return self._held_out[0, :-1].cpu().numpy()

    def advance(self, steps: int) -> None:
        """Train on, for so many steps or to the end of the recipe."""
        for _ in range(min(steps, self.recipe.steps - self.step)):
            ids = self._batch()
            logits = self.model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step()
            self.step += 1

    def moments(self, every: int) -> Iterator[Moment]:
        """What the model is like now, and after each `every` steps to the end.

        Raises ValueError where the loss is no number any more.
        """
        yield self.measure()
        while not self.done:
            self.advance(every)
            yield self.measure()

    @torch.no_grad()
    def measure(self) -> Moment:
        r, parts = self.recipe, []
        # Weights of all layers are held at once: of so many sequences that this is no burden.
        together = max(1, HELD_WEIGHTS // (r.layers * r.heads * r.length**2))
        for ids in self._held_out.split(together):
            seen, copies = Seen(), self.task.copies(ids[:, :-1])
            nll = F.cross_entropy(self.model(ids[:, :-1], seen).transpose(1, 2), ids[:, 1:], reduction="none")
            idle = ~copies
            idle[:, 0] = False  # which sees nothing but itself
            weights, values = torch.stack(seen.weights), torch.stack(seen.values)
            if not parts:
                maps = weights[:, 0]
            given = weights[..., 0].mul(idle[:, None]).sum((1, 3))
            first, others = values[..., 0].sum(1), values[..., 1:].mean(-1).sum(1)
            parts.append((nll, copies, given, idle.sum(), first, others))
        nll, copies = (torch.cat([p[i] for p in parts]) for i in (0, 1))
        given, idle, first, others = (sum(p[i] for p in parts) for i in (2, 3, 4, 5))
        if not nll.isfinite().all():
            raise ValueError(f"training ran away at step {self.step}: begin again with a smaller learning rate")
        weight, norm = (given / idle).cpu().numpy(), (first / others).cpu().numpy()
        layer, head = (int(i) for i in np.unravel_index(weight.argmax(), weight.shape))
        return Moment(
            self.step,
            float(nll.mean()),
            float(nll[copies].mean()) if copies.any() else math.nan,
            weight,
            norm,
            (layer, head),
            maps[layer, head].half().cpu().numpy(),
        )

    def _batch(self) -> Int[Tensor, "batch tokens"]:
        if not self._waiting:
            drawn = self.task.draw(self.recipe.batch * TOGETHER, self._chance)
            self._waiting = np.split(drawn, TOGETHER)
        return torch.from_numpy(self._waiting.pop()).to(self._device)


def curves(moments: list[Moment]) -> str:
    """A row for each moment, as CSV: losses in nats, every head's weight on the first token and norm of its value."""
    heads = [f"{layer}.{head}" for layer, head in np.ndindex(moments[0].weight.shape)]
    columns = ["step", "loss", "copied", *(f"weight {h}" for h in heads), *(f"norm {h}" for h in heads)]
    rows = [[m.step, m.loss, m.copied, *m.weight.ravel(), *m.norm.ravel()] for m in moments]
    return as_csv(columns, [[f"{x:.6g}" for x in row] for row in rows])


def write(place: Path, recipe: Recipe, moments: list[Moment], example: NDArray, status: str) -> None:
    """Put a training into a folder: `run.json`, `curves.csv`, and `maps.npz` with the maps [moments, queries, keys]."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "curves.csv").write_text(curves(moments), encoding="utf-8")
    np.savez_compressed(
        place / "maps.npz",
        maps=np.stack([m.map for m in moments]),
        heads=np.array([m.head for m in moments]),
        steps=np.array([m.step for m in moments]),
        tokens=example,
    )
    about = {"recipe": asdict(recipe), "status": status, "torch": torch.__version__}
    (place / "run.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, eq=False)
class Trained:
    """What a folder holds of a training."""

    recipe: Recipe
    curves: Mapping[str, NDArray[np.float64]]
    """Columns of `curves.csv`, [moments]."""
    maps: NDArray[np.float16]
    """[moments, queries, keys]."""
    heads: NDArray[np.int64]
    """Layer and head of each map, [moments, 2]."""

    def of_head(self, what: str) -> NDArray[np.float64]:
        """Weight on the first token, or norm of its value (`weight`, `norm`), of each moment's head, [moments]."""
        return np.array([self.curves[f"{what} {layer}.{head}"][i] for i, (layer, head) in enumerate(self.heads)])


def read(place: Path) -> list[Trained]:
    """The trainings in a folder, or in the folders in it.  Raises ValueError where there are none."""
    place = Path(place)
    folders = [place] if (place / "run.json").exists() else sorted(p.parent for p in place.glob("*/run.json"))
    if not folders:
        raise ValueError(f"{place} holds no training: python -m analysis emergence --out {place} makes one")
    return [_read(folder) for folder in folders]


def _read(place: Path) -> Trained:
    try:
        recipe = Recipe(**json.loads((place / "run.json").read_text(encoding="utf-8"))["recipe"])
        heads, *rows = csv.reader((place / "curves.csv").read_text(encoding="utf-8").splitlines())
        columns = dict(zip(heads, np.array(rows, np.float64).T, strict=True))
        with np.load(place / "maps.npz") as held:
            return Trained(recipe, columns, held["maps"], held["heads"])
    except (OSError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{place} holds no training that can be read: {e}") from e
