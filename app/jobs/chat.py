"""Chat: every lane answers the same prompts, token by token in turns; a person or a script writes them."""

import queue
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from analysis.chat import resume as resuming
from analysis.chat.conversation import Conversation
from analysis.chat.partner import Partner
from analysis.errors import error_message, log, sentence
from analysis.maps.recent import HeadRow, head_row
from analysis.policies import Policy, parse
from analysis.runs.spec import Spec
from analysis.texts import Tokenized

from .base import ENDED, HISTORY, TextJob
from .chat_lane import ChatLaneSnapshot, snapshot_of, without_row
from .loading import Models
from .token_costs import TokenCosts
from .transcript import Transcript

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel
    from analysis.runs.resume import Made

MAX_LANES = 3
ROWS = 16
"""Tokens of which it is kept what they attended to, those that were asked for last: viewers look at different ones."""

RowKey = tuple[int, int, int, int]
"""Lane, layer, head and token."""


class ChatJob(TextJob):
    """Conversations under several policies: they wait for prompts, and answer them.

    `status`: loading, waiting, answering, paused (a script stands still), failed.
    """

    noun = "conversation"
    snapshot: tuple[ChatLaneSnapshot, ...]

    def __init__(
        self, spec: Spec, models: Models, *, script: list[str] | None = None, script_sha256: str = "", resumes: str = ""
    ) -> None:
        """`resumes`: the name of a conversation in the library that goes on under its name; empty: a new one begins."""
        if len(spec.policies) > MAX_LANES:
            raise ValueError(f"at most {MAX_LANES} lanes talk at a time, not {len(spec.policies)}: take some out")
        assert spec.sampling is not None
        super().__init__(spec, models, resumes)
        self._resumes = resumes
        self.kept = self.transcript = Transcript(self.id, spec)
        self.sampling = spec.sampling
        self.lanes: list[Conversation] = []
        self.snapshot = ()
        self.costs = [TokenCosts() for _ in spec.policies]
        self.caution = ""
        """What to know of this run as long as it lives."""
        self.pending: list[str] = list(script or [])
        """Prompts of the script that have not been said."""
        self.scripted, self.text_sha256 = len(self.pending), script_sha256
        self.playing = bool(self.pending)
        self._failed: dict[int, str] = {}
        """What there is to say of lanes that failed in this answer."""
        self._refused = False
        """Whether the next prompt of the script was refused."""
        self.unsaid = 0
        """The mark of the newest prompt of a person that was not taken."""
        self.epoch = 0
        """Grows when tokens of the conversation are taken back."""
        self._requests = queue.Queue[Callable[[], object]]()
        """What people asked for: each is done once it is carried out, not when it is taken up."""
        self._rows: dict[RowKey, HeadRow | None] = {}
        self._rows_requested: dict[RowKey, None] = {}
        self._why_no_row = ""
        """The last sentence on a token that has no row."""

    @property
    def requests_done(self) -> bool:
        """Whether all that was requested is done."""
        return not self._requests.unfinished_tasks

    @property
    def idle(self) -> bool:
        """Whether all requests are done and no lane reads or answers."""
        return self.requests_done and not self.busy

    def _enqueue(self, request: Callable[[], object]) -> None:
        self._requests.put(request)
        with self._wake:
            self._wake.notify_all()

    def say(self, prompt: str, mark: int = 0) -> None:
        """Give every lane a prompt.  Where one cannot take it, a sentence says so, and `unsaid` is its mark."""
        self._enqueue(lambda: self._ask(prompt, mark))

    def stop(self) -> None:
        """End the answers here, and pause the script."""
        self._enqueue(self._stop)

    def again(self) -> None:
        """Let every lane give its last answer again."""
        self._enqueue(self._again)

    def switch(self, lane: int, policy: Policy, pin: bool) -> None:
        """Let a lane go on under another policy, from its next token on.  Raises ValueError where it is not there."""
        if not 0 <= lane < len(self.spec.policies):
            raise ValueError(f"there is no lane {lane}: lanes are 0 to {len(self.spec.policies) - 1}")
        self._enqueue(lambda: self._switch(lane, policy, pin))

    def play(self, prompts: list[str]) -> None:
        """Say these prompts, one after the other."""
        self._enqueue(lambda: self._play(prompts))

    def hold(self, playing: bool) -> None:
        """Pause the script after this answer, or let it go on."""
        self._enqueue(lambda: self._hold(playing))

    def skip(self) -> None:
        """End this answer and say the script's next prompt."""
        self._enqueue(self._skip)

    def row(self, lane: int, layer: int, head: int, token: int) -> HeadRow | None:
        """What a token attended to.  None before the job's thread has computed it, and for a head that the model does
        not have."""
        if self.facts is None or not self.facts.has(layer, head):
            return None
        wanted = (lane, layer, head, token)
        if wanted not in self._rows and wanted not in self._rows_requested:
            self._rows_requested[wanted] = None
            with self._wake:
                self._wake.notify_all()
        return self._rows.get(wanted)

    @property
    def busy(self) -> bool:
        """Whether some lane reads a prompt or answers, as published last."""
        return any(lane.busy for lane in self.snapshot)

    @property
    def about(self) -> str:
        """The conversation and its model, in a few words."""
        return f"{self.noun} with {self.spec.model}"

    @property
    def _busy(self) -> bool:
        return any(lane.busy for lane in self.lanes)

    def take_snapshot(self) -> tuple[ChatLaneSnapshot, ...]:
        """The state of each lane, [lanes]."""
        return tuple(snapshot_of(lane, costs) for lane, costs in zip(self.lanes, self.costs, strict=False))

    def _set(self, status: str, note: str = "") -> None:
        # Where a script goes on, its next prompt comes at once.
        if status in ("paused", *ENDED) or (status == "waiting" and not (self.playing and self.pending)):
            self._save()
        super()._set(status, note)

    def _run(self) -> None:
        model = self._load()
        self.tell("Preparing the model")
        said = self._reopen(model) if self._resumes else self._open(model)
        template = self.lanes[0].partner.template
        packed = f"The weights are packed ({self.spec.arithmetic}): answers may differ from the model's own."
        changed = template.note or template.caution
        self.caution = " ".join(filter(None, [packed if model.packed != "model" else "", changed]))
        if changed and not self._resumes:
            self.transcript.note("warning", text=changed)
        self._use(model)
        still = "paused" if self.pending and not self.playing else "waiting"
        self._set("answering" if self._busy else still, said)
        self._talk()

    def _open(self, model: "LanguageModel") -> str:
        partner = Partner(model, bos=self.spec.bos, special=self.spec.special)
        self.tokenized = Tokenized(np.zeros(0, np.int32), partner.begins, ())
        lanes = [
            Conversation(partner, parse(p), self.sampling, index=i, history=HISTORY, kv_chunk=self.spec.kv_chunk)
            for i, p in enumerate(self.spec.policies)
        ]
        for lane in lanes:
            lane.trace()
        self.lanes = lanes
        self.transcript.open_for(partner, text_sha256=self.text_sha256)
        return ""

    def _reopen(self, model: "LanguageModel") -> str:
        """Go on with a conversation of the library where it stopped; returns what there is to say of it."""
        asked = self._stopped(self._resumes)

        def progress(lane: int, position: int) -> None:
            """Say how far a lane is that says again what no checkpoint holds."""
            self._loading(f"Saying again what was said: lane {lane + 1} at token {position:,}")

        # What is left of its script lies in the checkpoint.
        self.text_sha256 = asked.text_sha256 or ""
        going = resuming.resumed(asked, model, text_sha256=self.text_sha256, history=HISTORY, progress=progress)
        self.tokenized = Tokenized(np.zeros(0, np.int32), going.lanes[0].partner.begins, ())
        self.costs = [TokenCosts.of(track) for track in going.run.tracks]
        for costs, lane in zip(self.costs, going.lanes, strict=True):
            # What a lane that failed will read again.
            costs.truncate(lane.position)
        self.pending, self.scripted = going.left(), going.about.get("scripted", 0)
        self.transcript.go_on_with(going.run, going.folder, model)
        self.lanes = going.lanes
        told = max((lane.turns for lane in self.lanes), key=len)
        for lane in [lane for lane in self.lanes if len(lane.turns) < len(told)]:
            # A command tells one lane after the other, and may have been stopped between two.
            lane.ask(told[len(lane.turns)].prompt)
            self._save()
        return " ".join(going.said)

    def _save(self) -> None:
        """Write a checkpoint now.  A lane that failed has gone back to where it was whole, and is saved as it is."""
        if any(lane.turns for lane in self.lanes):
            self.transcript.save(self._checkpoint, now=True)

    def _checkpoint(self) -> "Made":
        """What is needed to go on from here another time."""
        # A checkpoint is never ahead of the record.
        self.transcript.flush()
        return resuming.checkpoint(self.transcript.run, self.lanes, self.pending, self.scripted)

    def _talk(self) -> None:
        while self._requested != "freed":
            while not self._requests.empty():
                self._carry_out(self._requests.get())
            self._draw_rows()
            lane = self._next()
            if self.unwatched or (lane is None and not self._go_on()):
                with self._wake:
                    if self._requests.empty() and self._requested != "freed":
                        self._wake.wait(0.2)
                continue
            if lane is not None:
                self._step(lane)
        for lane in self.lanes:
            if lane.busy:
                # The answer has no end yet: it goes on where the conversation does.
                self.transcript.turn(lane)

    def _let_go(self) -> None:
        super()._let_go()
        self.lanes = []

    def _carry_out(self, request: Callable[[], object]) -> None:
        """Carry out a request; where it fails, all goes on as before."""
        try:
            request()
        except Exception as e:
            self.tell(self._words_of(e))
        self._requests.task_done()

    def _words_of(self, e: Exception) -> str:
        log(e, f"job {self.id}")
        return error_message(e, f"job {self.id}")

    def _next(self) -> Conversation | None:
        """Whose turn it is: of the lanes that answer, the one with the shortest answer so far."""
        busy = [lane for lane in self.lanes if lane.busy]
        return min(busy, key=lambda lane: len(lane.tokens) - (lane.turns[-1].begin or len(lane.tokens)), default=None)

    def _step(self, lane: Conversation) -> None:
        costs = self.costs[lane.lane.index]
        try:
            if (step := lane.step(self.spec.chunk)) is not None:
                costs.append(step)
                self._forget_rows(lane.lane.index, range(step.start - 1, step.stop - 1))
                self.transcript.take_in(lane, step)
                self.transcript.save(self._checkpoint)
        except Exception as e:
            # Whatever failed, the other lanes go on.
            costs.truncate(lane.lane.position)
            self._failed[lane.index] = f"{lane.policy.label} says no more. {self._words_of(e)}"
            self.tell(" ".join(self._failed.values()))
            self.transcript.turn(lane)
        if not self._busy:
            self._set("waiting" if self.playing or not self.pending else "paused", self.note)
        elif lane.turns[-1].begin is not None or lane.unread:
            # A prompt that has just been read is not worth a frame: the first word follows at once.
            self._publish()

    def _go_on(self) -> bool:
        """Take the script's next prompt, unless there is none or the script is paused."""
        if not self.playing or not self.pending:
            self.playing = False
            return False
        self._refused = not self._ask(prompt := self.pending.pop(0))
        if self._refused:
            # Under another policy it may be taken.
            self.pending.insert(0, prompt)
            self._set("paused", self.note)
        return True

    def _ask(self, prompt: str, mark: int = 0) -> bool:
        """Say this to all lanes; whether they take it."""
        if self._busy:
            self.unsaid = mark or self.unsaid
            self.tell("The last answer is not finished: wait for it, or stop it.")
            return False
        try:
            # Either all lanes take it or none.
            for lane in self.lanes:
                lane.check(prompt)
            for lane in self.lanes:
                lane.ask(prompt)
        except Exception as e:
            self.playing, self.unsaid = False, mark or self.unsaid
            self.tell(self._words_of(e))
            return False
        self._failed.clear()
        if note := self.lanes[0].turns[-1].note:
            self.transcript.note("warning", text=note)
        # What was typed is in no event: it is said again from here only.
        self._save()
        self._set("answering", note)
        return True

    def _stop(self) -> None:
        self.playing = False
        self._end_answers()
        self._set("paused" if self.pending else "waiting")

    def _end_answers(self) -> None:
        for lane in [lane for lane in self.lanes if lane.busy]:
            lane.stop()
            self.transcript.turn(lane)

    def _skip(self) -> None:
        self._end_answers()
        del self.pending[: int(self._refused)]
        self.playing, self._refused = bool(self.pending), False
        self._set("waiting")

    def _hold(self, playing: bool) -> None:
        self.playing = playing and bool(self.pending)
        self._set("answering" if self._busy else "waiting" if self.playing or not self.pending else "paused")

    def _play(self, prompts: list[str]) -> None:
        self.pending, self.scripted, self.playing, self._refused = list(prompts), len(prompts), True, False
        self._publish()

    def _again(self) -> None:
        given, why = 0, ""
        for lane in self.lanes:
            try:
                switch = lane.again()
            except ValueError as e:
                why = sentence(e)
                continue
            given += 1
            self.costs[lane.lane.index].truncate(len(lane.tokens))
            self.transcript.again(lane.lane.index, len(lane.tokens))
            if switch is not None:
                self.transcript.switch(lane.lane.index, switch)
        if not given:
            self.tell(why)
            return
        self._failed.clear()
        self._save()
        self.epoch += 1
        self._rows.clear()
        self._set("answering")

    def _switch(self, index: int, policy: Policy, pin: bool) -> None:
        lane = self.lanes[index]
        switch = lane.switch(policy, pin=pin)
        self.transcript.switch(index, switch)
        self.tell(f"{switch.label}, from the next token on.")

    def _forget_rows(self, lane: int, read: range) -> None:
        """Forget that tokens of a lane had no row, which have been read by now."""
        for of in [of for of, row in self._rows.items() if row is None and of[0] == lane and of[3] in read]:
            del self._rows[of]

    def _draw_rows(self) -> None:
        for wanted in list(self._rows_requested):
            self._rows[wanted] = None
            self._draw_row(*wanted)
            while len(self._rows) > ROWS:
                del self._rows[next(iter(self._rows))]
            del self._rows_requested[wanted]

    def _draw_row(self, lane: int, layer: int, head: int, token: int) -> None:
        try:
            row = head_row(self.lanes[lane].lane, layer, head, token)
        except Exception as e:
            self.tell(self._words_of(e))
            return
        self._rows[lane, layer, head, token] = row
        if row is None:
            self._why_no_row = without_row(self.lanes[lane], token)
            self.tell(self._why_no_row)
            return
        if self.note == self._why_no_row:
            self.note = ""
        self._publish()
        self.transcript.row(lane, row)
