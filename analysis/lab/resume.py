"""Trainings that go on where they stopped: interrupted, or killed at any moment.

What was recorded after the newest checkpoint is trained again, and must be what the record says.  Until that is known
nothing in the folder is touched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runs.checkpoint import Checkpoints
from ..runs.claim import claimed
from ..runs.stopped import refuse_written
from .folder import About, SavedTraining, TrainingWriter, about_of, read
from .measurement import Measurement
from .training import Training

CLOSE = 1e-5
"""By how much of itself a measured number may differ from the record: the last digit of curves.csv."""


@dataclass(frozen=True, eq=False)
class Resumed:
    """A training that stands where its record ends, or a few steps behind."""

    place: Path
    about: About
    training: Training
    record: list[Measurement]
    said: list[str]
    """What there is to say of how it went, in sentences."""

    def open(self) -> TrainingWriter:
        """Its folder, opened again to take in what comes.

        Raises ValueError where somebody else goes on with it by now, or did, or the disk does not take it.
        """
        with claimed(self.place):
            now = about_of(self.place)
            refuse_written(self.place, now.status, now.process)
            if now != self.about:
                raise ValueError(f"{self.place} was written by another process meanwhile: resume it again")
            return TrainingWriter(self.place, self.training, self.about.every, self.record)


def stopped(places: list[Path]) -> list[tuple[Path, About]]:
    """Those of the trainings in these folders that can go on.

    Raises ValueError where somebody writes one, or none has anything left to do.
    """
    found = [(place, about_of(place)) for place in places]
    for place, about in found:
        refuse_written(place, about.status, about.process)
    left = [(place, about) for place, about in found if about.status != "finished"]
    if not left:
        steps = max(about.recipe.steps for _, about in found)
        raise ValueError(f"all {steps:,} steps of this training have been made: begin a new one with more")
    return left


def resumed(place: Path, about: About, progress: Callable[[int], None] = lambda step: None) -> Resumed:
    """The training in a folder, ready to go on; `progress` is told the step while steps are made again.

    Raises ValueError where what is measured again is not what the record says.  The folder is as it was.
    """
    record = _measurements(read(place)[0]) if (place / "curves.csv").exists() else []
    training, said = Training(about.recipe, about.device), list[str]()
    for checkpoint in Checkpoints(place).generations() if record else ():
        try:
            training.load_state(checkpoint.about, checkpoint.tensors)
            if training.step > record[-1].step and (training.done or training.step >= record[-1].step + about.every):
                raise ValueError("it is of a moment that the record has not")
            said.append(f"It goes on from a checkpoint at step {training.step:,}.")
            break
        except (ValueError, KeyError, TypeError, RuntimeError) as e:
            training = Training(about.recipe, about.device)
            said.append(f"A checkpoint does not fit the record, and is left out: {' '.join(str(e).split())[:200]}")
    else:
        why = "There is no checkpoint to go on from" if record else "Nothing was measured yet"
        said.append(f"{why}: it begins anew.")
    if record:
        said.append(_again(place, training, record, about.every, progress))
    return Resumed(place, about, training, record, said)


def _measurements(saved: SavedTraining) -> list[Measurement]:
    """What a folder holds, as it was measured, to the digits that it has."""
    r, count = saved.recipe, len(saved.maps)
    weight, norm = (
        np.stack([saved.curves[f"{what} {layer}.{head}"] for layer, head in np.ndindex(r.layers, r.heads)], 1)
        .reshape(count, r.layers, r.heads)
        .astype(np.float64)
        for what in ("weight", "norm")
    )
    return [
        Measurement(
            int(saved.curves["step"][i]),
            float(saved.curves["loss"][i]),
            float(saved.curves["copied"][i]),
            weight[i],
            norm[i],
            (int(saved.heads[i][0]), int(saved.heads[i][1])),
            saved.maps[i],
        )
        for i in range(count)
    ]


def _again(
    place: Path, training: Training, record: list[Measurement], every: int, progress: Callable[[int], None]
) -> str:
    """Train up to the end of the record, and say what was compared.  Raises ValueError where something differs."""
    known, first, compared = {m.step: m for m in record}, training.step, set[int]()

    def compare(now: Measurement) -> None:
        if now.step not in known:
            raise ValueError(
                f"{place} has measured other steps than each {every}: curves.csv was changed, so the training does not "
                "go on, and its folder is as it was"
            )
        _compare(place, now, known[now.step])
        compared.add(now.step)

    if first in known:
        compare(training.measure())
    moments = training.moments(every)
    while training.step < record[-1].step:
        if (now := next(moments)) is not None:
            compare(now)
        progress(training.step)
    if not compared:
        return "Nothing had to be trained again."
    return (
        f"Trained again: {training.step - first:,} steps. No measurement differs from the record, of "
        f"{len(compared):,} that were compared."
    )


def _compare(place: Path, now: Measurement, then: Measurement) -> None:
    """Raises ValueError where a measurement is not the one of the record."""
    for what, a, b in (
        ("loss", then.loss, now.loss),
        ("loss on copied tokens", then.copied, now.copied),
        ("weight on the first token", then.weight, now.weight),
        ("norm of the first value", then.norm, now.norm),
    ):
        a, b = np.ravel(a), np.ravel(b)
        for i in np.flatnonzero(~np.isclose(a, b, rtol=CLOSE, atol=1e-7, equal_nan=True))[:1]:
            raise ValueError(
                f"the {what} after step {now.step:,} of the training in {place} is {a[i]:.6g} in the record, and "
                f"{b[i]:.6g} when it is trained again: this machine, or the libraries on it, compute something else, "
                "so the training does not go on, and its folder is as it was"
            )
