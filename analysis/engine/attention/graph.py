"""One token through the model as a CUDA graph: a GPU is told once what to do, and then only to do it again.

A token that is decoded alone is a thousand small kernels, and to launch them takes longer than they do.  In a graph
addresses and sizes stay as they were when it was captured.  So what changes from token to token stands in tensors that
are filled before: the token, where its key is written, which of the newest slots it sees, and the rotations.  Keys and
values are written where the lane's layers hold them (layers/slots.py), so a lane can go on without its graph at any
token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...families.positions import AttentionModule
from ...families.rotary import Adapted, Alone
from ..tracing import tried
from .call import Call
from .token import Sight, TokenPass

STEP = 256
"""A window that grows is looked at in sizes that grow by so many slots; each takes a graph of its own."""
ROOM = 1024
"""Tokens for which room is made at once: keys that have moved take a new graph."""
TOKEN, POSITION, WINDOW, ROTATED, SIGHTS = range(5)
"""Where in the numbers of a graph they stand: token id, text position, the slots of their rooms in which keys and
values, and rotated keys, are written; from the last on, for each kind of layer, how many keys of the window it sees,
and its first sink."""

Told = TypeVar("Told")
Rooms = tuple[Tensor, Tensor, Tensor]
"""Where keys, values and rotated keys of a layer stand."""


@dataclass(eq=False, kw_only=True)
class StaticPass(TokenPass):
    """The pass of a token as it is captured: what changes from one to the next stands in tensors.

    `sights` has the tensors into which rotations are put.
    """

    numbers: Int[Tensor, " numbers"]
    columns: int
    """How many of the newest slots of the window are looked at, whether the token sees them or not."""
    rooms: Sequence[Rooms]
    _masked: dict[tuple, Sight] = field(default_factory=dict)

    def _sight(self, attention: AttentionModule, call: Call) -> Sight:
        kind = self._kind(attention, call)
        if kind not in self._masked:
            hidden, early = self._masks(SIGHTS + 2 * list(self.sights).index(kind))
            self._masked[kind] = replace(self.sights[kind], counted=len(early), hidden=hidden, early=early)
        return self._masked[kind]

    def _masks(self, at: int) -> tuple[Float[Tensor, " columns"], Float[Tensor, " columns"]]:
        """What is added to the scores of sinks and window, and which of them are first tokens of the text."""
        sinks, device = self.band.sinks, self.numbers.device
        seen, sinks_from = self.numbers[at], self.numbers[at + 1]
        first, newest = torch.arange(sinks, device=device), torch.arange(1 - self.columns, 1, device=device)
        visible = torch.cat((first >= sinks_from, newest > -seen))
        early = torch.cat((first, newest + self.numbers[POSITION])) < self.sink_tokens
        hidden = torch.zeros(len(visible), device=device).masked_fill(~visible, float("-inf"))
        return hidden, (visible & early).float()

    def _hold(
        self, layer: int, key: Tensor, value: Tensor, rotated: Tensor, sight: Sight
    ) -> tuple[Float[Tensor, "kv_heads columns dim"], Float[Tensor, "kv_heads columns dim"]]:
        keys, values, window = self.rooms[layer]
        for room, new, at in ((keys, key, WINDOW), (values, value, WINDOW), (window, rotated, ROTATED)):
            room.index_copy_(1, self.numbers[at : at + 1], new.to(room.dtype))
        newest = torch.arange(1 - self.columns, 1, device=keys.device)

        def seen(room: Tensor, at: int) -> Tensor:
            return room.index_select(1, (newest + self.numbers[at]).clamp(min=0))

        return seen(window, ROTATED), seen(values, WINDOW)


class Graph:
    """The passes of tokens of one store, captured when one of them, `like`, has just been made without.

    Raises RuntimeError where the model does what cannot be captured.
    """

    def __init__(self, like: TokenPass) -> None:
        held, band = like.layers[0], like.band
        seen = max(sight.window for sight in like.sights.values())
        columns = -(-(seen + 1) // STEP) * STEP
        # Products of sizes that are no multiple of eight are slow.
        self._columns = columns if band.window is None else min(columns, -(-(band.window + 1) // 8) * 8)
        self._rooms: list[Rooms] = [(x.keys.room(ROOM), x.values.room(ROOM), x.rotated.room(ROOM)) for x in like.layers]
        self._first = [(x.rotated_sinks, x.sink_values) for x in like.layers]
        self._capture, device = like.capture, held.keys.view().device
        self._given = torch.zeros(SIGHTS + 2 * len(like.sights), dtype=torch.int64, pin_memory=device.type == "cuda")
        with torch.inference_mode():
            self._numbers = self._given.to(device)
            self._sights = {kind: _static(sight, self._columns) for kind, sight in like.sights.items()}
            places = self._places(like)
            assert places is not None, "room has just been made"
            # What runs before it is captured is written where nothing stands.
            self._give(like, places)
            self._replay, self._told = captured(lambda: self._run(like), device)

    def __call__(self, one: TokenPass, ids: Int[Tensor, "1 1"]) -> Float[Tensor, "1 1 vocabulary"] | None:
        """Logits of a token, which its layers then hold; None where this graph cannot give them."""
        first = [(x.rotated_sinks, x.sink_values) for x in one.layers]
        alike = all(a is b for old, new in zip(self._first, first, strict=True) for a, b in zip(old, new, strict=True))
        places = self._places(one)
        if not alike or places is None or one.capture != self._capture:
            return None
        with torch.inference_mode():
            if not self._give(one, places):
                return None
            self._numbers[TOKEN : TOKEN + 1].copy_(ids[0])
            self._replay()
            logits, mass, *captured = self._told
            if one.capture:
                one.queries, one.keys = (list(of.clone()) for of in captured)
        one.mass = list(mass)
        for layer in one.layers:
            for slots in (layer.keys, layer.values, layer.rotated):
                slots.written()
        return logits

    def _places(self, one: TokenPass) -> tuple[int, int] | None:
        """The slots of their rooms in which keys and values, and rotated keys, are written, in all layers."""
        found = set()
        for layer, (keys, values, rotated) in zip(one.layers, self._rooms, strict=True):
            found |= {(layer.keys.next_in(keys), layer.rotated.next_in(rotated))}
            found |= {(layer.values.next_in(values), layer.rotated.next_in(rotated))}
        window, rotated = found.pop()
        return None if found or window is None or rotated is None else (window, rotated)

    def _give(self, one: TokenPass, places: tuple[int, int]) -> bool:
        """Put what is another for each token where the graph finds it; False where it looks at too few columns."""
        given = [0, one.token, *places]
        for kind, sight in self._sights.items():
            now = one.see(sight.attention, *kind[-2:])
            given += [now.window, now.sinks_from]
            if now.window > self._columns:
                return False
            for held, new in ((sight.key, now.key), (sight.query, now.query)):
                if isinstance(held, Tensor) and isinstance(new, Tensor):
                    held.copy_(new)
        self._given.copy_(torch.tensor(given))
        self._numbers.copy_(self._given, non_blocking=True)
        return True

    def _run(self, like: TokenPass) -> tuple[Tensor, ...]:
        """Logits, sink mass of each layer, and, where they are captured, queries and keys of each layer."""
        one = StaticPass(
            like.model,
            0,
            like.sink_tokens,
            like.band,
            like.layers,
            like.origin,
            like.rotations,
            capture=like.capture,
            interventions=like.interventions,
            length=like.length,
            sights=self._sights,
            numbers=self._numbers,
            columns=self._columns,
            rooms=self._rooms,
        )
        ids, position = self._numbers[TOKEN].view(1, 1), self._numbers[POSITION]
        logits = like.model.forward(ids, one, begin=position, last=1)
        return logits, *(torch.stack(of) for of in (one.mass, one.queries, one.keys) if of)


def _static(sight: Sight, columns: int) -> Sight:
    """What layers see, with tensors of its own for rotations."""
    key, query = (x.clone() if isinstance(x, Tensor) else x for x in (sight.key, sight.query))
    return replace(sight, sinks_from=0, window=columns, observed=0, key=key, query=query)


def captured(run: Callable[[], Told], device: torch.device) -> tuple[Callable[[], None], Told]:
    """A function that does again what `run` does, and the tensors that it gives, which then hold the new values."""
    aside, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        # What is made at the first time only is not captured.
        run()
    torch.cuda.current_stream(device).wait_stream(aside)
    # Other threads may use the GPU meanwhile.
    with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
        told = run()
    return graph.replay, told


def repeats(model: Adapted) -> bool:
    """Whether what is captured of a model is what it computes: a family may decide in Python what that is, as a mixture
    of experts does."""
    if model.device.type != "cuda" or model.positions.fixed or len(set(model.homes.values())) > 1:
        return False
    given = torch.zeros(2, dtype=torch.int64, device=model.device)

    def run() -> Tensor:
        return model.forward(given[0].view(1, 1), Alone(), begin=given[1], last=1)

    try:
        replay, logits = captured(run, model.device)
        for both in torch.stack(tried(model), 1):
            given.copy_(both)
            replay()
            expected = model.forward(both[0].view(1, 1), Alone(), begin=both[1], last=1)
            torch.testing.assert_close(logits, expected)
    except (AssertionError, RuntimeError):
        return False
    return True
