"""A live conversation: the same words to every lane, answered token by token in turns, by hand or from a script."""

import copy
import queue
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.chat.conversation import CHUNK, Conversation, Partner, Switch
from analysis.engine.context import Step
from analysis.errors import log, told
from analysis.maps.recent import HeadRow, head_row
from analysis.policies import Policy, parse
from analysis.runs.folder import Column, Spec
from analysis.texts import Tokenized

from .runner import HOLD, Job, Models

MOST_LANES = 3
RECENT = 16
"""Tokens of an answer over which the sink grid and the time per token are a mean."""
TAIL = 1500
"""Newest tokens of a conversation on screen."""
FRONT = 4
"""First tokens, always on screen: where the sinks are."""


@dataclass(frozen=True)
class Shown:
    """What is on screen of a lane: its newest tokens from `start` on, its first ones, and what of them is kept.

    Kept are the first `sinks` tokens and all from `first` on; `shares`: which share of the heads holds each token of
    the conversation, where they do not all hold the same; `protected`: how many of the first stay whatever comes;
    `cut`: where answers were cut, and why; `switches`: where the lane was switched, and to what.
    `busy`: whether a prompt is read or an answer given; `speaking`: whether there is something of an answer yet.
    """

    lane: int
    policy: Policy
    start: int
    pieces: list[str]
    roles: NDArray[np.int8]
    front: list[str]
    sinks: int
    first: int
    shares: NDArray[np.float32] | None
    read: int
    state: str
    cut: list[tuple[int, str]]
    protected: int
    switches: tuple[Switch, ...]
    busy: bool
    speaking: bool
    spoken: "Spoken"


def shown(lane: Conversation, spoken: "Spoken") -> Shown:
    pieces = lane.pieces()
    start = max(0, len(pieces) - TAIL)
    sinks, first = lane.kept
    waiting = f"reading, {lane.unread:,} tokens to go" if lane.unread > 64 else "answering"
    return Shown(
        lane=lane.lane.index,
        policy=lane.policy,
        start=start,
        pieces=pieces[start:],
        roles=lane.roles.view()[start:],
        front=pieces[:FRONT],
        sinks=sinks,
        first=first,
        shares=lane.lane.shares,
        read=lane.lane.position,
        state=waiting if lane.busy else "",
        cut=[(t.stop, t.why) for t in lane.turns[-64:] if t.why in ("limit", "stopped") and t.stop],
        protected=lane.lane.protected,
        switches=tuple(lane.switches),
        busy=lane.busy,
        speaking=lane.busy and lane.turns[-1].begin is not None and len(pieces) > lane.turns[-1].begin,
        spoken=spoken.snapshot(),
    )


class Spoken:
    """What a lane's conversation has cost, token by token, for the instruments."""

    def __init__(self) -> None:
        self.places, self.seconds, self.bytes = Column(np.int64), Column(np.float64), Column(np.int64)
        self.grids: deque[NDArray[np.float32]] = deque(maxlen=RECENT)
        self.kept, self.held = 0, 0

    def snapshot(self) -> "Spoken":
        """What is known now, which nothing that comes later changes."""
        twin = copy.copy(self)
        for name, known in vars(self).items():
            setattr(twin, name, copy.copy(known))
        return twin

    def truncate(self, tokens: int) -> None:
        """Forget what comes after the first tokens."""
        count = int(np.searchsorted(self.places.view(), tokens))
        for column in (self.places, self.seconds, self.bytes):
            column.truncate(count)

    def append(self, step: Step) -> None:
        self.grids.append(step.sink_mass.mean(-1, dtype=np.float32))
        self.kept, self.held = int(step.cache_tokens[-1]), int(step.cache_bytes[-1])
        # Prompts are read together: what one of their tokens took says nothing of an answer's.
        if len(step.nll) == 1:
            self.places.append(np.array([step.start]))
            self.seconds.append(np.array([step.seconds]))
            self.bytes.append(step.cache_bytes)


class Talk(Job):
    """Conversations of one run: they wait for words, and answer them.

    `status`: loading, waiting, answering, paused (a script stands still), failed.
    """

    called = "conversation"
    shown: tuple[Shown, ...]

    def __init__(self, spec: Spec, models: Models, script: list[str] | None = None) -> None:
        if len(spec.policies) > MOST_LANES:
            raise ValueError(f"at most {MOST_LANES} lanes talk at a time, not {len(spec.policies)}: take some out")
        assert spec.sampling is not None
        super().__init__(spec, models)
        self.lanes: list[Conversation] = []
        self.shown = ()
        self.spoken = [Spoken() for _ in spec.policies]
        self.caution = ""
        """What to know of this run as long as it lives."""
        self.pending: list[str] = list(script or [])
        """Prompts of the script that have not been said."""
        self.scripted = len(self.pending)
        self.playing = bool(self.pending)
        self.epoch = 0
        """Grows when something that was said is taken back."""
        self._wishes = queue.SimpleQueue[Callable[[], None]]()
        self._wished = self._granted = 0
        self._row: tuple[tuple[int, int, int, int], HeadRow | None] | None = None
        self._row_wanted: tuple[int, int, int, int] | None = None

    def await_first(self, seconds: float) -> None:
        """Wait until an answer to what was said last has its first token, at most so many seconds."""
        with self._news:
            self._news.wait_for(lambda: self._wished == self._granted and (self.speaking or not self.busy), seconds)

    @property
    def speaking(self) -> bool:
        """Whether some lane has begun to answer."""
        return any(lane.speaking for lane in self.shown)

    def _do(self, wish: Callable[[], None]) -> None:
        self._wished += 1
        self._wishes.put(wish)
        with self._wake:
            self._wake.notify_all()

    def say(self, prompt: str) -> None:
        """Say something to every lane.  What cannot be said is told in a sentence."""
        self._do(lambda: self._ask(prompt))

    def stop(self) -> None:
        """Let the answers end here, and the script stand still."""
        self._do(self._stop)

    def again(self) -> None:
        """Let every lane give its last answer again."""
        self._do(self._again)

    def switch(self, lane: int, policy: Policy, pin: bool) -> None:
        """Let a lane go on under another policy, from its next token on.  Raises ValueError where it is not there."""
        if not 0 <= lane < len(self.spec.policies):
            raise ValueError(f"there is no lane {lane}: lanes are 0 to {len(self.spec.policies) - 1}")
        self._do(lambda: self._switch(lane, policy, pin))

    def play(self, prompts: list[str]) -> None:
        """Say these prompts, one after the other."""
        self._do(lambda: self._play(prompts))

    def hold(self, playing: bool) -> None:
        """Let the script stand still after this answer, or go on."""
        self._do(lambda: self._hold(playing))

    def skip(self) -> None:
        """End this answer and say the script's next prompt."""
        self._do(self._skip)

    def row(self, lane: int, layer: int, head: int, token: int) -> HeadRow | None:
        """What a token attended to, when the conversation's thread has found the time to compute it.  None until then,
        and for a head that the model does not have."""
        if self.model is None or not self.model.has(layer, head):
            return None
        wanted = (lane, layer, head, token)
        if self._row is not None and self._row[0] == wanted:
            return self._row[1]
        if self._row_wanted != wanted:
            self._row_wanted = wanted
            with self._wake:
                self._wake.notify_all()
        return None

    @property
    def busy(self) -> bool:
        """Whether some lane reads a prompt or answers, as was published last."""
        return any(lane.busy for lane in self.shown)

    @property
    def about(self) -> str:
        return f"{self.called} with {self.spec.model}"

    @property
    def _busy(self) -> bool:
        return any(lane.busy for lane in self.lanes)

    def _snapshot(self) -> tuple[Shown, ...]:
        return tuple(shown(lane, spoken) for lane, spoken in zip(self.lanes, self.spoken, strict=False))

    def _run(self) -> None:
        model = self._load()
        self.tell("Preparing the model")
        partner = Partner(model, bos=self.spec.bos, special=self.spec.special)
        self.read_as = Tokenized(np.zeros(0, np.int32), partner.begins, ())
        lanes = [
            Conversation(partner, parse(p), self.spec.sampling, index=i, hold=HOLD, kv_chunk=self.spec.kv_chunk)
            for i, p in enumerate(self.spec.policies)
        ]
        for lane in lanes:
            lane.trace()
        self.model, self.lanes = model, lanes
        packed = f"The weights are packed ({self.spec.arithmetic}): answers may differ from the model's own."
        changed = partner.template.note or partner.template.caution
        self.caution = " ".join(filter(None, [packed if model.packed != "model" else "", changed]))
        self._set("waiting")
        while self._wanted != "freed":
            while not self._wishes.empty():
                self._grant(self._wishes.get())
            self._draw_row()
            lane = self._next()
            if self.unwatched or (lane is None and not self._go_on()):
                with self._wake:
                    if self._wishes.empty() and self._wanted != "freed":
                        self._wake.wait(0.2)
                continue
            if lane is not None:
                self._step(lane)

    def _grant(self, wish: Callable[[], None]) -> None:
        """Do what was wished for; where that cannot be, all goes on as it did."""
        try:
            wish()
        except Exception as e:
            self._tell_of(e)
        self._granted += 1

    def _tell_of(self, e: Exception, lane: str = "") -> None:
        log(e, f"job {self.id}")
        self.tell(f"{lane}{told(e, f'job {self.id}')}")

    def _next(self) -> Conversation | None:
        """Whose turn it is: of those that answer, the one that has said the least."""
        busy = [lane for lane in self.lanes if lane.busy]
        return min(busy, key=lambda lane: len(lane.tokens) - (lane.turns[-1].begin or len(lane.tokens)), default=None)

    def _step(self, lane: Conversation) -> None:
        spoken = self.spoken[lane.lane.index]
        try:
            if (step := lane.step(min(self.spec.chunk, CHUNK))) is not None:
                spoken.append(step)
        except Exception as e:
            # Whatever it is, the other lanes have no part in it.
            spoken.truncate(lane.lane.position)
            self._tell_of(e, f"{lane.policy.label} says no more. ")
        if not self._busy:
            self._set("waiting" if self.playing or not self.pending else "paused", self.note)
        elif lane.turns[-1].begin is not None or lane.unread:
            # A prompt that has just been read is not worth a frame: the first word follows at once.
            self._publish()

    def _go_on(self) -> bool:
        """Say the script's next prompt, if there is one and it is not held."""
        if not self.playing or not self.pending:
            self.playing = False
            return False
        self._ask(self.pending.pop(0))
        return True

    def _ask(self, prompt: str) -> None:
        if self._busy:
            self.tell("The last answer is not finished: wait for it, or stop it.")
            return
        try:
            # Either all lanes hear it or none.
            for lane in self.lanes:
                lane.check(prompt)
            for lane in self.lanes:
                lane.ask(prompt)
        except Exception as e:
            self.playing = False
            self._tell_of(e)
            return
        # What a token had not looked at yet, it may have soon.
        self._row = None
        self._set("answering", self.lanes[0].turns[-1].note)

    def _stop(self) -> None:
        self.playing = False
        for lane in self.lanes:
            lane.stop()
        self._set("paused" if self.pending else "waiting")

    def _skip(self) -> None:
        for lane in self.lanes:
            lane.stop()
        self.playing = bool(self.pending)
        self._set("waiting")

    def _hold(self, playing: bool) -> None:
        self.playing = playing and bool(self.pending)
        self._set("answering" if self._busy else "waiting" if self.playing or not self.pending else "paused")

    def _play(self, prompts: list[str]) -> None:
        self.pending, self.scripted, self.playing = list(prompts), len(prompts), True
        self._publish()

    def _again(self) -> None:
        given = 0
        for lane in self.lanes:
            try:
                lane.again()
            except ValueError:
                continue
            given += 1
            self.spoken[lane.lane.index].truncate(len(lane.tokens))
        if not given:
            self.tell("There is no finished answer to give again.")
            return
        self.epoch += 1
        self._row = None
        self._set("answering")

    def _switch(self, index: int, policy: Policy, pin: bool) -> None:
        lane = self.lanes[index]
        # Where this model cannot do that (its keys cannot be moved, it has no such head) the lane goes on as it did.
        lane.switch(policy, pin=pin)
        self.tell(f"{lane.switches[-1].label}, from the next token on.")

    def _draw_row(self) -> None:
        wanted = self._row_wanted
        if wanted is None or (self._row is not None and self._row[0] == wanted):
            return
        lane, layer, head, token = wanted
        self._row = wanted, None
        try:
            row = head_row(self.lanes[lane].lane, layer, head, token)
        except Exception as e:
            self._tell_of(e)
            return
        self._row = wanted, row
        if row is None:
            newest = token >= self.lanes[lane].lane.position - 1
            self.tell(
                "That token has only just been said: it looks back when the conversation goes on."
                if newest
                else f"What that token attended to is no longer held: only the last {HOLD:,} tokens' queries are."
            )
        else:
            self._publish()
