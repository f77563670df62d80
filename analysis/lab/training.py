"""A small transformer is trained where a head mostly has nothing to do (tasks.py), and measured as its sink grows.

Knows nothing of pretrained models, nor of files (folder.py).
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .measurement import Measurement
from .recipe import Recipe
from .tasks import Backcopy, Plays, Task
from .transformer import Activations, Transformer

TOGETHER = 16
"""Batches that are drawn at a time."""
HELD_WEIGHTS = 2**26
"""Weights that are held at once while measuring: a quarter of a gigabyte."""


class Training:
    """One model that is being trained, by a recipe."""

    def __init__(self, recipe: Recipe, device: str | torch.device = "cpu") -> None:
        self.recipe, self.step, self.device = recipe, 0, torch.device(device)
        self.task: Task = {"backcopy": Backcopy, "plays": Plays}[recipe.task](recipe)
        r, generator = recipe, torch.Generator().manual_seed(recipe.seed)
        model = Transformer(r.attention, r.vocabulary, r.length, r.width, r.layers, r.heads, generator)
        self.model = model.to(self.device)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), r.rate, weight_decay=r.decay, fused=True)
        self._rng = np.random.default_rng(r.seed + 1)
        self._waiting: list[NDArray[np.int64]] = []
        self._before = self._rng.bit_generator.state
        """The generator as it was before the batches that wait were drawn."""
        self._held_out = torch.from_numpy(self.task.held_out()).to(self.device)

    @property
    def done(self) -> bool:
        """Whether all steps of the recipe have been made."""
        return self.step >= self.recipe.steps

    @property
    def example(self) -> NDArray[np.int64]:
        """The sequence whose map a measurement holds, [length]."""
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

    def measurements(self, every: int) -> Iterator[Measurement]:
        """What the model is like now, and after each `every` steps to the end.  Raises ValueError as `measure` does."""
        return (moment for moment in self.moments(every) if moment is not None)

    def moments(self, every: int) -> Iterator[Measurement | None]:
        """Train on to the end, a step at a time: what the model is like at first, after each `every` steps and at the
        end; after other steps None.  Raises ValueError as `measure` does."""
        if self.step == 0:
            yield self.measure()
        while not self.done:
            self.advance(1)
            yield self.measure() if self.step % every == 0 or self.done else None

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All that it takes to train on in another process: plain values, and copies of tensors by name, on the CPU."""
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        for index, held in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in held.items()}
        rng = self._before if self._waiting else self._rng.bit_generator.state
        # As text, since not everything that reads JSON knows whole numbers of 128 bits.
        about = {"step": self.step, "waiting": len(self._waiting), "rng": json.dumps(rng)}
        return about, {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}

    def load_state(self, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Become the training whose state this is, of the same recipe.

        Raises ValueError, KeyError, TypeError or RuntimeError where it is of another; this one is then of no use.
        """
        self.model.load_state_dict({n.partition(".")[2]: t for n, t in tensors.items() if n.startswith("model.")})
        held: dict[int, dict[str, Tensor]] = {}
        for name, t in tensors.items():
            if name.startswith("optimizer."):
                _, index, of = name.split(".")
                held.setdefault(int(index), {})[of] = t
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": held, "param_groups": groups})
        self.step, waiting = int(about["step"]), int(about["waiting"])
        self._rng.bit_generator.state = json.loads(about["rng"])
        if waiting:
            self._draw()
            del self._waiting[waiting:]

    @torch.no_grad()
    def measure(self) -> Measurement:
        """What the model is like now.  Raises ValueError where the loss is no number any more."""
        r, parts = self.recipe, []
        # Weights of all layers are held at once: of so many sequences that this is no burden.
        together = max(1, HELD_WEIGHTS // (r.layers * r.heads * r.length**2))
        for ids in self._held_out.split(together):
            record, copies = Activations(), self.task.copies(ids[:, :-1])
            nll = F.cross_entropy(self.model(ids[:, :-1], record).transpose(1, 2), ids[:, 1:], reduction="none")
            idle = ~copies
            idle[:, 0] = False  # which sees nothing but itself
            weights, values = torch.stack(record.weights), torch.stack(record.values)
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
        return Measurement(
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
            self._draw()
        return torch.from_numpy(self._waiting.pop()).to(self.device)

    def _draw(self) -> None:
        self._before = self._rng.bit_generator.state
        self._waiting = np.split(self.task.draw(self.recipe.batch * TOGETHER, self._rng), TOGETHER)
