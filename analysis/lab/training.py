"""A sink that grows while one watches: a small transformer trained where a head mostly has nothing to do (tasks.py).

Training, measuring, and the folder that keeps both.  Knows nothing of pretrained models.
"""

import csv
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .. import files
from ..files import Kind
from ..runs.status import RUNNING, here
from ..tables import as_csv
from .tasks import TASKS, TRIGGERS, Backcopy, Plays, Recipe, Task, is_trigger
from .transformer import ATTENTIONS, Seen, Small

__all__ = [
    "ATTENTIONS", "TASKS", "TRIGGERS", "Backcopy", "Keeper", "Moment", "Plays", "Recipe", "Trained", "Training",
    "curves", "is_trigger", "read", "write",
]  # fmt: skip

TOGETHER = 16
"""Batches that are drawn at a time."""
MOST_LOST, SHARE = 2.0, 20
"""Seconds of training that a kill may cost, and how many times as long as writing they are at least."""
HELD_WEIGHTS = 2**26
"""Weights that are held at once while measuring: a quarter of a gigabyte."""


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


def curves(moments: Sequence[Moment]) -> str:
    """A row for each moment, as CSV: losses in nats, every head's weight on the first token and norm of its value."""
    heads = [f"{layer}.{head}" for layer, head in np.ndindex(moments[0].weight.shape)]
    columns = ["step", "loss", "copied", *(f"weight {h}" for h in heads), *(f"norm {h}" for h in heads)]
    rows = [[m.step, m.loss, m.copied, *m.weight.ravel(), *m.norm.ravel()] for m in moments]
    return as_csv(columns, [[f"{x:.6g}" for x in row] for row in rows])


def write(place: Path, recipe: Recipe, moments: Sequence[Moment], example: NDArray, status: str) -> None:
    """Put a training into a folder: `run.json`, `curves.csv`, and `maps.npz` with the maps [moments, queries, keys].

    What it wrote there before is replaced file by file.  Raises ValueError where the disk does not take it.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise files.unwritten(place, e) from e
    with files.written(place / "maps.npz") as f:
        np.savez_compressed(
            f,
            maps=np.stack([m.map for m in moments]),
            heads=np.array([m.head for m in moments]),
            steps=np.array([m.step for m in moments]),
            tokens=example,
        )
    files.write(place / "curves.csv", curves(moments))
    _say(place, recipe, status)


def _say(place: Path, recipe: Recipe, status: str) -> None:
    about = {"recipe": asdict(recipe), "status": status, "torch": torch.__version__}
    about |= {"process": here()} if status == RUNNING else {}
    files.write(place / "run.json", json.dumps(about, indent=2) + "\n")


class Keeper:
    """Puts a training into a new folder as it goes, so often that it takes a small share of the time.

    Raises ValueError where the folder holds something, or the disk has no room for all of it.  Where the disk fills up
    meanwhile, what was written stays, and `problem` says so; the training may go on, and is written when there is room.
    """

    def __init__(self, place: Path, training: Training, every: int) -> None:
        self.place, self.problem = place, ""
        self._training, self._moments = training, list[Moment]()
        self._next = 0.0
        recipe = training.recipe
        # As large as they can be; and once more, since they are written beside.
        files.check_room(place, 2 * (recipe.steps // every + 2) * 2 * recipe.length**2, "this training")
        files.new_folder(place)
        try:
            files.reserve(place)
        except OSError as e:
            raise files.unwritten(place, e) from e

    def add(self, moment: Moment) -> None:
        """Take in what the model is like now."""
        self._moments.append(moment)
        if (began := time.monotonic()) < self._next:
            return
        self._write(RUNNING)
        now = time.monotonic()
        self._next = now + max(MOST_LOST, SHARE * (now - began))

    def _write(self, status: str) -> None:
        try:
            write(self.place, self._training.recipe, self._moments, self._training.example, status)
            self.problem = ""
        except ValueError as e:
            self.problem = str(e)

    def finish(self, status: str) -> None:
        """Write all of it.  Raises ValueError where the disk does not take it: then it is as it was written last."""
        files.release(self.place)
        if not self._moments:
            return
        self._write(status)
        if self.problem:
            with suppress(ValueError):
                _say(self.place, self._training.recipe, "failed")
            raise ValueError(self.problem)


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


@dataclass
class _About:
    """What run.json must say."""

    recipe: Recipe
    status: str = ""


def read(place: Path) -> list[Trained]:
    """The trainings in a folder, or in the folders in it.  Raises ValueError where there are none."""
    place = Path(place)
    whole = os.path.exists(place / "run.json")
    folders = [place] if whole else sorted(p.parent for p in place.glob("*/run.json"))
    if not folders:
        raise ValueError(f"{place} holds no training: python -m analysis emergence --out {place} makes one")
    return [_read(folder) for folder in folders]


def _read(place: Path) -> Trained:
    about = files.record(place / "run.json", _About, "that of a training")
    recipe, file = about.recipe, place / "curves.csv"
    heads = [f"{layer}.{head}" for layer, head in np.ndindex(recipe.layers, recipe.heads)]
    wanted = ["step", "loss", "copied", *(f"{what} {h}" for what in ("weight", "norm") for h in heads)]
    try:
        names, *rows = csv.reader(files.contents(file).decode().splitlines(), strict=True)
        numbers = np.array(rows, np.float64).reshape(len(rows), len(wanted))
    except (csv.Error, ValueError) as e:
        raise ValueError(f"{file} is not the table of this training: it is damaged, or of another") from e
    if names != wanted or not len(numbers):
        raise ValueError(f"{file} is not the table of this training: it has other columns, or no rows")
    size = recipe.length
    kinds = {"maps": Kind("f", (None, size, size)), "heads": Kind("iu", (None, 2)), "steps": Kind("iu", (None,))}
    held = files.arrays(place / "maps.npz", kinds)
    # Maps are written first: of a training that was killed, or is under way, there may be one more.
    count = min(len(numbers), *map(len, held.values()))
    steps = numbers[:, 0]
    if about.status != RUNNING and count != max(len(numbers), *map(len, held.values())):
        raise ValueError(
            f"{place} has not as many maps as rows in curves.csv: a file is damaged, or of another training"
        )
    if not np.array_equal(steps[:count], held["steps"][:count]):
        raise ValueError(
            f"{place} has maps of other steps than curves.csv has: a file is damaged, or of another training"
        )
    if (held["heads"] < 0).any() or (held["heads"] >= (recipe.layers, recipe.heads)).any():
        raise ValueError(f"{place} has maps of heads that its recipe does not have: it is damaged")
    columns = dict(zip(names, numbers[:count].T, strict=True))
    return Trained(recipe, columns, held["maps"][:count].astype(np.float16), held["heads"][:count].astype(np.int64))
