"""Which KV heads keep everything where only some do: scores measured on the text, or given as numbers or a file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import files
from ..policies.duo import Duo, numbers, rows_of
from ..settings import quoted
from .attention.band import Band
from .attention.banded import BandedPass
from .context import SCORES, SharedContext

MEASURED, SINKS = 512, 4
"""Tokens of the text over which heads are measured, and how many of the first of them are its sinks."""
MAX_BYTES = 2**20
"""The largest file that scores heads."""


def full_heads(context: SharedContext, policy: Duo) -> list[list[int]]:
    """KV heads of each layer that keep everything.  Raises ValueError where a file does not fit the model."""
    scores = context.once(
        (SCORES, policy.scores),
        lambda: measured_scores(context) if policy.measured else _given_scores(context, policy),
    )
    count = round(policy.full / 100 * scores.size)
    best = np.sort(np.argsort(-scores, axis=None, kind="stable")[:count])
    return [(best[best // scores.shape[1] == layer] % scores.shape[1]).tolist() for layer in range(len(scores))]


def measured_scores(context: SharedContext) -> NDArray[np.float64]:
    """The share of its attention that each KV head gives to the first tokens, [layers, kv_heads], over the beginning of
    the text."""
    model, ids = context.model, context.ids[None, :MEASURED]
    one = BandedPass(model, 0, SINKS, Band(0, 0, None, "text"), None)
    one.length = model.regime(ids.shape[1])
    model.forward(ids, one, last=1)
    later = [mass[:, min(SINKS, mass.shape[1] - 1) :] for mass in one.mass]
    mass = np.stack([m.mean(-1).cpu().numpy() for m in later]).astype(np.float64)
    return mass.reshape(len(mass), model.kv_heads, -1).mean(-1)


def _given_scores(context: SharedContext, policy: Duo) -> NDArray[np.float64]:
    """The scores that a policy names, [layers, kv_heads].  Raises ValueError where they are not this model's."""
    layers, kv_heads, what = context.model.layers, context.model.kv_heads, quoted(policy.scores)
    rows = policy.given or _rows(policy)
    counts = sorted({len(row) for row in rows})
    if (len(rows), counts) != (layers, [kv_heads]):
        raise ValueError(
            f"{policy.name}: {what} has {len(rows)} rows of {' or '.join(map(str, counts))} numbers, and "
            f"this model has {layers} layers of {kv_heads} KV heads: give a file for this model"
        )
    scores = np.array(rows)
    if not np.isfinite(scores).all():
        raise ValueError(f"{policy.name}: {what} rates a head with what is no number: give a number for each")
    return scores


def _rows(policy: Duo) -> tuple[tuple[float, ...], ...]:
    """The rows of numbers in the file that a policy names: a regular one on this machine, and never a large one."""
    try:
        return numbers(rows_of(files.contents(Path(policy.file), MAX_BYTES).decode("utf-8-sig")))
    except ValueError as e:
        raise ValueError(
            f"{policy.name}: {quoted(policy.file)} cannot be read as numbers: give a text file on this machine with a "
            "row for each layer and a number for each KV head, or scores=measured"
        ) from e
