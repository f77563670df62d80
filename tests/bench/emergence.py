"""What grows in a small transformer under each attention, for three seeds, and how fast it is trained."""

import math
import time

import numpy as np
import torch
from torch.nn import functional as F

from analysis.lab.recipe import ATTENTIONS, Recipe
from analysis.lab.tasks import Backcopy, is_trigger
from analysis.lab.training import Training
from analysis.lab.transformer import Activations

from .report import compared, head, line, said
from .sizes import size

SEEDS = size((0, 1, 2), (0,))
STEPS = size(Recipe.steps, 4)
MARKS = {"softmax": (0.5, "≥ 0.5"), "relu": (0.05, "≤ 0.05"), "sigmoid": (0.1, "≤ 0.1")}
EVERY = size(20, 2)
TIMED = size(40, 2)
"""Steps over which a rate is taken."""


def main() -> None:
    head("Weight on the first token after the default recipe")
    rates = []
    for attention in ATTENTIONS:
        for seed in SEEDS:
            training, passed, began = Training(Recipe(attention, seed=seed, steps=STEPS)), None, time.perf_counter()
            while not training.done:
                training.advance(EVERY)
                moment = training.measure()
                if passed is None and moment.sink > 0.3:
                    passed = time.perf_counter() - began
            rates.append(training.step / (time.perf_counter() - began))
            limit, mark = MARKS.get(attention, (None, ""))
            good = None if limit is None else moment.sink >= limit if attention == "softmax" else moment.sink <= limit
            line(f"{ATTENTIONS[attention]}, seed {seed}", moment.sink, mark, good=good)
            when = "never above 0.3" if passed is None else f"above 0.3 after {passed:.0f} s"
            said("", f"value's norm {moment.value:.2f} ×, copied {moment.copied:.3f} nats, {when}")
    line("steps a second, with what is measured, median", np.median(rates), "30 wished", good=np.median(rates) >= 30)
    fast, naive = zip(*((_rate(_ours()), _rate(_naive())) for _ in range(3)), strict=True)
    versus = {"theirs": np.median(naive), "ours": np.median(fast), "ratio": np.median(np.divide(fast, naive))}
    compared("training with softmax", "the same as a plain loop", **versus, unit="steps/s")


def _rate(step, count: int = TIMED) -> float:
    for _ in range(5):
        step()
    began = time.perf_counter()
    for _ in range(count):
        step()
    return count / (time.perf_counter() - began)


def _ours():
    training = Training(Recipe())
    return lambda: training.advance(1)


def _naive():
    """The same model and task as one writes them first: whole matrices of weights, sequences drawn one by one."""
    recipe = Recipe()
    training = Training(recipe)
    optimizer = torch.optim.AdamW(training.model.parameters(), recipe.rate, weight_decay=recipe.decay, foreach=False)
    chance, sums = np.random.default_rng(1), np.cumsum(Backcopy(recipe).followers, 1)

    def step() -> None:
        tokens = np.zeros((recipe.batch, recipe.length + 1), np.int64)
        for t in range(1, recipe.length + 1):
            for b in range(recipe.batch):
                before = tokens[b, t - 1]
                if t >= 3 and is_trigger(before):
                    tokens[b, t] = tokens[b, t - 2]
                else:
                    tokens[b, t] = 1 + np.searchsorted(sums[before], chance.random() * sums[before, -1])
        ids = torch.from_numpy(tokens)
        loss = F.cross_entropy(training.model(ids[:, :-1], Activations()).flatten(0, 1), ids[:, 1:].flatten())
        assert math.isfinite(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
        optimizer.step()

    return step
