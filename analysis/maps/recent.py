"""Attention maps on demand: the exact weights of one head, from queries and keys that a lane holds for a while.

No attention matrix is ever kept.  A map is one small matrix product, made when somebody asks for it.  That may happen
in another thread than the one that reads, since a map is drawn from the lane's view: what it held when it last stood
still, which is replaced and never overwritten.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .. import metrics
from ..engine.kv.store import Chunk
from ..engine.lane import Lane
from ..engine.view import View


@dataclass(frozen=True)
class HeadMap:
    """What queries at text positions first … first + n − 1 gave to the same positions, and to the first tokens.

    `weights` [queries, keys] and `sinks` [queries, first tokens], float32, 0 … 1; NaN where a query did not reach a
    key: it comes later in the text, or it had been evicted.  A query whose keys are no longer held has NaN throughout.
    `learned` [queries]: what each gave to a sink without a token, which the family learned or an intervention added,
    None where there is none; with it and all keys that it reached, a row sums to 1.  Weights are those before a
    knock-out.  `ranges` [2, 2, dim]: of each channel of the keys that the newest queries met, before rotation, at the
    first tokens and at all others (metrics.channel_ranges).
    """

    layer: int
    head: int
    first: int
    weights: NDArray[np.float32]
    sinks: NDArray[np.float32]
    learned: NDArray[np.float32] | None = None
    ranges: NDArray[np.float32] | None = None

    def received(self) -> NDArray[np.float32]:
        """Mean attention that each of the tokens received from the queries that reached it, [keys]; NaN for none."""
        reached = ~np.isnan(self.weights)
        total = np.where(reached, self.weights, 0).sum(0)
        return np.divide(total, reached.sum(0), out=np.full_like(total, np.nan), where=reached.any(0))


@dataclass(frozen=True)
class HeadRow:
    """What one query gave to each token that it reached: text positions, weights and logits, each [keys].

    `learned`: what it gave to a sink that the family learned, None where it has none.
    """

    layer: int
    head: int
    token: int
    positions: NDArray[np.int64]
    weights: NDArray[np.float32]
    logits: NDArray[np.float32]
    learned: float | None = None


def head_row(lane: Lane, layer: int, head: int, token: int) -> HeadRow | None:
    """The row of one head for the token at a text position; None where its query is not held (yet, or any more).

    Raises ValueError where there is no such head.
    """
    _check(lane, layer, head)
    view = lane.view
    chunk = next((c for c in view.chunks if c.queries and c.start <= token < c.stop), None)
    if chunk is None:
        return None
    with torch.inference_mode():
        rows = _rows(view, chunk, layer, head)
    at = token - chunk.start
    weights = rows.weights[at]
    reached = ~np.isnan(weights)
    if not reached.any():
        return None
    learned = None if rows.learned is None else float(rows.learned[at])
    logits = rows.logits[at].cpu().numpy()[reached]
    return HeadRow(layer, head, token, rows.positions[reached], weights[reached], logits, learned)


def head_map(lane: Lane, layer: int, head: int, tokens: int = 1024) -> HeadMap | None:
    """The map of a head over the last tokens that a lane holds; None before it has read anything, or if none are held.

    A lane that recomputes shows its newest window, as it was encoded.  Raises ValueError where there is no such head.
    """
    _check(lane, layer, head)
    view = lane.view
    chunks = [c for c in view.chunks if c.queries]
    if not chunks:
        return None
    stop = chunks[-1].stop
    first = max(chunks[0].start, stop - tokens)
    shown = min(lane.context.sink_tokens, stop)
    weights = np.full((stop - first, stop - first), np.nan, np.float32)
    sinks = np.full((stop - first, shown), np.nan, np.float32)
    learned, ranges = np.full(stop - first, np.nan, np.float32), None
    with torch.inference_mode():
        for chunk in chunks:
            if chunk.stop <= first:
                continue
            into = slice(max(chunk.start, first) - first, chunk.stop - first)
            rows, count = _rows(view, chunk, layer, head), into.stop - into.start
            if rows.learned is not None:
                learned[into] = rows.learned[-count:]
            newest, positions = rows.weights[-count:], rows.positions
            recent, early = positions >= first, positions < shown
            weights[into, positions[recent] - first] = newest[:, recent]
            sinks[into, positions[early]] = newest[:, early]
            ranges = metrics.channel_ranges(rows.keys, early)
    return HeadMap(layer, head, first, weights, sinks, None if np.isnan(learned).all() else learned, ranges)


def _check(lane: Lane, layer: int, head: int) -> None:
    model = lane.context.model
    if not 0 <= layer < model.layers or not 0 <= head < model.heads:
        raise ValueError(
            f"there is no layer {layer}, head {head}: layers are 0 to {model.layers - 1}, heads 0 to {model.heads - 1}"
        )


class _Rows(NamedTuple):
    """What the queries of a chunk gave to all keys that any of them may reach."""

    positions: NDArray[np.int64]
    """Of the keys in the text, [keys]."""
    weights: NDArray[np.float32]
    """[queries, keys]; NaN where a query did not reach a key, and throughout where its row is not exact."""
    learned: NDArray[np.float32] | None
    """Weights of a sink without a token, [queries]."""
    logits: Float[Tensor, "queries keys"]
    keys: NDArray[np.float32]
    """Before rotation, [keys, dim], without channels that positions have of their own."""


def _rows(view: View, chunk: Chunk, layer: int, head: int) -> _Rows:
    """All in float32 from what was captured, whatever the model computes in, so that a row of weights sums to 1."""
    model = view.context.model
    attention, settings = model.attentions[layer], model.settings[layer]
    query = chunk.queries[layer][head][None, None].float()
    scaling = settings.get("scaling") or query.shape[-1] ** -0.5
    kv_head = head // (model.heads // model.kv_heads)
    # All chunks that a store keeps are of one kind.
    chunks: Any = view.chunks
    parts, exact = chunk.key_parts(layer, kv_head, chunks, view.layers[layer])
    scores = []
    for part in parts:
        at = part.query_rotated_at, part.key_rotated_at
        of_query, of_key = (model.angles(attention, x, chunk.length, torch.float32) for x in at)
        q = model.rotate(attention, query, of_query)
        k = model.rotate(attention, part.keys[None, None].float(), of_key)
        score = (q @ k.transpose(-1, -2))[0, 0] * scaling
        if part.quantized is not None and part.met is not None:
            k = model.rotate(attention, part.quantized[None, None].float(), of_key)
            score = torch.where(part.met, (q @ k.transpose(-1, -2))[0, 0] * scaling, score)
        scores.append(score)
    logits, positions, reached = (
        torch.cat(x, -1) for x in (scores, [p.positions for p in parts], [p.reached for p in parts])
    )
    cap, window = settings.get("softcap"), settings.get("sliding_window")
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    if window is not None:
        t = torch.arange(chunk.start, chunk.stop, device=query.device)
        reached = reached & (positions > t[:, None] - window)
    logits = logits.masked_fill(~reached, float("-inf"))
    sink = _sink_logit(_added_logit(chunk, layer, head), settings.get("s_aux"), head, query.device)
    # A sink without a token is one more logit.
    whole = logits if sink is None else torch.cat((logits, sink.expand(len(logits), 1)), -1)
    weights = torch.softmax(whole, -1)
    learned = None if sink is None else weights[:, -1].cpu().numpy()
    weights = weights[:, : len(positions)].masked_fill(~reached, float("nan"))
    weights[~exact] = float("nan")
    keys = torch.cat([p.keys for p in parts])[:, : model.head_dim - model.positions.added]
    return _Rows(positions.cpu().numpy(), weights.cpu().numpy(), learned, logits, keys.float().cpu().numpy())


def _added_logit(chunk: Chunk, layer: int, head: int) -> float | None:
    """The logit without a token that an intervention added for a head."""
    return None if chunk.interventions is None else chunk.interventions.logit_of(layer, head)


def _sink_logit(added: float | None, s_aux: Tensor | None, head: int, device: torch.device) -> Tensor | None:
    """The logit without a token that a head has by its family, by an intervention, or by both."""
    logits = [] if s_aux is None else [s_aux[head].float()]
    if added is not None:
        logits.append(torch.tensor(added, device=device))
    return torch.logsumexp(torch.stack(logits), 0) if logits else None
