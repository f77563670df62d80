"""A conversation as one token stream: the chat template, sampling, and a lane that answers.

What was generated stays as it was generated: between two answers only the template's own text and the person's words
are tokenised and read.  A conversation knows nothing of other lanes, of files or of screens.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .. import files, texts
from ..engine.context import SharedContext
from ..engine.lane import Lane, Snapshot
from ..engine.step import Step
from ..engine.stream import SINK_TOKENS
from ..families.positions import LEARNED
from ..families.rotary import Adapted
from ..models.language_model import LanguageModel
from ..policies import Policy
from ..runs.run import ROLES, Column
from ..runs.spec import Sampling
from ..settings import quoted
from ..texts import control
from .template import TemplateFailed, rendered

TEMPLATE, USER, ASSISTANT = range(len(ROLES))
CHUNK = 256
"""Tokens of a prompt that are read at a time."""
PENALISED = 1024
"""Newest tokens to which the repetition penalty looks back, so that a token's time does not grow."""
SCRIPTS = Path(__file__).parents[2] / "assets" / "scripts"

THOUGHT = re.compile(r"[<\[](\w*:?think\w*|thought)[>\]](?:.*?[<\[]/\1[>\]])?\s*", re.IGNORECASE | re.DOTALL)
"""A block in which a model thinks, or the mark that opens one."""

_PLAIN = "what you write is continued as plain text"
_KEPT = "here they stay in the text and in the cache, as they were said"


@dataclass(frozen=True)
class Template:
    """The text of a chat template around what is said: head, prompt, `open`, answer, `close`, prompt, `open` …

    `note`: a sentence for the person where there is no such template; then text is just continued.  `caution`: one
    where the template would write what was said before in another way, and here it stays.
    """

    head: str
    open: str
    close: str
    note: str = ""
    caution: str = ""
    writes_bos: bool = False
    """Whether the head begins with BOS because it is BOS, and not because that token begins each of its turns."""


def template_of(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The tokenizer's own template, taken apart.  Plain continuation, with a note, where it cannot be.

    Many templates for models that think take the thoughts out of earlier answers, or open one before an answer and not
    in what was said before.  What was said stays here as it was said, so only what the template puts between one answer
    and the next is asked of it, and that is the same.
    """
    if not tokenizer.chat_template:
        return Template("", "", "\n", f"This model has no chat template: {_PLAIN}.")

    p, a, q, b, r = "qPromptOne", "qAnswerOne", "qPromptTwo", "qAnswerTwo", "qPromptThree"
    thought = f"<think>\nqThought\n</think>\n\n{a}"
    # A template is a program that somebody else wrote: it may fail in any way.
    try:
        chosen = tokenizer.get_chat_template()
        special = tuple((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
        asked = (((p,), True), ((p, a, q), True), ((p, a, q, b, r), True), ((p, a), False), ((p, thought, q), True))
        begun, second, longer, answered, thinking = rendered(chosen, special, asked)
        head, found, opened = begun.partition(p)
        before, _, rest = second.partition(a)
        # What stands between a prompt and an earlier answer: white space that it begins with is the model's to say.
        earlier = before[len(head + p) :]
        close = rest[: -len(q + opened)]
        whole = head + p + earlier + a + close + q + opened
        third = head + p + earlier + a + close + q + earlier + b + close + r + opened
        last = answered.rstrip()
        faithful = bool(found) and (second, longer) == (whole, third)
        bare = THOUGHT.sub("", opened)
        faithful = faithful and earlier.startswith(bare) and not THOUGHT.sub("", earlier[len(bare) :]).strip()
        faithful = faithful and second.startswith((last, THOUGHT.sub("", last)))
        if not faithful:
            return Template("", "", "\n", f"This model's chat template changes what was said before: {_PLAIN}.")
        kept = earlier.startswith(opened) and not earlier[len(opened) :].strip()
        kept = kept and second.startswith(last) and thought in thinking
        begin = tokenizer.bos_token
        writes = bool(begin) and head.startswith(begin) and begin not in close + opened
    except Exception as e:
        why = str(e) if isinstance(e, TemplateFailed) else type(e).__name__
        return Template("", "", "\n", f"This model's chat template cannot be used ({why}): {_PLAIN}.")
    caution = f"This model's chat template changes thoughts of earlier answers, or takes them out: {_KEPT}."
    return Template(head, opened, close, caution="" if kept else caution, writes_bos=writes)


class Chooser:
    """Chooses the next token: transformers' own processors, and random numbers of our own seed."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.temperature > 0:
            self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
        self._random = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, tokens: Tensor, logits: Tensor) -> int:
        """The id of the next token: tokens [tokens] so far, logits [vocabulary]."""
        if self._processors:
            logits = self._processors(tokens[None, -PENALISED:].cpu(), logits[None])[0]
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        # One number a token, whatever the chunks were.
        draw = torch.rand(1, generator=self._random, dtype=torch.float64)
        probabilities, order = torch.softmax(logits.double(), -1).sort(descending=True, stable=True)
        place = int(torch.searchsorted(probabilities.cumsum(-1), draw))
        return int(order[min(place, int((probabilities > 0).sum()) - 1)])


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
        return ", ".join(filter(None, (self.policy.label, self.how)))


class Partner:
    """What all conversations with one model share: the adapted model, its tokenizer and template.

    `bos`: whether a conversation begins with BOS: auto (as the tokenizer puts it first by itself, or the template
    writes it), on or off; never twice.  `special`: whether control tokens that a person types are text or tokens.
    """

    def __init__(self, model: LanguageModel, *, bos: str = "auto", special: str = "text") -> None:
        if model.tokenizer is None:
            raise ValueError(f"{model.name} has no tokenizer, and a conversation needs one: choose another model")
        self.model, self.tokenizer = model, model.tokenizer
        self.bos, self.special = bos, special
        self.adapted: Adapted = model.adapted
        self.template = template_of(model.tokenizer)
        ends = model.network.generation_config.eos_token_id
        self.ends = {e for e in ([ends] if isinstance(ends, int) else ends or []) if e is not None}
        if model.tokenizer.eos_token_id is not None:
            self.ends.add(model.tokenizer.eos_token_id)
        self.begins = texts.begins(model.tokenizer, self.begin(self.encode([(TEMPLATE, self.template.head)])[0]))

    def encode(
        self, parts: list[tuple[int, str]], after: int | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int8], tuple[str, ...]]:
        """Token ids and roles, each [tokens], of pieces of text, and names of control tokens that were typed in them.

        What a person typed is text, unless `special` is tokens; what the template writes is what it is.  `after`: the
        token that they follow; some tokenizers put a space before what nothing comes before.
        """
        if after is not None and (look := self.tokenizer.decode([after])):
            ids, roles, names = self.encode([(TEMPLATE, look), *parts])
            if len(ids) and ids[0] == after:
                return ids[1:], roles[1:], names
        typed = "".join(text for role, text in parts if role == USER)
        if not self.tokenizer.is_fast:
            return self._one_by_one(parts, typed)
        whole = "".join(text for _, text in parts)
        coded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, roles = coded["input_ids"], _roles(parts, coded["offset_mapping"])
        # A control token that a template's text begins and a person's ends would be one that was typed, too.
        ends = _roles(parts, [(end - 1, end) for _, end in coded["offset_mapping"]])
        mine = [i for i, role, end in zip(ids, roles, ends, strict=True) if USER in (role, end)]
        names = control.found(self.tokenizer, mine, typed) if self.special == "text" else ()
        if names:
            coded = control.partly_as_text(self.tokenizer, [(role != USER, text) for role, text in parts])
            ids, roles = coded.ids, _roles(parts, coded.offsets)
        return np.array(ids, np.int32), roles, names

    def _one_by_one(self, parts: list[tuple[int, str]], typed: str):
        """The same by a tokenizer that cannot say where its tokens stand: each piece alone."""
        names = {t for t in control.control_tokens(self.tokenizer).values() if t in typed}
        ids, roles = [], []
        for role, text in parts:
            as_text = role == USER and self.special == "text"
            coded = control.as_text(self.tokenizer, text) if as_text else texts.encode(text, self.tokenizer)[0]
            ids += coded
            roles += [role] * len(coded)
        return np.array(ids, np.int32), np.array(roles, np.int8), tuple(sorted(names)) if self.special == "text" else ()

    def begin(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The first tokens of a conversation, with BOS or without it as `bos` says, and never twice."""
        first = texts.opening(self.tokenizer, self.bos)
        usual = texts.opening(self.tokenizer)
        if self.bos == "off" and (self.template.writes_bos or (usual and list(ids[: len(usual)]) == usual)):
            return ids[len(texts.bos_of(self.tokenizer, ids)) :]
        return texts.begun(first, ids)

    def close(self, last: int) -> str:
        """The template's text after an answer whose last token was `last`."""
        close = self.template.close
        return close.removeprefix(self.tokenizer.decode([last])) if last in self.ends else close


def _roles(parts: list[tuple[int, str]], offsets: list[tuple[int, int]]) -> NDArray[np.int8]:
    """Whose each token is, [tokens], by the place of its first character in the pieces put together."""
    ends = np.cumsum([len(text) for _, text in parts])
    begins = np.array([begin for begin, _ in offsets], np.int64)
    return np.array([role for role, _ in parts], np.int8)[np.searchsorted(ends[:-1], begins, side="right")]


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
        self._chooser = Chooser(sampling)
        self._before: Snapshot | None = None
        self._before_switches = 0
        self._pin = True
        self._pieces: list[str] = []
        self._settled = 0

    @property
    def tokens(self) -> NDArray[np.int32]:
        return self.lane.context.tokens

    @property
    def policy(self) -> Policy:
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
        prompt = prompt.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode()
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
        longest = self.partner.model.trained_length
        if self.partner.adapted.positions is LEARNED and len(self.tokens) + more + self.sampling.max_new > longest:
            raise ValueError(
                f"{self.policy.label}: this model has learned {longest:,} positions, and the conversation would need "
                "more: begin a new one, or choose recompute"
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
            self._go_back(before or self._before)
            self.stop()
            self.turns[-1].why = "failed"
            raise

    def _step(self, chunk: int) -> Step:
        lane, turn = self.lane, self.turns[-1]
        if self.unread:
            step = lane.read(chunk)
            return replace(step, roles=self.roles.view()[step.start : step.stop].copy())
        if turn.begin is None:
            turn.begin = len(self.tokens)
            self._before, self._before_switches = lane.snapshot(), len(self.switches)
        source = lane.context
        step = lane.next(lambda logits: self._chooser(source.ids, logits), kv_chunk=self.kv_chunk)
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

    def _end(self, why: str) -> None:
        self.turns[-1].stop, self.turns[-1].why = len(self.tokens), why

    def stop(self) -> None:
        """Let the answer end here.  What was said stays; a prompt that is not read to its end is read later."""
        if self.busy:
            if self.turns[-1].begin is None:
                self.turns[-1].begin = len(self.tokens)
            self._end("stopped")

    def again(self) -> None:
        """Forget the last answer and give another one, from what the cache held before it."""
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
        if policy != self.policy:
            self.switch(policy, pin=self._pin)

    def switch(self, policy: Policy, *, pin: bool = False) -> None:
        """Go on under another policy (Lane.switch)."""
        missing = self.lane.missing_sinks(policy)
        self.lane.switch(policy, pin=pin)
        self._pin = pin
        how = ("with the sinks pinned again" if pin else "without its sinks") if missing else ""
        self.switches.append(Switch(self.lane.position, policy, how))

    def pieces(self) -> list[str]:
        """How each token of the conversation looks, [tokens]."""
        tokens = self.tokens
        if len(self._pieces) < len(tokens):
            begin = self._settled
            fresh = texts.token_texts(self.partner.tokenizer, tokens[begin:])
            self._pieces[begin:] = fresh
            # Whole characters stand behind this place: it need not be looked at again.
            whole = [i for i, piece in enumerate(fresh[:-8]) if piece and not piece.endswith("\ufffd")]
            if len(fresh) > 64 and whole:
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


def join(steps: list[Step]) -> Step:
    """Steps of one lane that follow each other without a gap, as one."""
    first = steps[0]
    joined = {
        name: np.concatenate([getattr(s, name) for s in steps], -1)
        for name in ("token_ids", "nll", "cache_tokens", "cache_bytes", "sink_mass", "roles")
    }
    each = np.concatenate([np.full(len(s.nll), s.seconds / len(s.nll)) for s in steps])
    return replace(first, seconds=float(each.sum()), each=each, **joined)


def scripts() -> dict[str, Path]:
    """The bundled scripts by name."""
    return {path.stem: path for path in sorted(SCRIPTS.glob("*.txt"))}


def read_script(name: str) -> tuple[list[str], str]:
    """The prompts of a bundled script or a file, and its digest.  Raises ValueError with what to do."""
    path = scripts().get(name, Path(name))
    # os.path answers for any string, also for one that can be no path.
    if not os.path.isfile(path):
        raise ValueError(
            f"there is no script {quoted(name)}: give a file with one prompt a line, or one of: {', '.join(scripts())}"
        )
    return script_from_bytes(files.contents(path, texts.MOST_BYTES), path.name)


def script_from_bytes(data: bytes, name: str) -> tuple[list[str], str]:
    """The prompts of a script, and its digest: a line each, or JSONL whose `turns` are lists of prompts."""
    text = texts.from_bytes(data, name if not name.endswith(".npy") else f"{name}.txt")
    # Newlines alone end a line: U+2028 and its like are part of what is said.
    lines = [(i, line.strip()) for i, line in enumerate(text.content.split("\n"), 1) if line.strip()]
    if not name.endswith((".jsonl", ".json")) and not lines[0][1].startswith("{"):
        return [line for _, line in lines], text.sha256
    prompts: list[str] = []
    for number, line in lines:
        try:
            turns = files.decoded(line, dict[str, Any], "")["turns"]
        except (ValueError, KeyError) as e:
            raise ValueError(
                f'line {number} of {name} is not JSON with turns: write {{"turns": ["…", "…"]}} in every line'
            ) from e
        if not isinstance(turns, list) or not all(isinstance(t, str) and t.strip() for t in turns):
            raise ValueError(f"line {number} of {name}: turns must be a list of prompts, none of them empty")
        prompts += turns
    if not prompts:
        raise ValueError(f"{name} has no prompts: write at least one line")
    return prompts, text.sha256
