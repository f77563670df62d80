"""A store whose slots are ranked by what the model computed: every KV head keeps those that its policy scores highest.

Several tokens go through the model together.  Rounding depends on how many these are, and near a tie it would decide
what goes.  So tokens are read in groups, whose ends do not depend on the chunk: one that was begun in smaller passes is
read again as a whole when its last token comes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ...policies.ranked import Ranked
from ..attention.ranked import RankedPass
from ..history import RankedChunk
from ..layers.packed import AsItCame
from ..layers.ranked import RankedLayer, Scattered, compact
from ..state import State
from .store import PASSES, Passed, Predicted, Store, stacked

TRACED_FROM = 256
"""Tokens to be read one at a time from which it is worth tracing the model."""


@dataclass(frozen=True, eq=False)
class Group:
    """Tokens of the text that one pass reads, from `begin` to before `end`, and what was held before them."""

    begin: int
    end: int
    layers: list[RankedLayer]


class RankedStore(Store):
    """Slots that differ from head to head."""

    policy: Ranked
    layers: list[RankedLayer]
    chunks: list[RankedChunk]
    chunk_kind = RankedChunk
    layer_kind: ClassVar[type[RankedLayer]] = RankedLayer
    pass_kind: ClassVar[type[RankedPass]] = RankedPass
    group: Group | None = None
    """The one of which only the first tokens have been read; it is replaced and never changed."""

    def read(self, position: int, chunk: int, stop: int) -> Predicted:
        """One forward pass after another, each over a group."""
        begin, parts = position - 1, []
        end = min(begin + min(chunk, PASSES * self.policy.every), stop - 1)
        while begin < end:
            room = (self.group.end if self.group else self.group_end(begin)) - begin
            count = min(end - begin, room)
            if parts and count < room and end < stop - 1:
                # The chunk ends with a group, so that the next one has whole passes.
                break
            passed = self.forward(begin, count)
            parts.append(self.predicted(passed, begin))
            begin += count
        return Predicted.joined(parts)

    def empty(self) -> list[RankedLayer]:
        """Layers that hold nothing yet."""
        model, kind = self.context.model, self.layer_kind
        return [kind.empty(model, layer).as_it_came(self.quantization) for layer in range(model.layers)]

    def state(self) -> State:
        """What is held, and what was before a group of which only the first tokens have been read."""
        held, group = super().state(), self.group or Group(0, 0, [])
        before = State.of(
            {str(i): layer.state() for i, layer in enumerate(group.layers)}, begin=group.begin, end=group.end
        )
        named = State.of({"group": before})
        return State({**held.values, **named.values}, {**held.tensors, **named.tensors})

    def load_state(self, state: State) -> None:
        """Hold what a store of the same policy held.  Raises ValueError where that was of another model."""
        super().load_state(state)
        before = state.part("group")
        begin, end = before.value("begin", int), before.value("end", int)
        layers = [layer.loaded(before.part(str(i))) for i, layer in enumerate(self.empty())] if end else []
        self.group = Group(begin, end, layers) if end else None

    def group_end(self, begin: int, least: int | None = None) -> int:
        """Where the group ends that begins at `begin`: after the first eviction when `least` tokens have been read
        (None: as many as the policy's passes have), or where other frequencies are taken; and it is no longer than a
        chunk.

        In the midst of it slots may be quantized, but only once.
        """
        policy, q, model = self.policy, self.quantization, self.context.model
        last = begin + PASSES * policy.every
        if q is not None:
            last = min(last, q.moment(q.moment(begin)))
        if least is None:
            # Of slots that are stored in few bits, what leaves is let go of after a pass.
            least = policy.pass_tokens if q is None else 1
        held = {(len(layer), budget) for layer, budget in zip(self.layers, self._budgets, strict=False)}
        held, end, regime = held or {(0, budget) for budget in self._budgets}, begin, None
        while end < last:
            length = self._length_of(end, max(slots for slots, _ in held))
            now, longest = model.regime(length), model.regime_end(length)
            if regime not in (None, now):
                break
            # Until then nothing leaves, and frequencies stay as they are.
            free = min(budget - slots for slots, budget in held)
            count = max(1, min(free, last - end, free if longest is None else longest + 1 - length))
            end, regime = end + count, now
            grown = {(slots + count, budget) for slots, budget in held}
            held = {(policy.left(*one) if one[0] > one[1] else one[0], one[1]) for one in grown}
            if held != grown and end - begin >= least:
                break
        return end

    @property
    def _budgets(self) -> list[int]:
        """The most slots that each layer holds."""
        layers = self.context.model.layers
        return [self.policy.budget_of(layer, layers) for layer in range(layers)]

    def _length_of(self, t: int, held: int) -> int:
        """The length of the context of token t, when all before it have been read and the layers that hold most hold so
        many slots, on average over their heads (families/frequencies.py).

        Layers that hold differently many have one all the same, since a pass has.  With text positions a head may hold
        any token, so it is the length of the text.
        """
        return 1 + (t if self.policy.positions == "text" else held)

    def _held_after(self, tokens: int) -> Float[NDArray, "layers tokens"]:
        """Slots that a KV head of each layer holds on average after each of so many tokens more."""
        then = np.empty((len(self.layers), tokens))
        for layer, budget, row in zip(self.layers, self._budgets, then, strict=True):
            held = layer.slots / layer.kv_heads
            for i in range(tokens):
                held += 1
                if (slots := math.ceil(held)) > budget:
                    held = self.policy.left(slots, budget)
                row[i] = held
        return then

    def forward(self, begin: int, count: int, least: int | None = None) -> Passed:
        """Read the `count` tokens from text position `begin` on, no more than their group has; `least`: that of
        group_end, where a group begins."""
        context, q, asked = self.context, self.quantization, count
        self.layers = self.layers or self.empty()
        group = self.group or Group(begin, self.group_end(begin, least), self.layers)
        ends = begin + count == group.end
        if ends and begin > group.begin:
            begin, count = group.begin, group.end - group.begin
            self.chunks = [c for c in self.chunks if c.start < begin]
        if begin == group.begin:
            self.layers = [layer.copy() for layer in group.layers]
        self.group = None if ends else group
        stop, then = begin + count, self._held_after(count)
        taken = None if q is None else self._bytes_of(np.arange(1, count + 1))
        one, ids = self._pass_of(begin, stop), self.ids[None, begin:stop]
        if count == 1:
            if group.end - group.begin == 1 and len(context.tokens) - begin > TRACED_FROM:
                context.trace()
            logits = context.decode(ids, one, begin)
        else:
            logits = context.model.forward(ids, one, begin=begin)
        one.evict()
        if ends and q is not None:
            compact(self.layers)
        came = self._pack(stop) if q is not None and q.end(stop) > q.end(stop - 1) else []
        if one.capture:
            self._remember(one, stop, came)
        if taken is not None:
            if one.packs is not None:
                taken[one.packs[0] - 1 :] -= one.saved
            taken[-1] = self.nbytes
            taken = taken[-asked:]
        attended = None if one.attended is None else [of[:, -asked:] for of in one.attended]
        mass, then = stacked(one.mass, logits)[..., -asked:], then[:, -asked:]
        passed = Passed(logits[:, -asked:], mass, then.mean(0), attended, nbytes=taken)
        if self.policy.block == 1:
            return passed
        # Layers may hold differently many.
        allocated = np.array([[self.policy.allocated(math.ceil(held)) for held in of] for of in then])
        return passed._replace(allocated=allocated.mean(0))

    def _pass_of(self, begin: int, stop: int) -> RankedPass:
        """The pass of tokens begin … stop − 1 over what is held before them."""
        context, model, q = self.context, self.context.model, self.quantization
        length = model.regime(self._length_of(begin, max(len(layer) for layer in self.layers)))
        one = self.pass_kind(
            model,
            begin,
            context.sink_tokens,
            self.policy,
            self.layers,
            capture=context.history > 0,
            interventions=self.interventions,
            length=length,
            attended=context.attended(),
        )
        if q is not None and (moment := q.moment(begin)) < stop:
            # All before this group was quantized when its own time had come.
            one.packs = moment - begin, q.end(moment) - q.group, q.end(moment)
        return one

    def _remember(self, one: RankedPass, stop: int, came: list[AsItCame | None]) -> None:
        """Keep what maps of the tokens of a pass, which ended before `stop`, are drawn from; `came`: what was quantized
        behind it."""
        quantized = ({} if one.packs is None else {one.packs[0]: one.came}) | {stop - one.token: came}
        chunk = self.chunk_kind(
            one.token, stop, self.policy, one.queries, interventions=self.interventions, length=one.length
        )
        chunks = (*self.chunks, *chunk.split(one.evicted, quantized))
        self.chunks = [c for c in chunks if c.stop > stop - self.context.history]

    def _bytes_of(self, more: NDArray[np.integer]) -> NDArray[np.integer]:
        """Bytes of what is held and of so many tokens more, as they come, [moments]."""
        model = self.context.model
        token = 2 * (model.head_dim - model.positions.added) * model.dtype.itemsize
        return self.nbytes + token * model.layers * model.kv_heads * more

    def _pack(self, read: int) -> list[AsItCame | None]:
        """Quantize what is to be quantized when `read` tokens have been read, and say what that was in each layer."""
        return [] if (q := self.quantization) is None else [layer.pack(q.end(read)) for layer in self.layers]

    def decode(self, position: int, kv_chunk: int | None) -> Passed:
        """The newest token, by the way in which texts are read; a group then ends at the first eviction, since it would
        not be read at once."""
        return self.forward(position - 1, 1, 1)

    def shown(self, read: int) -> list[Scattered]:
        """The slots of each layer, where maps may be drawn."""
        return [layer.shown(read) for layer in self.layers] if self.context.history else []

    def take_over(self, other: Store, read: int, *, pin: bool) -> None:
        """Hold what another store holds; maps do not reach back to where slots were kept or stored in another way.

        What is to be quantized by now is quantized, and what was quantized in another way is so anew.
        """
        super().take_over(other, read, pin=pin)
        quantized = self.quantization is not None or other.quantization is not None
        if pin or (quantized and not self._goes_on(other, None)):
            self.chunks = []
        self._pack(read)

    def ranked(self, read: int) -> list[RankedLayer]:
        """What every head holds, and what has been observed of it."""
        return self.layers

    def _keep(self, other: Store, read: int, prefix) -> None:
        self.layers = [layer.observed_for(self.policy) for layer in self._taken(other, read)]
        if prefix is not None:
            self.layers = [layer.with_prefix(*first) for layer, first in zip(self.layers, prefix, strict=True)]
        if not self._goes_on(other, prefix):
            self.layers = [layer.as_it_came(self.quantization) for layer in self.layers]

    def _taken(self, other: Store, read: int) -> Sequence[RankedLayer]:
        """What another store holds, in layers of this one's kind."""
        return other.ranked(read)
