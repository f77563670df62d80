"""One policy reading a text: where it stands, and the store of keys and values that its policy names.

A lane reads on in chunks, or one token at a time, which lets the text go on with a token that is chosen.  Between two
tokens its policy may be switched.  How keys are kept and what a token attends to is the store's matter (kv/).
"""

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ..metrics import check_finite
from ..policies import Policy
from . import allocator
from .context import SharedContext
from .host import on_host
from .kv import store_for
from .kv.store import Store
from .state import State
from .step import Step
from .view import View

GIVE_BACK_EVERY = 1 << 16
"""Tokens after which freed memory is given back once.  What a run keeps of each chunk comes to lie between large pieces
that are free, so that they fit less and less, and the process would grow by hundreds of megabytes in a million
tokens."""


class Lane:
    """One policy reading the text.  Raises ValueError where the model cannot be read under it."""

    def __init__(self, index: int, policy: Policy, context: SharedContext) -> None:
        self.index, self.context = index, context
        self.store: Store = store_for(policy, context)
        self.position = 1
        """The next token to be predicted; all before it have been read."""
        self.seconds = 0.0
        """Compute time so far."""
        self._publish()

    @property
    def policy(self) -> Policy:
        """What is kept of the tokens that were read."""
        return self.store.policy

    @property
    def ids(self) -> Int[Tensor, " tokens"]:
        """The token ids that this lane reads: the text's, but for those that the policy puts first."""
        return self.store.ids

    @property
    def done(self) -> bool:
        """Whether the whole text has been read."""
        return self.position >= len(self.context.tokens)

    @property
    def sinks(self) -> int:
        """First tokens whose keys are held, without a gap, by all heads."""
        return self.view.sinks

    @property
    def protected(self) -> int:
        """First tokens that are held and stay whatever comes, since the policy keeps them: its sinks."""
        return min(self.sinks, self.policy.first_protected(self.position - 1))

    @property
    def first(self) -> int:
        """The text position from which on every token is held by all heads."""
        return self.view.first

    @property
    def shares(self) -> NDArray[np.float32] | None:
        """Which share of all KV heads holds each token that was read, [read]; None where all hold the same."""
        return self.view.shares

    @property
    def cache_tokens(self) -> int:
        """Tokens that a KV head holds on average, rounded up."""
        return math.ceil(self.store.slots / (self.context.model.layers * self.context.model.kv_heads))

    @property
    def cache_bytes(self) -> int:
        """Bytes of all keys and values held, and of the slots that stand empty in blocks that are not full."""
        return self.store.nbytes * self.store.allocated // max(1, self.store.slots)

    def missing_sinks(self, policy: Policy) -> int:
        """How many of the first tokens the policy would keep, but this lane no longer holds."""
        return max(0, policy.first_protected(self.first) - self.sinks)

    def read(self, chunk: int, upto: int | None = None) -> Step:
        """Read on by about `chunk` tokens, predicting no token at or after position `upto`.

        That is one forward pass, but where slots are ranked: there it is one for every group of tokens (kv/ranked.py).
        A pass also ends where the family takes other frequencies for a longer context (families/frequencies.py).
        Raises ValueError where there is nothing to read, `chunk` is below 1, or the model's numbers are not finite:
        such a lane goes on from a snapshot only.
        """
        if chunk < 1:
            raise ValueError(f"a chunk has at least 1 token, not {chunk}")
        stop = len(self.context.tokens) if upto is None else min(upto, len(self.context.tokens))
        if self.position >= stop:
            raise ValueError(
                f"lane {self.index} has read up to {self.position}: there is nothing to read before {stop}"
            )
        began = time.perf_counter()
        self.settle()
        fidelity, more = self.context.fidelity, dict[str, Any]()
        if fidelity is not None:
            stop = fidelity.begin(self, stop)
        nll, mass, held, top, outputs, allocated, taken = self.store.read(self.position, chunk, stop)
        # Everything before this line may still be under way on a GPU.
        nll, mass, *told = (t.numpy() for t in on_host(nll, mass, *([] if top is None else [top])))
        self._check_finite(nll)
        if told:
            more["top"] = told[0].astype(np.int32)
        if fidelity is not None:
            read = time.perf_counter()
            more |= fidelity.measure(self, outputs)._asdict()
            # To be measured is no part of reading: seconds are held against those of lanes that are not.
            began += time.perf_counter() - read
        return replace(self._step(began, nll, mass, held, allocated, taken), **more)

    def next(self, choose: Callable[[Float[Tensor, " vocabulary"]], int], *, kv_chunk: int | None = None) -> Step:
        """Read the newest token alone, and let the text go on with the one that is chosen.

        `choose` gets the logits, float32, on the CPU.  `kv_chunk`: keys of a long window that are read at a time;
        changes no number.  Raises ValueError where more than the newest token has not been read, `kv_chunk` is below 1,
        the model's numbers are not finite, or what is chosen is no token: such a lane goes on from a snapshot only.
        """
        if kv_chunk is not None and kv_chunk < 1:
            raise ValueError(f"kv_chunk must be at least 1, not {kv_chunk}")
        if self.position != len(self.context.tokens):
            raise ValueError(
                f"lane {self.index} has read up to {self.position} of {len(self.context.tokens)} tokens: read the rest "
                "first"
            )
        began = time.perf_counter()
        passed = self.store.decode(self.position, kv_chunk)
        logits, mass = on_host(passed.logits[0, -1].float(), passed.sink_mass)
        total = torch.logsumexp(logits, -1)
        self._check_finite(float(total))
        token = choose(logits)
        if not 0 <= token < len(logits):
            raise ValueError(f"token {token} was chosen, and the model has tokens 0 to {len(logits) - 1}")
        nll = (total - logits[token]).numpy()
        self.context.extend(np.array([token], np.int32))
        # What is quantized takes less than what is not: only the store knows what both take together.
        taken = np.array([self.store.nbytes])
        return self._step(began, nll[None], mass.numpy(), passed.held, self.store.allocated_in(passed), taken)

    def _check_finite(self, numbers: Any) -> None:
        # What comes after them would be made of them, so a lane ends here.
        check_finite(numbers, str(self.context.model.dtype).removeprefix("torch."))

    def _step(
        self,
        began: float,
        nll: NDArray[np.float32],
        sink_mass: NDArray[np.float32],
        held: NDArray[np.float64],
        allocated: NDArray[np.float64] | None,
        taken: NDArray[np.integer] | None = None,
    ) -> Step:
        """What was learned of the next tokens, which have then been read."""
        seconds, start, model = time.perf_counter() - began, self.position, self.context.model
        self.seconds += seconds
        self.position += len(nll)
        self._publish()
        if self.position // GIVE_BACK_EVERY > start // GIVE_BACK_EVERY:
            allocator.give_back()
        if taken is None:
            # Of all KV heads of all layers, which may hold differently many.
            each = self.store.nbytes * model.layers * model.kv_heads // max(1, self.store.slots)
        else:
            each = taken / held
        return Step(
            lane=self.index,
            policy=self.policy,
            start=start,
            token_ids=self.context.tokens[start : self.position].copy(),
            nll=nll,
            cache_tokens=np.ceil(held).astype(np.int32),
            cache_bytes=np.rint((held if allocated is None else allocated) * each).astype(np.int64),
            seconds=seconds,
            sink_mass=sink_mass,
        )

    def switch(self, policy: Policy, *, pin: bool = False) -> None:
        """Read on under another policy, which keeps what it keeps of what the lane still has.

        Where the new policy has sinks that not all heads hold, `pin` brings them back in every head, as the new policy
        reads them.  Otherwise a band goes on without any; heads that keep everything and ranked slots keep what they
        have.  Where heads hold different tokens and the new policy has no use for that, what stays is the first and the
        newest tokens that all of them hold.  Raises ValueError where the model cannot be read under the policy; then,
        and where memory does not suffice, the lane is as it was.
        """
        store = store_for(policy, self.context)
        self.settle()
        store.take_over(self.store, self.position - 1, pin=pin)
        self.store = store
        self._publish()

    def settle(self) -> None:
        """Put the queries and keys of decoded tokens where maps find them."""
        self.store.settle()

    def state(self) -> State:
        """All that this lane holds just now, to go on from here in another process.  Takes no memory of its own.

        Queries and keys that were kept for maps are left out.  Of a lane that others are measured against, it is what
        that held when its newest chunk began: they may stand inside it.
        """
        fidelity = self.context.fidelity
        earlier = None if fidelity is None else fidelity.went_on_from(self)
        store, position = (self.store, self.position) if earlier is None else (earlier.store, earlier.position)
        parts = {"store": store.state(), "context": self.context.state()}
        return State.of(parts, position=position, seconds=self.seconds, **self._identity(store.policy, position))

    def load_state(self, state: State) -> None:
        """Go on from where a lane of the same policy, model and text stood: to the last bit where chunks are the same.

        Raises ValueError where the state is of another policy, model or text; the lane is then as it was.
        """
        position, seconds = state.value("position", int), state.value("seconds", float)
        if not 1 <= position <= len(self.context.tokens):
            raise ValueError(
                f"this state is of a lane at token {position:,}, and the text has {len(self.context.tokens):,} tokens: "
                "it is of another text"
            )
        for name, here in self._identity(self.policy, position).items():
            if (there := state.value(name, type(here))) != here:
                both = "" if name == "text" else f" ({there}, and here it is {here})"
                raise ValueError(f"this state is of another {name}{both}: load it where the same is read the same way")
        self.context.load_state(state.part("context"))
        store = store_for(self.policy, self.context)
        store.load_state(state.part("store"))
        self.position, self.seconds, self.store = position, seconds, store
        self._publish()

    def _identity(self, policy: Policy, position: int) -> dict[str, str | int]:
        """What must be the same where a state is loaded."""
        model = self.context.model
        heads = f"{model.heads} heads and {model.kv_heads} KV heads of {model.head_dim} dimensions"
        return {
            "policy": str(policy),
            "model": f"{model.network.config.model_type} in {model.dtype}, {model.layers} layers, {heads}",
            "text": zlib.crc32(self.context.tokens[:position].astype("<i4").tobytes()),
        }

    def snapshot(self) -> "Snapshot":
        """All that this lane holds just now, to go on from here another time.  Takes no memory of its own."""
        return Snapshot(self.position, len(self.context.tokens), self.store.copy())

    def restore(self, snapshot: "Snapshot") -> None:
        """Be as when the snapshot was taken; the text that came after it is forgotten."""
        self.position, self.store = snapshot.position, snapshot.store.copy()
        self.context.truncate(snapshot.tokens)
        self._publish()

    def _publish(self) -> None:
        """Let other threads see what is held from now on."""
        read, store = self.position - 1, self.store
        self.view = View(self.context, read, store.held(read), store.shown(read), store.chunks, store.decoded)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a lane held at some moment: the next token to be predicted, the tokens of its text, and its store."""

    position: int
    tokens: int
    store: Store
