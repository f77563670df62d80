"""A conversation as one token stream, and a lane that answers.

What was generated stays as it was generated: between two answers only the template's own text and the person's words
are tokenised and read.  A conversation knows nothing of other lanes, of files or of screens.
"""

from dataclasses import asdict, dataclass, replace

import msgspec
import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from .. import texts
from ..engine.context import SharedContext
from ..engine.lane import Lane, Snapshot
from ..engine.state import State
from ..engine.step import Step
from ..engine.stream import SINK_TOKENS
from ..policies import Policy, parse
from ..runs.run import Column
from ..runs.spec import Sampling
from .partner import ASSISTANT, TEMPLATE, USER, Partner
from .sampling import Chooser

CHUNK = 256
"""Tokens of a prompt that are read at a time."""


@dataclass
class Turn:
    """A prompt and its answer: text positions where the prompt begins (template included) and the answer, and its end.

    `why` the answer ended: ended (the model said so), limit, stopped, failed, or empty while it has not.
    """

    prompt: str
    asked: int
    begin: int | None = None
    stop: int | None = None
    why: str = ""
    as_text: tuple[str, ...] = ()
    """Names of control tokens in the prompt, which were read as text."""

    @property
    def note(self) -> str:
        """What there is to say of these, as a sentence; empty where there are none."""
        return texts.said_as_text(self.as_text, "in what was said")


@dataclass(frozen=True)
class Switch:
    """A lane went on under another policy from a text position on; `how`: what became of sinks that had left the cache,
    in a few words."""

    position: int
    policy: Policy
    how: str = ""

    @property
    def label(self) -> str:
        """The policy and what became of the sinks, in a few words."""
        return ", ".join(filter(None, (self.policy.label, self.how)))


class Conversation:
    """One lane's endless conversation under one policy."""

    def __init__(
        self,
        partner: Partner,
        policy: Policy,
        sampling: Sampling,
        *,
        index: int = 0,
        history: int = 0,
        sink_tokens: int = SINK_TOKENS,
        kv_chunk: int | None = None,
    ) -> None:
        self.partner, self.sampling, self.kv_chunk = partner, sampling, kv_chunk
        context = SharedContext(
            partner.adapted, np.zeros(0, np.int32), sink_tokens, history, tokenizer=partner.tokenizer
        )
        self.lane = Lane(index, policy, context)
        self.turns: list[Turn] = []
        self.switches: list[Switch] = []
        self.roles = Column(np.int8)
        self.chooser = Chooser(sampling)
        self._before: Snapshot | None = None
        self._before_switches = 0
        self._pin = True
        self._pieces: list[str] = []
        self._settled = 0
        self._loaded = 0
        """Turns that there were when this conversation went on from a state; 0 where it did not, or an answer began
        since."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Token ids of all that was said, [tokens]."""
        return self.lane.context.tokens

    @property
    def index(self) -> int:
        """Which of the lanes that are told the same it is."""
        return self.lane.index

    @property
    def position(self) -> int:
        """The next token to be predicted."""
        return self.lane.position

    @property
    def seconds(self) -> float:
        """Compute seconds so far."""
        return self.lane.seconds

    @property
    def policy(self) -> Policy:
        """The policy that it reads under now."""
        return self.lane.policy

    @property
    def busy(self) -> bool:
        """Whether a prompt is being read or an answer given."""
        return bool(self.turns) and not self.turns[-1].why

    @property
    def unread(self) -> int:
        """Tokens that stand in the text and have not been read, but for the newest, which an answer begins with."""
        return max(0, len(self.tokens) - self.lane.position)

    @property
    def kept(self) -> tuple[int, int]:
        """What the cache holds: the first n tokens of the text, and all from a position on."""
        lane = self.lane
        return lane.sinks, lane.first

    def trace(self) -> None:
        """Make answers faster from now on (tracing.py); takes a second or two the first time."""
        self.lane.context.trace(self.partner.model.one_token)

    def check(self, prompt: str) -> tuple[str, NDArray[np.int32], NDArray[np.int8], tuple[str, ...]]:
        """The words as they will be said, their tokens and roles, and names of control tokens in them, read as text.

        Raises ValueError where they cannot be said now.
        """
        if self.busy:
            raise ValueError("the last answer is not finished: wait for it, or stop it")
        prompt = written(prompt)
        if not prompt.strip():
            raise ValueError("the prompt is empty: write something first")
        template = self.partner.template
        last = int(self.tokens[-1]) if self.turns else None
        before = template.head if last is None else self.partner.close(last)
        if not template.note:
            prompt = prompt.strip()
        ids, roles, names = self.partner.encode([(TEMPLATE, before), (USER, prompt), (TEMPLATE, template.open)], last)
        if not self.turns:
            begun = self.partner.begin(ids)
            more = len(begun) - len(ids)
            ids, roles = begun, np.concatenate((np.full(max(0, more), TEMPLATE, np.int8), roles[max(0, -more) :]))
        if not len(ids):
            raise ValueError("the prompt has no tokens: write some words")
        if ids.max() >= (known := self.partner.model.vocabulary):
            raise ValueError(
                f"the tokenizer makes token {ids.max()} of this, and the model knows {known:,} tokens: choose a model "
                "whose tokenizer is its own"
            )
        self._check_room(len(ids))
        return prompt, ids, roles, names

    def ask(self, prompt: str) -> None:
        """Say something; the answer comes by `step`.  Raises ValueError where that cannot be."""
        prompt, ids, roles, names = self.check(prompt)
        self.turns.append(Turn(prompt, len(self.tokens), as_text=names))
        self.lane.context.extend(ids)
        self.roles.append(roles)

    def _check_room(self, more: int) -> None:
        if self.policy.capacity is not None:
            return
        longest = self.partner.adapted.longest
        # An answer's last token is read with the next prompt.
        needed = len(self.tokens) + more + self.sampling.max_new - 1
        if longest is not None and needed > longest:
            raise ValueError(
                f"{self.policy.label}: with cached keys this model reads at most {longest:,} tokens, and with this "
                f"answer it may be {needed:,}: begin a new conversation, let answers be shorter, or choose recompute"
            )
        # Keys, values, rotated keys, and room for them to grow.
        needed = int((len(self.tokens) + more) * self.partner.model.bytes_per_token * 2.5)
        free = psutil.virtual_memory().available
        if self.lane.context.model.device.type == "cpu" and needed > free:
            raise ValueError(
                f"{self.policy.label} keeps everything, and with these {more:,} tokens it would need "
                f"{needed / 1e9:.1f} GB where {free / 1e9:.1f} GB are free: shorten the prompt, or take another policy"
            )

    def step(self, chunk: int = CHUNK) -> Step | None:
        """Read on in the prompt by one chunk, or give one token of the answer; None when there is nothing to do.

        What is raised in there ends the answer.  Then what was said stays, and is read again before the next answer.
        """
        if not self.busy:
            return None
        before = self.lane.snapshot() if self.unread else None
        try:
            return self._step(chunk)
        except BaseException:
            self._fail(before or self._before)
            raise

    def _step(self, chunk: int) -> Step:
        lane, turn = self.lane, self.turns[-1]
        if self.unread:
            step = lane.read(chunk)
            return replace(step, roles=self.roles.view()[step.start : step.stop].copy())
        if turn.begin is None:
            turn.begin = len(self.tokens)
            self._before, self._before_switches, self._loaded = lane.snapshot(), len(self.switches), 0
        source = lane.context
        step = lane.next(lambda logits: self.chooser(source.ids, logits), kv_chunk=self.kv_chunk)
        roles = np.array([ASSISTANT], np.int8)
        self.roles.append(roles)
        if int(step.token_ids[0]) in self.partner.ends:
            self._end("ended")
        elif len(self.tokens) - turn.begin >= self.sampling.max_new:
            self._end("limit")
        return replace(step, roles=roles)

    def _go_back(self, before: Snapshot | None) -> None:
        """Hold what was held then: half of the layers may have taken in what the others have not."""
        said, policy = self.tokens[: len(self.roles)].copy(), self.policy
        if before is None:
            return
        self.lane.restore(before)
        self.lane.context.extend(said[before.tokens :])
        del self._pieces[len(said) :]
        if policy != self.policy:
            self.lane.switch(policy, pin=self._pin)

    def _fail(self, before: Snapshot | None) -> None:
        self._go_back(before)
        self.stop()
        self.turns[-1].why = "failed"

    def fail(self) -> None:
        """Let the answer end here as one in which something was raised, where that is known from a record."""
        if self.busy:
            # What was read of its prompt until then stays read.
            self._fail(None if self.turns[-1].begin is None else self._before)

    def _end(self, why: str) -> None:
        self.turns[-1].stop, self.turns[-1].why = len(self.tokens), why

    def stop(self) -> None:
        """Let the answer end here.  What was said stays; a prompt that is not read to its end is read later."""
        if self.busy:
            if self.turns[-1].begin is None:
                self.turns[-1].begin = len(self.tokens)
            self._end("stopped")

    def state(self) -> State:
        """All that was said and is held, to go on from here in another process, also in the middle of an answer.

        What the cache held before the last answer is left out, so that answer cannot be given again.
        """
        said = {"tokens": self.tokens, "roles": self.roles.view()}
        tensors = {name: torch.from_numpy(numbers.copy()) for name, numbers in said.items()}
        tensors["random"] = self.chooser.random.get_state()
        switches = [[s.position, str(s.policy), s.how] for s in self.switches]
        own = State({"turns": [asdict(t) for t in self.turns], "switches": switches, "pin": self._pin}, tensors)
        return State.of({"lane": self.lane.state(), "said": own})

    def load_state(self, state: State) -> None:
        """Go on from where a conversation stood, in this one, in which nothing was said yet.

        Raises ValueError where the state is of another policy or model.
        """
        assert not self.turns, "a conversation goes on from its beginning only"
        own, like = state.part("said"), torch.empty(0)
        tokens = own.tensor("tokens", like, (None,), torch.int32).numpy()
        roles = own.tensor("roles", like, tokens.shape, torch.int8).numpy()
        self.lane.context.extend(tokens)
        self.lane.load_state(state.part("lane"))
        self.roles.append(roles)
        self.chooser.random.set_state(own.tensor("random", like, (None,), torch.uint8))
        self.turns = msgspec.convert(own.value("turns", list), list[Turn])
        self.switches = [Switch(at, parse(policy), how) for at, policy, how in own.value("switches", list)]
        self._pin, self._loaded = own.value("pin", bool), len(self.turns)
        if self.busy:
            # Where a step fails, it goes back to here.
            self._before, self._before_switches = self.lane.snapshot(), len(self.switches)

    def again(self) -> Switch | None:
        """Forget the last answer and give another one, from what the cache held before it; returns the switch that it
        begins with, where the lane was switched meanwhile.  Where nothing was answered yet, the prompt is read on."""
        if not self.busy and self.turns and (begin := self.turns[-1].begin) == self.turns[-1].stop:
            # Nothing was said that could be forgotten.
            self.turns[-1].begin, self.turns[-1].stop, self.turns[-1].why = None, None, ""
            return next((switch for switch in reversed(self.switches) if switch.position == begin), None)
        if self._loaded and len(self.turns) == self._loaded and not self.busy:
            raise ValueError(
                "what the cache held before the last answer is not kept where a conversation was stopped and resumed: "
                "say something first, and that answer can be given again"
            )
        if self.busy or not self.turns or self._before is None or self.turns[-1].begin != self._before.tokens:
            raise ValueError("there is no finished answer to give again")
        turn, policy = self.turns[-1], self.policy
        self.lane.restore(self._before)
        self.roles.truncate(len(self.tokens))
        del self._pieces[len(self.tokens) :]
        self._settled = min(self._settled, turn.asked)
        turn.stop, turn.why = None, ""
        # What it was switched to meanwhile holds from the beginning of this answer on.
        del self.switches[self._before_switches :]
        return self.switch(policy, pin=self._pin) if policy != self.policy else None

    def switch(self, policy: Policy, *, pin: bool = False) -> Switch:
        """Go on under another policy (Lane.switch)."""
        missing = self.lane.missing_sinks(policy)
        self.lane.switch(policy, pin=pin)
        self._pin = pin
        how = ("with the sinks pinned again" if pin else "without its sinks") if missing else ""
        self.switches.append(Switch(self.lane.position, policy, how))
        return self.switches[-1]

    def pieces(self) -> list[str]:
        """How each token of the conversation looks, [tokens]."""
        tokens = self.tokens
        if len(self._pieces) < len(tokens):
            begin = self._settled
            newest = texts.token_texts(self.partner.tokenizer, tokens[begin:])
            self._pieces[begin:] = newest
            # Whole characters stand behind this place: it need not be looked at again.
            whole = [i for i, piece in enumerate(newest[:-8]) if piece and not piece.endswith("\ufffd")]
            if len(newest) > 64 and whole:
                self._settled = begin + whole[-1] + 1
        return self._pieces

    def said(self, turn: Turn) -> str:
        """The answer of a turn as far as it has come."""
        if turn.begin is None:
            return ""
        pieces, stop = self.pieces(), turn.stop or len(self.tokens)
        if stop > turn.begin and int(self.tokens[stop - 1]) in self.partner.ends:
            stop -= 1
        return "".join(pieces[turn.begin : stop])


def written(prompt: str) -> str:
    """A prompt with newlines as models know them, and nothing that is no character."""
    return prompt.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode()


def join(steps: list[Step]) -> Step:
    """Steps of one lane that follow each other without a gap, as one."""
    first = steps[0]
    joined = {
        name: np.concatenate([getattr(s, name) for s in steps], -1)
        for name in ("token_ids", "nll", "cache_tokens", "cache_bytes", "sink_mass", "roles")
    }
    each = np.concatenate([np.full(len(s.nll), s.seconds / len(s.nll)) for s in steps])
    return replace(first, seconds=float(each.sum()), each=each, **joined)
