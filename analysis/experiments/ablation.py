"""What each head's sink is worth: knock it out in one head after the other, and see what the text then costs.

One pass over the text for every head, so it takes a while; what is known is yielded as it comes, and whoever has seen
enough stops asking.
"""

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from .. import files, metrics
from ..engine.stream import CHUNK, Loaded, open_lanes
from ..families.rotary import Adapted
from ..models.language_model import LanguageModel
from ..policies import Policy
from ..runs.checkpoint import Checkpoints
from ..runs.result import Keep
from ..settings import quoted
from ..tables import as_csv, from_csv

PASS_SECONDS = 0.25
"""What a pass should take where somebody waits: they see that it goes on, and can stop it."""
MIN_CHUNK, MIN_CHUNK_ONE_BY_ONE = 32, 4
"""Tokens of such a pass, at least: fewer cost hardly less, but where a policy reads one by one."""
Model = Loaded | PreTrainedModel | Adapted
KINDS = ("values", "weights")
"""What is knocked out of a head."""
EFFECTS = "effects.csv"
HEADER = ("layer", "head", "excess_nats_per_token", "standard_error")


class Effect(NamedTuple):
    """What a text costs more when one head's sink is knocked out: nats per token, and its standard error."""

    layer: int
    head: int
    excess: float
    error: float


def effects_as_csv(effects: Iterable[Effect]) -> str:
    """A row for each effect, in the order in which they come."""
    return as_csv(HEADER, (list(map(str, effect)) for effect in effects))


class Unmodified(NamedTuple):
    """What the text costs where nothing is knocked out: NLL [tokens − 1], and up to where each pass over it went."""

    nll: NDArray[np.float32]
    cuts: list[int]


def read_effects(path: Path) -> list[Effect]:
    """The effects in a CSV file, in its order.  Raises ValueError where it is damaged."""
    rows = from_csv(files.contents(path), HEADER, str(path))
    try:
        found = [Effect(int(row[0]), int(row[1]), float(row[2]), float(row[3])) for row in rows]
    except ValueError as e:
        raise ValueError(f"{path} has a cell that is no number: it is damaged") from e
    if any(min(effect.layer, effect.head) < 0 for effect in found):
        raise ValueError(f"{path} has a layer or a head below 0: it is damaged")
    return found


class EffectsFile:
    """A CSV file that takes in the effect of each head as it comes, and is sorted at the end.

    Raises ValueError where the disk does not take it, and where there is such a file already.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._effects = path, list[Effect]()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as f:
                f.write(as_csv(HEADER, []))
        except OSError as e:
            raise files.unwritten(path, e) from e

    def add(self, effect: Effect) -> None:
        """Take in the effect of one more head.  Raises ValueError where the disk does not take it, and what was there
        before stays."""
        self._effects.append(effect)
        # All of them again: of a row that is cut off, the last number would be another.
        files.write(self.path, effects_as_csv(self._effects))

    def finish(self) -> None:
        """Write all effects again, the largest first.  Raises ValueError where the disk does not take it."""
        files.write(self.path, effects_as_csv(sorted(self._effects, key=lambda e: -e.excess)))


def without_sink(policy: Policy, kind: str, layer: int, head: int) -> Policy:
    """A policy with the sink of one head knocked out; `kind`: values or weights (engine/interventions.py).

    Raises ValueError where `kind` is something else, and where it changes attention itself: its `heads` would then say
    two things.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {quoted(kind)}")
    if policy.knockout != "none" or policy.softmax != "ordinary":
        raise ValueError(
            f"{policy.label}: the sink is knocked out of attention as it is, one head at a time, and this policy "
            "changes attention itself: choose knockout=none and softmax=ordinary"
        )
    return replace(policy, knockout=kind, heads=f"{layer}.{head}")


def knock_outs(
    model: Model,
    tokens: NDArray[np.int32],
    policy: Policy,
    kind: str,
    heads: Iterable[tuple[int, int]] | None = None,
    *,
    unmodified: Unmodified | None = None,
) -> Iterator[Effect | float]:
    """The effect of each head (all of them, or those given as layer and head), as soon as it is known.  Before it come
    floats, how many times the text has been read by now: 3.5 is half of the fourth.  The first pass knocks nothing out.

    `kind`: values or weights (engine/interventions.py); `unmodified`: what the first pass came to earlier, which is
    then left out.  The text is cut at the same places whenever it is read, so that rounding is the same.  The standard
    error is over blocks of 256 tokens, NaN for a text of less than two.  Raises ValueError as `open_lanes` and
    `without_sink` do.
    """
    without_sink(policy, kind, 0, 0)
    if unmodified is None:
        unmodified = yield from read_unmodified(model, tokens, policy)
    adapted = open_lanes(model, tokens, [policy])[0].context.model
    # What belongs to a loaded model is needed again; any other is adapted once for all heads.
    again = adapted if isinstance(model, PreTrainedModel) else model
    if heads is None:
        heads = ((layer, head) for layer in range(adapted.layers) for head in range(adapted.heads))
    for done, (layer, head) in enumerate(heads, 1):
        without = without_sink(policy, kind, layer, head)
        knocked_out = yield from _read_again(again, tokens, without, unmodified.cuts, done)
        yield Effect(layer, head, *metrics.excess(knocked_out, unmodified.nll))


def knock_out_each(
    model: Model,
    tokens: NDArray[np.int32],
    policy: Policy,
    kind: str,
    heads: Iterable[tuple[int, int]] | None = None,
) -> Iterator[Effect]:
    """The effects alone, as `knock_outs` yields them."""
    return (e for e in knock_outs(model, tokens, policy, kind, heads) if isinstance(e, Effect))


def heads_of(model: LanguageModel, layer: int | None) -> list[tuple[int, int]]:
    """All query heads of a model, or of one layer: layer and head.  Raises ValueError where there is no such layer."""
    if layer is not None and not 0 <= layer < model.layers:
        raise ValueError(f"there is no layer {layer}: layers are 0 to {model.layers - 1}")
    layers = range(model.layers) if layer is None else [layer]
    return [(of, head) for of in layers for head in range(model.heads)]


def kept_knock_outs(
    keep: Keep,
    model: Model,
    tokens: NDArray[np.int32],
    policy: Policy,
    kind: str,
    heads: Sequence[tuple[int, int]],
    known: Path | None,
) -> Iterator[Effect | float]:
    """What `knock_outs` yields, put into a folder as it comes: first all that lies in the folder `known`, then what is
    missing there.  Raises ValueError where that is damaged, too."""
    without_sink(policy, kind, 0, 0)
    unmodified, found = (None, []) if known is None else _known(known, len(tokens))
    effects = [effect for effect in found if (effect.layer, effect.head) in set(heads)]
    yield from effects
    left = [head for head in heads if head not in {(e.layer, e.head) for e in effects}]
    begun = len(effects)
    if unmodified is None:
        unmodified = yield from _counted(read_unmodified(model, tokens, policy), begun)
        about, tensors = {"cuts": unmodified.cuts}, {"nll": torch.from_numpy(unmodified.nll)}
        keep(lambda folder: folder.checkpoints.write(about, tensors))
    for result in knock_outs(model, tokens, policy, kind, left, unmodified=unmodified):
        if isinstance(result, Effect):
            effects.append(result)
            keep(lambda folder: files.write(folder.path / EFFECTS, effects_as_csv(effects)))
            yield result
        else:
            yield begun + result


def _counted(reading: Generator[float, None, Unmodified], begun: int) -> Generator[float, None, Unmodified]:
    """The first pass over the text, of a result that has `begun` effects already."""
    while True:
        try:
            share = next(reading)
        except StopIteration as e:
            return e.value
        yield begun + share


def _known(place: Path, tokens: int) -> tuple[Unmodified | None, list[Effect]]:
    """What a folder has of knock-outs that stopped.  Where it lacks what they are compared with, as of other hands it
    does, the effects stand all the same: each was compared with a pass of its own machine."""
    if (checkpoint := Checkpoints(place).newest()) is None:
        return None, _effects(place)
    nll, cuts = checkpoint.tensors.get("nll"), checkpoint.about.get("cuts")
    if nll is None or not isinstance(cuts, list) or len(nll) != tokens - 1 or cuts[-1:] != [tokens]:
        raise ValueError(f"the checkpoint of {place} is not of this text: delete its folder checkpoint, and begin anew")
    return Unmodified(nll.numpy(), cuts), _effects(place)


def _effects(place: Path) -> list[Effect]:
    return read_effects(place / EFFECTS) if os.path.exists(place / EFFECTS) else []


def read_unmodified(model: Model, tokens: NDArray[np.int32], policy: Policy) -> Generator[float, None, Unmodified]:
    """Read the text with nothing knocked out, so much at a time as takes about PASS_SECONDS, and tell what share of it
    is read by now."""
    size = least = MIN_CHUNK if policy.pass_tokens is None else max(MIN_CHUNK_ONE_BY_ONE, policy.pass_tokens)
    lane, parts, cuts = open_lanes(model, tokens, [policy])[0], [], []
    while not lane.done:
        began = time.perf_counter()
        parts.append(lane.read(size).nll)
        cuts.append(lane.position)
        fitting = len(parts[-1]) * PASS_SECONDS / (time.perf_counter() - began)
        size = int(min(CHUNK, 4 * size, max(least, fitting)))
        yield lane.position / len(tokens)
    return Unmodified(np.concatenate(parts), cuts)


def _read_again(
    model: Model, tokens: NDArray[np.int32], policy: Policy, cuts: list[int], done: int
) -> Generator[float, None, NDArray[np.float32]]:
    """NLL of the text, read in passes that end at `cuts`, when it has been read `done` times."""
    lane, parts = open_lanes(model, tokens, [policy])[0], []
    for cut in cuts:
        while lane.position < cut:
            parts.append(lane.read(cut - lane.position, upto=cut).nll)
        yield done + cut / len(tokens)
    return np.concatenate(parts)
