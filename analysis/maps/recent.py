"""Attention maps on demand: the exact weights of one head, from queries and keys that a lane holds for a while.

No attention matrix is ever kept.  A map is one small matrix product, made when somebody looks.  It may be asked for
from another thread than the one that reads, since it is drawn from the lane's view: what it held when it last stood
still, which is replaced and never overwritten.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..engine.context import QKChunk, RankedChunk
from ..engine.lane import Lane
from ..engine.view import View


@dataclass(frozen=True)
class HeadMap:
    """What queries at text positions first … first + n − 1 gave to the same positions, and to the first tokens.

    `weights` [queries, keys] and `sinks` [queries, first tokens], float32, 0 … 1; NaN where a query did not reach a
    key: it comes later in the text, or it had been evicted.  A query whose keys are no longer held has NaN throughout.
    `learned` [queries]: what each gave to a sink without a token, which the family learned or a what-if added, None
    where there is none; with it and all keys that it reached, a row sums to 1.  Weights are those before a knock-out.
    """

    layer: int
    head: int
    first: int
    weights: NDArray[np.float32]
    sinks: NDArray[np.float32]
    learned: NDArray[np.float32] | None = None

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
    places: NDArray[np.int64]
    weights: NDArray[np.float32]
    logits: NDArray[np.float32]
    learned: float | None = None


def head_row(lane: Lane, layer: int, head: int, token: int) -> HeadRow | None:
    """The row of one head for the token at a text position; None where its query is not held (yet, or any more)."""
    _check(lane, layer, head)
    view = lane.view
    piece = next((p for p in view.pieces if p.queries and p.start <= token < p.stop), None)
    if piece is None:
        return None
    with torch.inference_mode():
        places, weights, learned, scores = _weights(view, piece, layer, head)
    at = token - piece.start
    reached = ~np.isnan(weights[at])
    given = None if learned is None else float(learned[at])
    if not reached.any():
        return None
    logits = scores[at].cpu().numpy()
    return HeadRow(layer, head, token, places[reached], weights[at, reached], logits[reached], given)


def _check(lane: Lane, layer: int, head: int) -> None:
    model = lane.source.model
    if not 0 <= layer < model.layers or not 0 <= head < model.heads:
        raise ValueError(
            f"there is no layer {layer}, head {head}: layers are 0 to {model.layers - 1}, heads 0 to {model.heads - 1}"
        )


def head_map(lane: Lane, layer: int, head: int, tokens: int = 1024) -> HeadMap | None:
    """The map of a head over the last tokens that a lane holds; None before it has read anything, or if none are held.

    A lane that recomputes shows its newest window, as it was encoded.
    """
    _check(lane, layer, head)
    view = lane.view
    pieces = [p for p in view.pieces if p.queries]
    if not pieces:
        return None
    stop = pieces[-1].stop
    first = max(pieces[0].start, stop - tokens)
    shown = min(lane.source.sink_tokens, stop)
    weights = np.full((stop - first, stop - first), np.nan, np.float32)
    sinks = np.full((stop - first, shown), np.nan, np.float32)
    extra = "s_aux" in lane.source.model.settings[layer] or any(_extra(p, layer, head) is not None for p in pieces)
    learned = np.full(stop - first, np.nan, np.float32) if extra else None
    with torch.inference_mode():
        for piece in pieces:
            if piece.stop <= first:
                continue
            rows = slice(max(piece.start, first) - first, piece.stop - first)
            places, row_weights, row_learned, _ = _weights(view, piece, layer, head)
            if row_learned is not None and learned is not None:
                learned[rows] = row_learned[-(rows.stop - rows.start) :]
            row_weights = row_weights[-(rows.stop - rows.start) :]
            recent = places >= first
            weights[rows, places[recent] - first] = row_weights[:, recent]
            early = places < shown
            sinks[rows, places[early]] = row_weights[:, early]
    return HeadMap(layer, head, first, weights, sinks, learned)


def _weights(
    view: View, piece: QKChunk | RankedChunk, layer: int, head: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None, Tensor]:
    """Text positions of the keys that the queries of a piece may reach, their weights [queries, keys], those of a
    learned sink [queries], and the logits [queries, keys].

    All in float32 from what was captured, whatever the model computes in, so that a row of weights sums to 1.
    """
    model = view.source.model
    attention, settings = model.attentions[layer], model.settings[layer]
    query = piece.queries[layer][head][None, None].float()
    scaling = settings.get("scaling") or query.shape[-1] ** -0.5
    t = torch.arange(piece.start, piece.stop, device=query.device)
    parts, places, seen = [], [], []
    for meeting in (_met_ranked if isinstance(piece, RankedChunk) else _met)(view, piece, layer, head):
        at_query, at_key = (
            model.angles(attention, at, piece.length, torch.float32) for at in (meeting.queries_at, meeting.keys_at)
        )
        q = model.rotate(attention, query, at_query)
        k = model.rotate(attention, meeting.keys[None, None].float(), at_key)
        parts.append((q @ k.transpose(-1, -2))[0, 0] * scaling)
        places.append(meeting.places)
        seen.append(meeting.seen)
    cap, window = settings.get("softcap"), settings.get("sliding_window")
    sink = _sink(_extra(piece, layer, head), settings.get("s_aux"), head, query.device)
    s, at, reached = torch.cat(parts, -1), torch.cat(places), torch.cat(seen, -1)
    s = s if cap is None else cap * torch.tanh(s / cap)
    if window is not None:
        reached = reached & (at > t[:, None] - window)
    s = s.masked_fill(~reached, float("-inf"))
    # A learned sink is one more logit, without a token.
    weights = torch.softmax(s if sink is None else torch.cat((s, sink.expand(len(s), 1)), -1), -1)
    learned = None if sink is None else weights[:, -1].cpu().numpy()
    weights = weights[:, : len(at)].masked_fill(~reached, float("nan"))
    if isinstance(piece, QKChunk):
        # A row is exact only when every key that it reached is still held.
        reach = piece.reach_of(layer, head // (model.heads // model.kv_heads))
        oldest = int(places[-1][0]) if len(places[-1]) else piece.stop
        weights[reach.low(t) < oldest] = float("nan")
    return at.cpu().numpy(), weights.cpu().numpy(), learned, s


def _extra(piece: QKChunk | RankedChunk, layer: int, head: int) -> float | None:
    """The logit without a token that a what-if added for a head."""
    return None if piece.what_if is None else piece.what_if.logit_of(layer, head)


def _sink(extra: float | None, s_aux: Tensor | None, head: int, device: torch.device) -> Tensor | None:
    """The logit without a token that a head has by its family, by a what-if, or by both."""
    logits = [] if s_aux is None else [s_aux[head].float()]
    if extra is not None:
        logits.append(torch.tensor(extra, device=device))
    return torch.logsumexp(torch.stack(logits), 0) if logits else None


class Meeting(NamedTuple):
    """Keys [keys, dim] that queries meet, where both stand [queries], [keys], and which keys each of them reaches."""

    keys: Tensor
    places: Tensor
    keys_at: Tensor
    queries_at: Tensor
    seen: Tensor


def _met(view: View, piece: QKChunk, layer: int, head: int) -> list[Meeting]:
    """The sinks, and the run."""
    model = view.source.model
    group = head // (model.heads // model.kv_heads)
    reach = piece.reach_of(layer, group)
    low, run = _run(view, piece, layer, group)
    t = torch.arange(piece.start, piece.stop, device=run.device)
    meetings = []
    if reach.sinks:
        at = torch.arange(reach.sinks, device=run.device)
        keys = piece.sinks_of(layer, group)
        meetings.append(Meeting(keys, at, reach.in_front(run.device), reach.slot(t), reach.sees(t, at)))
    at = torch.arange(low, piece.stop, device=run.device)
    meetings.append(Meeting(run, at, reach.in_run(at, low), reach.in_run(t, low), reach.sees(t, at)))
    return meetings


def _met_ranked(view: View, piece: RankedChunk, layer: int, head: int) -> list[Meeting]:
    """The slots of one KV head as they were: those that are still held, and those that went after this piece."""
    model = view.source.model
    group = head // (model.heads // model.kv_heads)
    later = [p.gone[layer] for p in view.pieces if p.stop >= piece.stop]
    keys = torch.cat([view.caches[layer].keys[group], *(g.keys[group] for g in later if g is not None)])
    places = torch.cat([view.caches[layer].places[group], *(g.places[group] for g in later if g is not None)])
    order = places.argsort()
    order = order[places[order] < piece.stop]
    keys, places = keys[order], places[order]
    t = torch.arange(piece.start, piece.stop, device=places.device)
    slots = torch.arange(len(places), device=places.device)
    by_slot = piece.policy.positions == "cache"
    at, queries_at = (slots, slots[len(slots) - len(t) :]) if by_slot else (places, t)
    return [Meeting(keys, places, at, queries_at, places <= t[:, None])]


def _run(view: View, piece: QKChunk, layer: int, group: int) -> tuple[int, Tensor]:
    """The keys [tokens, dim] that stand before and in a piece without a gap, and the text position of the first."""
    newest, reach = piece.stop, piece.reach_of(layer, group)
    held = [p for p in view.pieces if p.stop <= newest]
    keys = [p.keys[layer][group] for p in held]
    low = held[0].start
    if reach.window is None:
        # A lane that keeps everything has its older keys in the cache.
        cache, row = view.held(layer, group)
        run, oldest = cache.keys.placed()
        if oldest < low <= oldest + run.shape[1]:
            keys.insert(0, run[row, : low - oldest])
            low = oldest
    run = torch.cat(keys)
    start = max(low, int(reach.low(torch.tensor(piece.start))))
    return start, run[start - low :]
