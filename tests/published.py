"""Policies that rank slots, once more, written from their papers: a full attention matrix and a list of kept positions.

One token after the other, one KV head after the other, no cache.  Slow, and only for tiny models.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from analysis.engine.stream import open_lanes
from analysis.policies import Dense

from .naive import standing

EXACT = {"random", "late", "scissorhands", "cam"}
WITHIN = 128 * 2.0**-23
"""The share by which two scores of a float32 model may differ and still be equal."""


@dataclass
class Moment:
    """What there is when a KV head must drop something, after token `t` has been read.

    `A[h][t][j]`: attention of token t to token j, mean over the query heads of KV head h, 0 where j was not held;
    `keys` and `values` [tokens, dim] of this head before rotation; `kept`: positions, ascending; `rotated` [kept, dim]:
    the kept keys as the newest query met them; `queries` [groups, tokens, dim] of this head, before rotation,
    times the scaling; `rotations(positions)` [positions, dim, dim]: x @ each rotates x to that position.
    """

    A: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    rotated: np.ndarray
    queries: np.ndarray
    rotations: Callable
    kept: list
    t: int
    layer: int
    head: int

    def given(self, q, j):
        return self.A[self.head][q][j]


def h2o(policy, m):
    """Zhang et al. 2023, Algorithm 1: the sum over all queries so far."""
    return [sum(m.given(q, j) for q in range(j, m.t + 1)) for j in m.kept]


def tova(policy, m):
    """Oren et al. 2024, section 3.2: the newest query's attention, mean over all heads of the layer."""
    heads = range(len(m.A)) if policy.agree == "layer" else [m.head]
    return [np.mean([m.A[h][m.t][j] for h in heads]) for j in m.kept]


def snapkv(policy, m):
    """Li et al. 2024, Listing 1: the observation window's votes for what stands before it, pooled with zeros around."""
    window = range(max(0, m.t - policy.recent + 1), m.t + 1)
    votes = [np.mean([m.given(q, j) for q in window]) for j in m.kept[: -policy.recent]]
    half = policy.kernel // 2
    padded = [0.0] * half + votes + [0.0] * half
    of = {"mean": np.mean, "max": np.max}[policy.pooling]
    return [of(padded[i : i + policy.kernel]) for i in range(len(votes))] + [0.0] * policy.recent


def pyramid(policy, m):
    return {"snapkv": snapkv, "h2o": h2o}[policy.scorer](policy, m)


def knorm(policy, m):
    """Devoto et al. 2024, section 3: long keys go."""
    return [-np.linalg.norm(m.keys[j]) for j in m.kept]


def keydiff(policy, m):
    """Park et al. 2025, section 3: minus the cosine to the mean of the normalised keys."""
    keys = m.rotated if policy.keys == "rotated" else m.keys[m.kept]
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    anchor = unit.mean(0)
    return list(-(unit @ anchor) / np.linalg.norm(anchor))


def scissorhands(policy, m):
    """Liu et al. 2023, Algorithm 2: how many of the newest queries gave less than an even share."""
    worth = np.zeros(len(m.kept))
    for q in range(max(0, m.t - policy.history + 1), m.t + 1):
        reached = [i for i, j in enumerate(m.kept) if m.given(q, j) > 0]
        for i in reached:
            worth[i] -= m.given(q, m.kept[i]) * len(reached) < 1 - WITHIN
    return list(worth)


def lagkv(policy, m):
    """Liang et al. 2025, equations 2 to 6, for stretches that are counted from the newest."""
    lag, scores = policy.recent, np.zeros(len(m.kept))
    first = sum(j < policy.sinks for j in m.kept)
    ends = list(range(len(m.kept), first, -lag))
    for end, following in zip(ends[1:], ends, strict=False):
        begin = max(first, end - lag)
        for x in (m.rotated, m.values[m.kept]):
            later = x[end:following]
            low, high = later.min(0), later.max(0)
            rounding = WITHIN * abs(later).max()
            same = (high - low <= rounding) & (abs(x[begin:end] - low) <= rounding)
            std = np.where(same, 0, (x[begin:end] - low) / np.maximum(high - low, rounding)).std(1, ddof=1)
            share = np.exp(std - std.max()) / np.exp(std - std.max()).sum()
            scores[begin:end] += share * (end - begin) / lag
    return list(scores)


def expected_attention(policy, m):
    """Devoto et al. 2025, section 3: queries are normal, so the mean of exp(q · k) is exp(μ · k + k · Σ k / 2)."""
    begin = len(m.kept) if policy.positions == "cache" else m.t + 1
    rotation = m.rotations(range(begin, begin + policy.future)).mean(0)
    free = [i for i, j in enumerate(m.kept) if j >= policy.sinks]
    weights = np.zeros(len(m.kept))
    for queries in m.queries[:, policy.sinks : m.t + 1]:
        mean, covariance = queries.mean(0) @ rotation, rotation.T @ np.cov(queries.T, bias=True) @ rotation
        logits = [mean @ k + k @ covariance @ k / 2 for k in m.rotated[free]]
        weights[free] += np.exp(logits - max(logits)) / np.exp(logits - max(logits)).sum() / len(m.queries)
    return list(weights * np.linalg.norm(m.values[m.kept], axis=1))


def lot(j, layer, head, seed):
    """What the token at position j draws."""
    mask, stream = 2**64 - 1, 1 + head + 1000 * layer + 1_000_003 * seed
    x = (j * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


def random(policy, m):
    return [lot(j, m.layer, m.head, policy.seed) for j in m.kept]


def late(policy, m):
    return m.kept


def cam(policy, m):
    return m.kept


def merging(policy, worth, draws, leaves):
    """Zhang et al. 2024: which slots of a row get a share of the value of one that leaves, the oldest first.

    `worth`: the attention that each got so far; `draws`: what chance says of each; `leaves`: indices.  Yields (who
    leaves, who gets a `merge`-th of its value).
    """
    for i in sorted(leaves):
        following = range(i + 1, min(i + 1 + policy.merge, len(worth)))
        mean = sum(worth[k] for k in following) / max(1, len(following))
        if mean * draws[i] < worth[i]:
            yield i, following


def adakv(policy, m):
    """Feng et al. 2024, Algorithm 2: SnapKV's scores; how many of them stay in this head is said by `shared_out`."""
    return snapkv(policy, m)


RULES = (h2o, tova, snapkv, adakv, knorm, keydiff, scissorhands, lagkv, expected_attention, pyramid, random, late, cam)
WORTH = {f.__name__.replace("_", "-"): f for f in RULES}


def order(worth, protected, within, scale=0.0):
    """Slots, first the one that goes first: by worth, and where that is equal but for rounding, the older first."""
    rising = sorted(range(len(worth)), key=lambda i: worth[i])
    ranks, rank = {}, 0
    for before, i in zip([None, *rising], rising, strict=False):
        if before is not None:
            size = max(abs(worth[i]), abs(worth[before]), scale)
            rank += worth[i] - worth[before] > within * size
        ranks[i] = rank
    return sorted(range(len(worth)), key=lambda i: (i in protected, ranks[i], i))


def survivors(policy, m):
    """What a KV head keeps when it holds more than its budget."""
    worth, first = WORTH[policy.name](policy, m), getattr(policy, "start", 0)
    newest = len(m.kept) - policy.recent
    protected = {i for i, j in enumerate(m.kept) if first <= j < first + policy.sinks or i >= newest}
    # Protected slots must not stand between two that are nearly equal.
    free = [i for i in range(len(m.kept)) if i not in protected]
    scale = 1.0 if "keydiff" in (policy.name, getattr(policy, "scorer", "")) else 0.0
    going = order([worth[i] for i in free], set(), 0.0 if policy.name in EXACT else WITHIN, scale)
    return going, free, protected


def in_blocks(policy, m, budget):
    """What a KV head keeps where slots leave in blocks, counted from its first."""
    worth, first, block = WORTH[policy.name](policy, m), getattr(policy, "start", 0), policy.block
    newest = m.kept[len(m.kept) - policy.recent :]
    slots = [range(i, i + block) for i in range(0, len(m.kept) - block + 1, block)]
    free = [b for b in slots if not any(first <= m.kept[i] < first + policy.sinks or m.kept[i] in newest for i in b)]
    means = [float(np.mean([worth[i] for i in b])) for b in free]
    scale = 1.0 if "keydiff" in (policy.name, getattr(policy, "scorer", "")) else 0.0
    left = set(range(len(m.kept)))
    for b in order(means, set(), 0.0 if policy.name in EXACT else WITHIN, scale):
        if len(left) > budget - policy.interval + 1:
            left -= set(free[b])
    return [j for i, j in enumerate(m.kept) if i in left]


def shared_out(policy, moments, budget):
    """What each KV head of a layer keeps of one budget for all of them (Feng et al. 2024, Algorithms 1 and 2)."""
    going = [survivors(policy, m) for m in moments]
    best = []
    for m, (rising, free, _) in zip(moments, going, strict=True):
        worth = WORTH[policy.name](policy, m)
        best += [(worth[free[i]], m.kept[free[i]], m.head) for i in rising]
    best.sort(reverse=True)
    even = budget - policy.interval + 1 - policy.recent - policy.sinks
    wins = Counter(head for _, _, head in best[: even * len(moments)])
    given = {m.head: round(wins[m.head] * (1 - policy.floor / 100) + even * policy.floor // 100) for m in moments}
    inside = [slot for slot in best if sum(b[2] == slot[2] for b in best[: best.index(slot)]) < given[slot[2]]]
    stays = {(m.head, m.kept[i]) for m, (_, _, protected) in zip(moments, going, strict=True) for i in protected}
    for _, position, head in inside + [slot for slot in best if slot not in inside]:
        if len(stays) < (budget - policy.interval + 1) * len(moments):
            stays.add((head, position))
    return [[j for j in m.kept if (m.head, j) in stays] for m in moments]


class Naive:
    """Attends with all keys at hand; which of them count is a list of positions for every KV head."""

    def __init__(self, model, policy, layers):
        self.model, self.policy, self.layers = model, policy, layers
        self.kept, self.mass, self.rows = {}, [], []

    def attend(self, attention, query, key, value, *, scaling=None, **_):
        model, policy, layer = self.model, self.policy, attention.layer_idx
        (heads, tokens, dim), kv_heads = query.shape[1:], key.shape[1]
        groups, budget = heads // kv_heads, policy.budget_of(layer, self.layers)
        out, mass = torch.zeros(tokens, heads, dim), np.zeros((heads, tokens))
        rows = np.full((heads, tokens, tokens), np.nan)
        A, kept = np.zeros((kv_heads, tokens, tokens)), [[] for _ in range(kv_heads)]
        # Of a policy that merges, values change.
        value = value.clone()
        keys, values = key[0].double().numpy(), value[0].double().numpy()
        angles = standing(model, attention, tokens + policy.future_positions)
        asked = (query[0].double() * (scaling or dim**-0.5)).unflatten(0, (kv_heads, groups)).numpy()

        @cache
        def rotation(at):
            return model.rotate(attention, torch.eye(dim)[None, None], angles([at] * dim))[0, 0].double().numpy()

        def rotations(positions):
            return np.stack([rotation(at) for at in positions])

        for t in range(tokens):
            met = []
            for h in range(kv_heads):
                kept[h].append(t)
                at = list(range(len(kept[h]))) if policy.positions == "cache" else kept[h]
                rotated = model.rotate(attention, key[:, h : h + 1, kept[h]], angles(at))
                own = slice(h * groups, (h + 1) * groups)
                rotated_query = model.rotate(attention, query[:, own, t : t + 1], angles(at[-1:]))
                weights = torch.softmax(rotated_query @ rotated.transpose(-1, -2) * (scaling or dim**-0.5), -1)
                out[t, own] = (weights @ value[:, h : h + 1, kept[h]])[0, :, 0]
                A[h, t, kept[h]] = weights[0, :, 0].mean(0)
                rows[own, t, kept[h]] = weights[0, :, 0]
                mass[own, t] = weights[0, :, 0, [j < 4 for j in kept[h]]].sum(-1)
                met.append(rotated[0, 0].double().numpy())
            if sum(map(len, kept)) > budget * kv_heads:
                moments = [
                    Moment(A, keys[h], values[h], met[h], asked[h], rotations, kept[h], t, layer, h)
                    for h in range(kv_heads)
                ]
                shared = policy.store == "ragged"
                kept = shared_out(policy, moments, budget) if shared else [self._less(m, budget) for m in moments]
                for m in moments if policy.name == "cam" else ():
                    self._merge(m, kept[m.head], value[0, m.head])
        for h in range(kv_heads):
            self.kept[layer, h] = kept[h]
        self.mass.append(mass)
        self.rows.append(rows)
        return out[None]

    def _merge(self, m, kept, value):
        worth, draws = h2o(self.policy, m), random(self.policy, m)
        leaves = [i for i, j in enumerate(m.kept) if j not in kept]
        for i, following in merging(self.policy, worth, draws, leaves):
            for k in following:
                value[m.kept[k]] += value[m.kept[i]] / self.policy.merge

    def _less(self, m, budget):
        if self.policy.block > 1:
            return in_blocks(self.policy, m, budget)
        going, free, _ = survivors(self.policy, m)
        evicted = {free[i] for i in going[: len(m.kept) - (budget - self.policy.interval + 1)]}
        return [j for i, j in enumerate(m.kept) if i not in evicted]


def naive(model, tokens, policy):
    """NLL of tokens 1 …, and what was kept on the way."""
    adapted = open_lanes(model, tokens, [Dense()])[0].context.model
    book = Naive(adapted, policy, adapted.layers)
    ids = torch.as_tensor(tokens)[None]
    logits = adapted.forward(ids[:, :-1], book)[0]
    return -torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].numpy(), book
