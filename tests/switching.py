"""A lane that switches, as plainly as it can be said: what the engine must equal after any sequence of switches.

Every KV head of every layer has a list of (text position, key before rotation, value); one token is read at a time; a
query meets one key after the other, each pair at the positions that the policy gives it; the softmax is whole.  Which
slots a ranked policy lets go is said in letting_go.py, and what quantization makes of a slot in rounding.py.
"""

from typing import NamedTuple

import numpy as np
import torch

from analysis.engine.head_scores import full_heads
from analysis.engine.history import QKChunk, RankedChunk
from analysis.engine.layers.quantized import SplitNewly
from analysis.policies import Banded, Dense, Duo, Ranked, Recomputed, Streaming

from . import invariants
from .invariants import ahead, stored
from .letting_go import forget, let_go
from .naive import edge
from .rounding import due, rounded

SINK_TOKENS = 4


class Slot(NamedTuple):
    position: int
    key: torch.Tensor
    value: torch.Tensor


class Switching:
    """One lane over a text that grows.  `context` (the lane's) names first tokens and full heads; nothing else of the
    engine is used.  `evicted` {(layer, token): positions per KV head}: what the engine evicted, which decides ties."""

    def __init__(self, model, context, policy):
        self.model, self.context, self.policy = model, context, policy
        self.layers, self.kv_heads = range(model.layers), range(model.kv_heads)
        self.groups = model.heads // model.kv_heads
        self.slots = [[[] for _ in self.kv_heads] for _ in self.layers]
        self.seen = [[[] for _ in self.kv_heads] for _ in self.layers]
        """What queries gave, as far as policies still know it, oldest first: {position: mean weight of the group}."""
        self.asked = [[] for _ in self.layers]
        """These queries before rotation but at the sinks, scaled: of each layer [heads, dim]."""
        self.read, self.gathers, self.recomputed_from, self.full = 0, True, None, None
        self.rows, self.evicted, self.firsts, self.ties = {}, {}, {}, 0
        self.rounded, self.stored = frozenset(), {}
        """Tokens whose keys and values have been quantized once; {(layer, head): {position: key and value}}: what the
        engine holds, which decides where to round to near a tie."""

    def copy(self):
        twin = object.__new__(Switching)
        twin.__dict__.update(self.__dict__)
        twin.slots, twin.seen = ([[list(of) for of in layer] for layer in x] for x in (self.slots, self.seen))
        twin.asked = [list(layer) for layer in self.asked]
        twin.rows = dict(self.rows)
        return twin

    def ids(self):
        return self.context.starting(self.policy.first, self.early())

    def early(self):
        return getattr(self.policy, "sinks", 0) or SINK_TOKENS

    def positions(self, layer, head):
        return [s.position for s in self.slots[layer][head]]

    def holders(self):
        """Text positions that each KV head of each layer holds."""
        return [self.positions(layer, head) for layer in self.layers for head in self.kv_heads]

    def prefix(self):
        """First tokens that all heads hold."""
        return min(next((i for i, p in enumerate(held) if p != i), len(held)) for held in self.holders())

    def suffix(self):
        """Newest tokens that all heads hold."""
        return min(newest(held, self.read) for held in self.holders())

    # Reading

    def step(self):
        """Logits of what follows the next token, and the attention to the first tokens, [layers, heads]."""
        t, policy = self.read, self.policy
        if isinstance(policy, Recomputed):
            beyond = t - policy.window
            start = 0 if beyond < 0 else t + 1 - policy.window - beyond % policy.stride
            if self.recomputed_from != start:
                self.slots = [[[] for _ in self.kv_heads] for _ in self.layers]
                self.rows, self.recomputed_from = {}, start
                for earlier in range(start, t):
                    self._forward(earlier)
        elif isinstance(policy, Duo) and self.full is None:
            self.full = full_heads(self.context, policy)
        logits, mass = self._forward(t)
        self.read += 1
        return logits, mass

    def _forward(self, t):
        self.t, self.mass, self.angles = t, [], {}
        logits = self.model.forward(self.ids()[None, t : t + 1], self, begin=t)[0, -1].float()
        return logits, torch.stack(self.mass)

    def attend(self, attention, query, key, value, *, scaling=None, softcap=None, sliding_window=None, s_aux=None, **_):
        layer, t, policy, rotate = attention.layer_idx, self.t, self.policy, self.model.rotate
        heads, dim = query.shape[1], query.shape[-1]
        out, mass = torch.zeros(heads, value.shape[-1]), torch.zeros(heads)
        # Layers of a kind have equal angles.
        angles = self.angles.setdefault(self.model.kind(attention), {})
        if isinstance(policy, Ranked) and t >= policy.sinks:
            self.asked[layer].append(query[0, :, 0].float() * (dim**-0.5 if scaling is None else scaling))

        def standing(at):
            if at not in angles:
                angles[at] = self.model.angles(attention, torch.tensor(at))
            return angles[at]

        for head in self.kv_heads:
            slots = self.slots[layer][head]
            slots.append(Slot(t, key[0, head, 0], value[0, head, 0]))
            positions = [s.position for s in slots]
            keys, values = (torch.stack([s[i] for s in slots]) for i in (1, 2))
            at = [self._standing(layer, head, i, positions) for i in range(len(positions))]
            keys_at, query_at = zip(*at, strict=True)
            early = torch.tensor([p < SINK_TOKENS for p in positions])
            # The query heads that share this KV head.
            own = list(range(head * self.groups, (head + 1) * self.groups))
            named = policy.heads.split()
            chosen = torch.tensor([[policy.heads == "all" or f"{layer}.{h}" in named] for h in own])
            k = rotate(attention, keys[None, None], standing(keys_at))[0]
            q = rotate(attention, query[:, own].expand(-1, -1, len(positions), -1), standing(query_at))[0]
            s = (q * k).sum(-1) * (dim**-0.5 if scaling is None else scaling)
            s = s if softcap is None else softcap * torch.tanh(s / softcap)
            if sliding_window is not None:
                s = s.masked_fill(torch.tensor(positions) <= t - sliding_window, float("-inf"))
            extra = [] if s_aux is None else [s_aux[own, None].float()]
            if policy.softmax != "ordinary":
                logit = policy.logit if policy.softmax == "logit" else 0.0
                extra.append(torch.full((len(own), 1), float("-inf")).masked_fill(chosen, logit))
            weights = torch.softmax(torch.cat((s, *extra), -1), -1)
            given = weights[:, : len(positions)].tolist()
            for h, row, others in zip(own, given, weights[:, len(positions) :].sum(-1).tolist(), strict=True):
                self.rows[t, layer, h] = dict(zip(positions, row, strict=True)), others
            weights = weights[:, : len(positions)]
            mass[own] = (weights * early).sum(-1)
            if t >= SINK_TOKENS and policy.knockout == "values":
                weights = weights.masked_fill(early & chosen, 0)
            if t >= SINK_TOKENS and policy.knockout == "weights":
                s = s.masked_fill(early & chosen, float("-inf"))
                weights = torch.softmax(torch.cat((s, *extra), -1), -1)[:, : len(positions)]
            out[own] = weights @ values
            if isinstance(policy, Ranked):
                given = [sum(column) / len(own) for column in zip(*given, strict=True)]
                self.seen[layer][head].append(dict(zip(positions, given, strict=True)))
        self.mass.append(mass)
        self._evict(attention)
        for begin in due(self.policy, t, t + 1):
            self._quantize(layer, begin)
        return out[None, None]

    def _quantize(self, layer, begin):
        """Let the heads of a layer hold what is left of a group's tokens when it is stored in few bits."""
        for head in self.kv_heads:
            held, theirs = self.slots[layer][head], self.stored.get((layer, head), {})
            group = [s for s in held if begin <= s.position < begin + self.policy.group]
            new, ties = rounded(group, int(self.policy.cache.removeprefix("int")), theirs)
            self.ties += ties
            new = {s.position: s for s in new}
            self.slots[layer][head] = [new.get(s.position, s) for s in held]
            self.rounded |= {*new}

    def _standing(self, layer, head, i, positions):
        """Where slot i and the query stand as seen from each other."""
        policy, p, t, last = self.policy, positions[i], self.t, len(positions) - 1
        by_slot = i, last
        if isinstance(policy, Ranked):
            return by_slot if policy.positions == "cache" else (p, t)
        if isinstance(policy, Duo):
            return (p, t) if head in self.full[layer] or policy.positions == "text" else by_slot
        if not isinstance(policy, Banded) or policy.positions == "text":
            return p, t
        sinks = policy.sinks if self.gathers else 0
        if policy.positions == "none":
            return (0, 0) if p < sinks else (p, t)
        return by_slot if policy.positions == "cache" else (self._counted(p, sinks), self._counted(t, sinks))

    def _counted(self, t, sinks):
        """The length of the cache when token t was read, had the policy held from the first token on."""
        return min(t, sinks + t - self._edge(t))

    def _edge(self, t):
        return edge(t, self.policy.sinks, self.policy.window, getattr(self.policy, "step", 1))

    def _evict(self, attention):
        policy, layer = self.policy, attention.layer_idx
        if isinstance(policy, Ranked):
            let_go(self, attention)
            return
        if isinstance(policy, Recomputed) or policy.window is None:
            return
        sinks, begin = policy.sinks if self.gathers else 0, self._edge(self.t + 1)
        for head in self.kv_heads:
            if isinstance(policy, Duo) and head in self.full[layer]:
                continue
            slots = self.slots[layer][head]
            first, rest = [s for s in slots if s.position < sinks], [s for s in slots if s.position >= sinks]
            self.slots[layer][head] = first + [s for s in rest if s.position >= begin]

    # Switching

    def switch(self, policy, *, pin=False, stored=()):
        old, early, full = self.policy, self.early(), self.full
        self.stored = dict(stored)
        self.policy, self.recomputed_from = policy, None
        self.full = full_heads(self.context, policy) if isinstance(policy, Duo) else None
        self.gathers = True
        if not self.read:
            return
        wanted = self.wanted()
        missing = wanted > self.prefix()
        self.gathers = not missing or pin
        forget(self, old, missing and pin)
        if (full is not None and full != self.full) or (isinstance(old, Ranked) and not isinstance(policy, Ranked)):
            self._keep_common()
        firsts = self.first_slots(wanted) if missing and pin else None
        if isinstance(policy, Ranked):
            if old.store == "ragged" and policy.store != "ragged":
                self._shorten()
            if firsts is not None:
                self._pin(firsts, wanted)
        elif not isinstance(policy, Recomputed):
            self._keep_band(firsts, wanted)
        if (old.first, early) != (policy.first, self.early()) and {old.first, policy.first} != {"own"}:
            self._put_first(min(self.read, max(early, self.early())))
        frames = [(p.store, p.cache, p.exact, p.group, p.residual, p.first, self._sinks(p)) for p in (old, policy)]
        goes_on = frames[0] == frames[1] and firsts is None and full == self.full
        if policy.cache != "own" and not goes_on:
            for begin in due(policy, 0, self.read):
                for layer in self.layers:
                    self._quantize(layer, begin)

    @staticmethod
    def _sinks(policy):
        return 0 if getattr(policy, "start", 0) else getattr(policy, "sinks", 0)

    def wanted(self):
        """First tokens that the policy keeps whatever comes."""
        if isinstance(self.policy, Ranked) and getattr(self.policy, "start", 0):
            return 0
        return min(getattr(self.policy, "sinks", 0), self.read)

    def _keep_common(self):
        suffix, prefix = self.suffix(), self.prefix()
        for layer in self.layers:
            for head in self.kv_heads:
                held = self.slots[layer][head]
                self.slots[layer][head] = [s for s in held if s.position < prefix or s.position >= self.read - suffix]

    def _shorten(self):
        """As many slots in each head of a layer as the shortest has: the first that all hold, and the newest."""
        for heads in self.slots:
            count = min(map(len, heads))
            prefix = min(next((i for i, s in enumerate(h) if s.position != i), len(h)) for h in heads)
            heads[:] = [held[:prefix] + held[len(held) - count + prefix :] for held in heads]

    def _pin(self, firsts, wanted):
        for layer, heads in enumerate(self.slots):
            rests = [[s for s in held if s.position >= wanted] for held in heads]
            if self.policy.store != "ragged":
                rests = [rest[len(rest) - min(map(len, rests)) :] for rest in rests]
            heads[:] = [first + rest for first, rest in zip(firsts[layer], rests, strict=True)]

    def _keep_band(self, firsts, wanted):
        policy = self.policy
        for layer in self.layers:
            for head in self.kv_heads:
                held = self.slots[layer][head]
                positions = [s.position for s in held]
                first = held[:wanted] if positions[:wanted] == list(range(wanted)) else None
                begin = self.read - newest(positions, self.read)
                if policy.window is None or (self.full is not None and head in self.full[layer]):
                    if first is None and firsts is not None:
                        self.slots[layer][head] = firsts[layer][head] + [
                            s for s in held if s.position >= max(wanted, begin)
                        ]
                    continue
                if first is None:
                    first = [] if firsts is None else firsts[layer][head]
                rest = [s for s in held if s.position >= max(begin, len(first))]
                self.slots[layer][head] = first + [s for s in rest if s.position >= self._edge(self.read)]

    def _put_first(self, count):
        firsts = self.first_slots(count)
        for layer in self.layers:
            for head in self.kv_heads:
                held = self.slots[layer][head]
                self.slots[layer][head] = [firsts[layer][head][s.position] if s.position < count else s for s in held]

    def first_slots(self, count):
        """Slots of the first tokens as a lane has them that keeps everything from the beginning, with the same
        interventions."""
        # They are read as the model computes, and stored afterwards.
        changed = {f.name: getattr(self.policy, f.name) for f in self.policy.interventions()} | {"cache": "own"}
        unplaced = getattr(self.policy, "positions", "") == "none"
        whole = Streaming(self.policy.sinks, 1 << 20, "none", **changed) if unplaced else Dense(**changed)
        kind = str(whole), *self.ids()[:count].tolist()
        if kind not in self.firsts:
            twin = Switching(self.model, self.context, whole)
            # What stands first depends on how many tokens the policy takes for the first ones.
            twin.ids = self.ids
            for t in range(count):
                twin._forward(t)
            self.firsts[kind] = twin.slots
        return self.firsts[kind]


def newest(held, read):
    """How many of the newest tokens a head holds, of a text of which `read` have been read."""
    return next((i for i, p in enumerate(reversed(held)) if p != read - 1 - i), len(held))


def beside(lane):
    """The reference of a lane that has read nothing yet."""
    return Switching(lane.context.model, lane.context, lane.policy)


def follow(lane, reference, step, atol=1e-4, on_the_way=None):
    """Let the reference read what a lane has just read.  Raises AssertionError where it got other numbers.

    `on_the_way`: what the lane held after each of these tokens (`ahead`), where its end does not tell.
    """
    reference.evicted = {}
    if not on_the_way:
        changing = isinstance(lane.policy, Ranked) or due(lane.policy, reference.read, lane.position - 1)
        now = _met(lane, step.start, stored(lane)) if changing else {}
        on_the_way = dict.fromkeys(range(step.start, lane.position), now)
    for piece in lane.view.chunks:
        if isinstance(piece, RankedChunk) and piece.stop >= step.start:
            for layer, left in enumerate(piece.evicted):
                if left is not None:
                    heads = (left.of_head(head) for head in reference.kv_heads)
                    reference.evicted[layer, piece.stop - 1] = [set(positions.tolist()) for positions, _ in heads]
    nll, mass = [], []
    assert step.start == reference.read + 1
    for token in step.token_ids:
        reference.stored = on_the_way[reference.read + 1]
        logits, looked = reference.step()
        nll.append(float(torch.logsumexp(logits, -1) - logits[int(token)]))
        mass.append(looked)
    np.testing.assert_allclose(step.nll, nll, atol=atol)
    np.testing.assert_allclose(step.sink_mass, torch.stack(mass, -1), atol=atol)
    held = [len(positions) for positions in reference.holders()]
    assert step.cache_tokens[-1] == -(-sum(held) // len(held)), f"{step.cache_tokens[-1]} tokens are said, {held} held"


def _met(lane, start, held):
    """What a lane holds in few bits, and what it held so of a chunk of a band but no longer does."""
    for piece in lane.view.chunks:
        met = getattr(piece, "quantized", None) if isinstance(piece, QKChunk) and piece.stop >= start else None
        for layer, newly in enumerate(() if met is None else met.newly):
            parts = newly.parts if isinstance(newly, SplitNewly) else [newly]
            names = newly.names if isinstance(newly, SplitNewly) else [range(lane.context.model.kv_heads)]
            for part, heads in zip(parts, names, strict=True):
                for i, head in enumerate(() if part is None else heads):
                    pairs = zip(part.keys[i], part.values[i], strict=True)
                    held[layer, head] = dict(enumerate(pairs, part.begin)) | held[layer, head]
    return held


def read_both(lane, reference, tokens, chunk=16):
    """Let a lane and its reference read so many tokens more, and compare them."""
    stop = lane.position + tokens
    on_the_way = ahead(lane, stop)
    while lane.position < stop:
        follow(lane, reference, lane.read(chunk, upto=stop), on_the_way=on_the_way)


def switch_both(lane, reference, policy, pin=False):
    lane.switch(policy, pin=pin)
    reference.switch(policy, pin=pin, stored=stored(lane))


def check_held(lane, reference):
    """What a lane holds is what the reference holds: which tokens in which head, their keys and their values."""
    assert lane.position - 1 == reference.read
    got, expected = [], []
    for layer in reference.layers if lane.store.layers else ():
        for head in reference.kv_heads:
            slots = reference.slots[layer][head]
            positions, keys, values = invariants.held(lane, layer, head)
            assert positions == [s.position for s in slots]
            assert len(keys) == len(values) == len(slots)
            if not slots:
                # Heads that had no token in common are left with none.
                continue
            got += [keys, values]
            expected += [torch.stack([s.key for s in slots]), torch.stack([s.value for s in slots])]
    if got:
        torch.testing.assert_close(torch.cat(got), torch.cat(expected), atol=2e-3, rtol=2e-3)
