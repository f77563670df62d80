"""What a ranked policy lets go of in a lane that is written out plainly (switching.py): the policy's own word,
`order`, from what was observed there.

Slots stand in rows: each KV head has one, or where they share a budget all of them have one together.
"""

from itertools import chain

import torch

from analysis.policies.ranked import FutureQueries, LayerState

from .published import lot, merging
from .rounding import by_token, due, nearest

TIE = 1e-4
"""Share of the range of scores within which rounding may decide which slot goes."""


def let_go(lane, attention):
    """Take from the heads of a layer what its policy evicts, if there is more than its budget."""
    policy, layer = lane.policy, attention.layer_idx
    budget, held = policy.budget_of(layer, len(lane.layers)), lane.slots[layer]
    if sum(map(len, held)) <= budget * len(held):
        return
    rows, left = [[(head, slot) for slot in slots] for head, slots in enumerate(held)], len(held[0])
    if policy.store == "ragged":
        rows = [sorted(chain.from_iterable(rows), key=lambda of: (of[1].position, of[0]))]
    seen = as_seen(lane, attention, rows)
    while policy.store == "ranked" and left > budget - policy.interval + 1:
        # Whole blocks leave.
        left -= policy.block
    count = left if policy.store == "ranked" else (budget - policy.interval + 1) * len(held)
    order, scores = policy.order([seen]), of_blocks(policy.score(seen), policy.block)
    evicted = lane.evicted.get((layer, lane.t))
    for row, ranks, worth in zip(rows, order.tolist(), scores, strict=True):
        leaves = {(row[i][0], row[i][1].position) for i in ranks[:-count]}
        if evicted is not None:
            theirs = {(head, position) for head in {head for head, _ in row} for position in evicted[head]}
            if leaves != theirs:
                near_tie(lane, layer, row, leaves ^ theirs, worth, seen)
                leaves = theirs
        if policy.name == "cam":
            merge(lane, layer, row, leaves, seen)
        for head in {head for head, _ in row}:
            held[head] = [s for s in held[head] if (head, s.position) not in leaves]


def forget(lane, old, pinned):
    """After a switch forget what was observed, but for that of which the new policy asks as the old one did."""
    policy, known = lane.policy, 0
    alike = policy.store == old.store in ("ranked", "ragged") and not pinned
    if alike and policy.accumulates_attention and old.accumulates_attention:
        known = lane.read
    elif alike:
        known = min(policy.observation_window, old.observation_window)
    lane.seen = [[of[max(0, len(of) - known) :] for of in layer] for layer in lane.seen]
    if not (alike and policy.future_positions and old.future_positions):
        lane.asked = [[] for _ in lane.layers]


def merge(lane, layer, row, leaves, seen):
    """Let the slots of a head have what the policy merges into them of those that leave; where they are stored in few
    bits, they are so again."""
    policy, head, slots = lane.policy, row[0][0], [slot for _, slot in row]
    values, more = [slot.value for slot in slots], set()
    draws = [lot(slot.position, layer, head, policy.seed) for slot in slots]
    going = [i for i, slot in enumerate(slots) if (head, slot.position) in leaves]
    for i, following in merging(policy, seen.accumulated_attention[head].tolist(), draws, going):
        more |= {*following}
        for k in following:
            values[k] = values[k] + values[i] / policy.merge
    merged = [slot._replace(value=value) for slot, value in zip(slots, values, strict=True)]
    begins, theirs = due(policy, 0, lane.t), lane.stored.get((layer, head), {})
    for i in more - {*going}:
        position = slots[i].position
        if any(begin <= position < begin + policy.group for begin in begins):
            bits, known = int(policy.cache.removeprefix("int")), theirs.get(position, (None, None))
            (value,), ties = nearest([merged[i].value], by_token, bits, [known[1]])
            merged[i], lane.ties = merged[i]._replace(value=value), lane.ties + ties
    lane.slots[layer][head] = merged


def of_blocks(scores, block):
    """What each slot's block is worth."""
    return torch.cat([of.mean(1, keepdim=True).expand_as(of) for of in scores.split(block, 1)], 1)


def near_tie(lane, layer, row, differing, scores, seen):
    """Raises AssertionError but where rounding may have decided."""
    at = [i for i, (head, slot) in enumerate(row) if (head, slot.position) in differing]
    spread, apart = float(scores.max() - scores.min()), float(scores[at].max() - scores[at].min())
    if lane.policy.name == "scissorhands":
        # Its scores are counts: of queries whose weight may be an even share but for rounding.
        recent = seen.recent_attention[row[0][0]]
        reached = (recent > 0).sum(-1, keepdim=True)
        spread = float((((recent * reached - 1).abs() < TIE).sum(0)[at] * 1.0).max()) / TIE
    if lane.policy.name == "adakv" and apart > TIE * spread:
        # Where the last of the best is as good as the next one, a head's share of the budget may be one more or less.
        policy, heads = lane.policy, len(lane.kv_heads)
        even = policy.budget - policy.interval + 1 - policy.recent - policy.sinks
        free = scores[[i for i in range(len(row)) if free_in(policy, row, i)]].sort(descending=True).values
        edge = free[max(0, even * heads - 1) : even * heads + 1]
        apart = float(edge.max() - edge.min()) if len(differing) <= 2 else apart
    assert apart <= TIE * spread, f"layer {layer}: slots {differing} were to stay or go, by {apart} of {spread}"
    lane.ties += 1


def free_in(policy, row, i):
    """Whether a slot of a row of all heads is none of its head's newest, nor one of the first tokens."""
    later = sum(head == row[i][0] for head, _ in row[i + 1 :])
    return later >= policy.recent and row[i][1].position >= policy.sinks


def as_seen(lane, attention, rows):
    """What a policy knows of rows of slots."""
    policy, layer = lane.policy, attention.layer_idx
    keys, values = (torch.stack([torch.stack([slot[i] for _, slot in row]) for row in rows]) for i in (1, 2))
    positions = torch.tensor([[slot.position for _, slot in row] for row in rows])
    if policy.positions == "text":
        at = positions
    else:
        at = torch.tensor([[sum(h == head for h, _ in row[:i]) for i, (head, _) in enumerate(row)] for row in rows])
    pairs = zip(keys, at, strict=True)
    angles = lane.model.angles
    rotated = [lane.model.rotate(attention, k[None, None], angles(attention, p))[0, 0] for k, p in pairs]

    def given(count):
        """Of each row, what the newest queries gave to its slots."""
        seen, n = lane.seen[layer], len(lane.seen[layer][0])
        queries = range(max(0, n - count), n)
        return torch.tensor(
            [[[seen[head][q].get(slot.position, 0.0) for head, slot in row] for q in queries] for row in rows]
        )

    more = {"layer": layer, "rotated": torch.stack(rotated)}
    if policy.future_positions:
        more["future_queries"] = future_queries(lane, attention, more["rotated"])
    if policy.store == "ragged":
        more["own"] = torch.tensor([[head == own for head, _ in rows[0]] for own in lane.kv_heads])
    total = given(len(lane.seen[layer][0])).sum(1) if policy.accumulates_attention else None
    recent = given(policy.observation_window) if policy.observation_window else None
    return LayerState(keys, values, positions, total, recent, **more)


def future_queries(lane, attention, rotated):
    """What was asked but at the sinks, and keys that the next positions meet."""
    policy, asked = lane.policy, lane.asked[attention.layer_idx]
    begin = rotated.shape[1] if policy.positions == "cache" else lane.t + 1
    basis, rotations = torch.eye(rotated.shape[-1]), []
    for at in range(begin, begin + policy.future_positions):
        angles = lane.model.angles(attention, torch.full((len(basis),), at))
        rotations.append(basis if angles is None else lane.model.rotate(attention, basis[None, None], angles)[0, 0])
    queries = torch.stack(asked, 1)
    covariance = torch.stack([torch.cov(q.T.double(), correction=0).float() for q in queries])
    keys = rotated @ torch.stack(rotations).double().mean(0).float().T
    return FutureQueries(queries.mean(1), covariance, keys)
