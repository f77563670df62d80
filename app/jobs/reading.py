"""Reading: lanes that read one text in turns, while people switch their policies and look into their heads."""

import queue
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import texts
from analysis.errors import error_message, log, out_of_memory
from analysis.policies import Policy, parse
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.runs.switches import Plan, Switch, carry_out

from .base import ENDED, HISTORY, TextJob
from .kept import RunKeeper
from .loading import Models
from .reading_lane import LaneSnapshot, ReadingSnapshot, SwitchRequest

if TYPE_CHECKING:
    # The job's thread imports what needs torch: a page is on screen before torch is loaded.
    from analysis.engine.lane import Lane
    from analysis.engine.step import Step
    from analysis.figures.inputs import FigureInput
    from analysis.maps.recent import HeadMap
    from analysis.models.language_model import LanguageModel
    from analysis.runs.resume import Made

MAX_LANES = 6
TURN_SECONDS = 0.25
"""Seconds that one turn of a lane should take: short enough for all lanes to move every second."""
LEAST, LEAST_SLOW = 32, 8
"""Tokens of a turn, at least: fewer cost hardly less, but where the policy lets fewer through the model in one pass."""
MAP_SIDE = 512
"""Tokens on a side of the maps on screen."""
MAP_EVERY = 0.5
"""Seconds between two drawings of maps while the run reads."""


class ReadingJob(TextJob):
    """Reads a text under several policies while people watch."""

    noun = "reading"
    figures_need = "run"
    snapshot: ReadingSnapshot

    def __init__(
        self, spec: Spec, text: texts.Text, models: Models, resumes: str = "", switches: Sequence[Switch] = (),
        pause: int = 0, keep: bool = True,
    ) -> None:  # fmt: skip
        """`resumes`: the name of a run in the library that goes on under its name; empty: a new one begins; `switches`:
        what a story has happen to its lanes, unless somebody switches the same lane before; `pause`: the token before
        which all lanes stand still once, 0: none; `keep`: whether the library takes it in."""
        if len(spec.policies) > MAX_LANES:
            raise ValueError(f"at most {MAX_LANES} lanes read at a time, not {len(spec.policies)}: take some out")
        super().__init__(spec, models, resumes)
        self._resumes, self._keep = resumes, keep
        self.text, self.text_sha256, self.run = text, text.sha256, Run(spec)
        self.kept = self.record = RunKeeper(self.id)
        self.lanes: list[Lane] = []
        self.pieces: list[str] = []
        """The text of each token."""
        self.pace = 0
        """Tokens a second that each lane may read; 0: as fast as it goes."""
        self.reading_seconds = 0.0
        """Wall-clock time spent reading, pauses not counted."""
        self._requests = queue.Queue[SwitchRequest]()
        self._planned = Plan(switches)
        self._pause_at = pause
        self._maps_requested: dict[tuple[int, int, int], float] = {}
        self._maps: dict[tuple[int, int, int], tuple[int, HeadMap | None]] = {}
        self._maps_made = 0.0
        self._undrawable: set[tuple[int, int, int]] = set()
        self.halted: dict[int, Exception] = {}
        """Lanes that stand still, since they could not read on, and why."""
        self.snapshot = self.take_snapshot()

    def switch(self, lane: int, policy: Policy, pin: bool) -> None:
        """Let a lane read on under another policy, from its next chunk on.  Raises ValueError where it is not there."""
        if not 0 <= lane < len(self.spec.policies):
            raise ValueError(f"there is no lane {lane}: lanes are 0 to {len(self.spec.policies) - 1}")
        # Before it is carried out: what is said of that, here or on a page, comes later and stands.
        self.tell(f"{policy.label}: from the next token on, when reading goes on." if self.status == "paused" else "")
        self._requests.put(SwitchRequest(lane, policy, pin))
        with self._wake:
            self._wake.notify_all()

    @property
    def requests_done(self) -> bool:
        """Whether every requested switch is carried out, or said to be impossible."""
        return not self._requests.unfinished_tasks

    def set_pace(self, pace: int) -> None:
        """Let each lane read at most so many tokens a second; 0: as fast as it goes."""
        with self._wake:
            self.pace = pace
            self._wake.notify_all()
        # Who watches a run that stands still is told, too.
        self._announce()

    def map(self, lane: int, layer: int, head: int) -> "HeadMap | None":
        """The newest map of a head; asking lets more be drawn.  None before the first is drawn, where nothing is read,
        and for a head that the model does not have: a page may name one of another model."""
        key = (lane, layer, head)
        if self.facts is None or not self.facts.has(layer, head) or key in self._undrawable:
            return None
        asked_before = key in self._maps_requested
        self._maps_requested[key] = time.monotonic()
        if not asked_before:
            with self._wake:
                self._wake.notify_all()
        return self._maps.get(key, (0, None))[1]

    def figure_input(self) -> "FigureInput":
        """The run as it lies in the library, where the command under a figure finds it, too."""
        from analysis.figures.inputs import open_input
        from analysis.runs import library

        if not self._keep:
            raise ValueError("what the lesson reads is not kept: read it on the page Read, and make a figure of that")
        if self.kept.problem:
            raise ValueError(f"{self.kept.problem} A figure is made of a run folder: make room, and read once more")
        return open_input(library.home() / self.id, self.figures_need)

    def take_snapshot(self) -> ReadingSnapshot:
        """The tracks and lanes as they are now, which a page may read while lanes read on."""
        lanes = tuple(
            LaneSnapshot(
                lane.policy,
                lane.position,
                lane.done,
                lane.view.held,
                lane.cache_tokens,
                lane.cache_bytes,
            )
            for lane in self.lanes
        )
        total = len(self.lanes[0].context.tokens) if self.lanes else 0
        return ReadingSnapshot(tuple(t.snapshot() for t in self.run.tracks), lanes, total, self.reading_seconds)

    def _set(self, status: str, note: str = "") -> None:
        """Change the status, note that in the run, and keep a checkpoint wherever the reading stands still.

        One that is read to its end needs none: its checkpoints are removed.
        """
        if status != self.status:
            self._event(status)
            if self.lanes and status in ("paused", *ENDED):
                self.record.save(self._checkpoint, now=True)
            if status in ENDED:
                over = status == "finished" and all(lane.done for lane in self.lanes)
                self.record.finish(ENDED[status], over=over)
        super()._set(status, note)

    def _run(self) -> None:
        """Load the model, open the lanes or restore those of a run that stopped, and read."""
        model = self._load()
        self._use(model)
        if self._resumes:
            self._go_on(model)
            if all(lane.position >= self._pause_at for lane in self.lanes):
                self._pause_at = 0
        else:
            self._open(model)
        self._read()

    def _open(self, model: "LanguageModel") -> None:
        """Turn the text into tokens, open a lane for each policy, and begin the run folder."""
        from analysis.engine.stream import open_lanes

        read = self._tokenize(self.text, model)
        ids = read.ids
        policies = [parse(p) for p in self.spec.policies]
        lanes = open_lanes(model, ids, policies, history=HISTORY, fidelity=self.spec.fidelity)
        self.run.first_token, self.run.model = int(ids[0]), self.facts
        self.run.begins, self.run.as_text = read.begins, read.as_text
        self.pieces = texts.token_texts(model.tokenizer, ids)
        self.run.take_pieces(-1, 0, self.pieces)
        planned = self._planned.left
        if self._keep:
            self.record.begin_run(self.run, model, text_sha256=self.text_sha256, tokens=len(ids), switches=planned)
        self.record.pieces(-1, 0, self.pieces)
        self.lanes, said = lanes, []
        for lane in lanes:
            for caution in lane.policy.cautions(len(ids), model.trained_length):
                self._event("warning", lane=lane.index, text=caution)
                said.append(f"{caution}.")
        self._set("running", " ".join(filter(None, (self.text_note, *said))))

    def _go_on(self, model: "LanguageModel") -> None:
        """Read on where a run of the library stopped."""
        from analysis.runs import resume

        asked = self._stopped(self._resumes)

        def progress(lane: int, position: int) -> None:
            """Say how far a lane is that reads again what no checkpoint holds."""
            self._loading(f"Reading again up to where it stopped: lane {lane + 1} at token {position:,}")

        going = resume.resumed(asked, model, self.text, history=HISTORY, progress=progress)
        self.tokenized, self.run, self.pieces = going.read, going.run, going.run.pieces[0]
        self.reading_seconds = sum(lane.seconds for lane in going.lanes)
        self.record.go_on(going.folder, model)
        self.lanes, self._planned = going.lanes, Plan(going.switches)
        self._set("running", " ".join(going.said))

    def _checkpoint(self) -> "Made":
        """What is needed to go on from here another time."""
        from analysis.runs.resume import state_of

        return state_of(self.run, self.lanes, list(self.halted))

    def _let_go(self) -> None:
        super()._let_go()
        self.lanes = []

    def _event(self, what: str, **more: Any) -> None:
        """Note an event in the run, and on disk."""
        self.record.event(self.run.event(what, **more))

    def _read(self) -> None:
        """Read chunk by chunk until the job is freed.

        Between two chunks: switch lanes, draw the maps that were requested, and pause where somebody asked for that.
        At a pace, in tokens per second, wait until the next token is due.
        """
        from analysis.engine.stream import next_lane

        pace, from_position, from_time = self.pace, self._furthest(), time.monotonic()
        while self._requested != "freed":
            switched = self._switch_lanes()
            self._draw_maps()
            paused = self._paused()
            if paused or pace != self.pace:
                pace, from_position, from_time = self.pace, self._furthest(), time.monotonic()
            if paused:
                with self._wake:
                    self._wake.wait(0.5)
                continue
            # A lane that was just switched goes first: its curve should answer at once.  Lanes that are measured
            # against one of them wait for it.
            able = [lane for lane in self.lanes if lane.index not in self.halted]
            if able and self._pause_at and all(lane.done or lane.position >= self._pause_at for lane in able):
                self._stand()
                continue
            upto = self._pause_at or None
            if pace:
                due = from_position + 1 + int(pace * (time.monotonic() - from_time))
                upto = min(due, upto or due)
            first = switched if not self.spec.fidelity and switched and not switched.done else None
            turn = first or next_lane(able, upto)
            if turn is None or (upto is not None and turn.position >= upto):
                with self._wake:
                    self._wake.wait(0.5 / pace if pace else 0.5)
                continue
            began = time.perf_counter()
            step = self._try(turn, self._planned.limit(turn, upto))
            if step is None:
                continue
            self.reading_seconds += time.perf_counter() - began
            self.record.step(step, self.run.append(step))
            self.record.save(self._checkpoint)
            self._publish()

    def _stand(self) -> None:
        """Pause where the job was asked to, which happens once."""
        at, self._pause_at = self._pause_at, 0
        if self._request_pause():
            self._set("paused", f"Paused before token {at:,}, as the link has it. Press Resume to go on.")

    def _try(self, lane: "Lane", upto: int | None) -> "Step | None":
        """The lane's next step; None where it failed: then the lane is as before, and stands still."""
        before = lane.snapshot()
        try:
            return lane.read(self._chunk(lane), upto)
        except Exception as e:
            # Whatever failed, the other lanes read on.
            lane.restore(before)
            self.halted[lane.index] = e
            self._event("failed", lane=lane.index, position=lane.position)
            log(e, f"job {self.id}")
            self.tell(f"{lane.policy.label} stands still{self._why(lane, e)} What was read is kept.")
            return None

    def _why(self, lane: "Lane", e: Exception) -> str:
        """Why a lane cannot read on, and what to do."""
        if not out_of_memory(e):
            return f" at token {lane.position:,}. {error_message(e, f'job {self.id}')}"
        needed = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(e))
        asked = f" (it asked for {needed[1]} more)" if needed else ""
        lower = "a smaller window" if lane.policy.capacity is not None else "a policy with a window"
        return f", out of memory{asked}: switch it to {lower}, or restart with bfloat16 or fewer lanes."

    def _over(self) -> bool:
        """Whether no lane can read on under any policy; where memory ran out, a switch can free some."""
        lanes = [lane for lane in self.lanes if not lane.done]
        return all(lane.index in self.halted and not out_of_memory(self.halted[lane.index]) for lane in lanes)

    def _paused(self) -> bool:
        """Whether the run stands still just now; sets its status to say why."""
        if self.status in ENDED:
            return True
        if self._requested == "stopped":
            self._set("stopped")
        elif self._over():
            # The note about this text is still true.
            self._set("finished" if any(lane.done for lane in self.lanes) else "failed", self.note)
        elif self.unwatched and self._request_pause():
            self._set("paused", "Paused, since nobody was looking. Press Resume to go on.")
        elif self._requested != self.status:
            self._set(self._requested)
        return self.status != "running"

    def _draw_maps(self) -> None:
        """Draw the maps that were requested lately: in this thread, since two threads that multiply matrices slow each
        other down."""
        from analysis.maps.recent import head_map

        now = time.monotonic()
        if self.status == "running" and now - self._maps_made < MAP_EVERY:
            return
        for key, asked in list(self._maps_requested.items()):
            if now - asked > 2:
                del self._maps_requested[key]
                self._maps.pop(key, None)
                continue
            lane, layer, head = key
            read = self.lanes[lane].position
            if self._maps.get(key, (0, None))[0] != read:
                try:
                    drawn = head_map(self.lanes[lane], layer, head, MAP_SIDE)
                    if drawn is not None:
                        self.record.map(lane, read, len(self.lanes[lane].context.tokens), drawn)
                    # Only then seen, since a disk is slow: of what pages can see, they are told at once.
                    self._maps[key] = read, drawn
                except Exception as e:
                    self._undrawable.add(key)
                    log(e, f"job {self.id}")
                    self.tell(error_message(e, f"job {self.id}"))
                self._maps_made = time.monotonic()
                self._publish()

    def _furthest(self) -> int:
        return max(lane.position for lane in self.lanes)

    def _chunk(self, lane: "Lane") -> int:
        """Tokens for the lane's next turn: as many as take about `TURN_SECONDS`, since long chunks waste less."""
        # A lane whose passes are shorter than a turn is slow, and should still be seen to move.
        least = min(LEAST, max(LEAST_SLOW, lane.policy.pass_tokens or LEAST))
        track = self.run.tracks[lane.index]
        # Of what was read before this run went on, nobody knows how long it took.
        rate = track.rate(4) if len(track.spans) >= 4 else np.nan
        wanted = 0 if np.isnan(rate) else int(TURN_SECONDS * rate)
        return min(self.spec.chunk, max(least, wanted // least * least))

    def _switch_lanes(self) -> "Lane | None":
        """Carry out the switches that are requested, or planned for where a lane is; returns the last such lane."""
        switched = None
        while not self._requests.empty():
            if (lane := self._switch(self._requests.get(), "")) is not None:
                # Whoever switches a lane goes on with it.
                self._planned.forget(lane.index)
                switched = lane
            self._requests.task_done()
        for due in [due for lane in self.lanes for due in self._planned.due(lane)]:
            policy = parse(due.policy)
            note = f"{policy.label} from token {due.position:,} on, as the story has it."
            switched = self._switch(SwitchRequest(due.lane, policy, due.pin), note, planned=True) or switched
        return switched

    def _switch(self, request: SwitchRequest, note: str, **more: Any) -> "Lane | None":
        """Carry out a switch, and say `note`, if there is one, and `more` in its event; None, and a sentence that says
        why, where it cannot be."""
        lane = self.lanes[request.lane]
        try:
            event = carry_out(lane, request.policy, pin=request.pin)
        except Exception as e:
            # This model's keys cannot be moved, or it has no such head: the lane reads on as before.
            log(e, f"job {self.id}")
            self.tell(error_message(e, f"job {self.id}"))
            return None
        self.halted.pop(request.lane, None)
        self._event("switch", **event, **more)
        self.tell(note or self.note)
        return lane
