"""The live runs of this process: one engine thread each, found again by id, paused when nobody looks, freed later.

Never calls Streamlit: a page asks for a run, sends it wishes, and reads what it has learned.  A run's thread is the
only one that touches its lanes; wishes are carried out between two chunks.
"""

import atexit
import logging
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from analysis import texts
from analysis.maps import HeadMap, head_map
from analysis.models import LanguageModel, load
from analysis.policies import Policy, parse
from analysis.record import Run, Spec
from analysis.stream import Lane, next_lane, open_lanes

MOST_LIVE = 4
MOST_LANES = 6
UNSEEN_PAUSE = 10.0
"""Seconds without a look after which a run pauses."""
UNSEEN_FREE = 600.0
"""Seconds without a look after which its memory is freed."""
HOLD = 1024
"""Tokens of which queries and keys are kept for maps."""
TURN = 0.25
"""Seconds that one turn of a lane should take: short enough for all lanes to move every second."""
MAP = 512
"""Tokens on a side of the maps on screen."""
MAP_EVERY = 0.5
"""Seconds between two drawings of maps while the run reads."""
ENDED = ("finished", "stopped", "failed")


class Models:
    """Models in memory, shared by runs; the one that was used longest ago makes room."""

    def __init__(self, most: int = 2) -> None:
        self._most, self._lock = most, threading.Lock()
        self._loaded: OrderedDict[tuple[str, str, str], LanguageModel] = OrderedDict()

    def get(self, name: str, dtype: str, device: str, progress: Callable[[str], None]) -> LanguageModel:
        """The model, loaded at most once.  Raises ValueError with what to do."""
        with self._lock:
            key = (name, dtype, device)
            if key not in self._loaded:
                self._loaded[key] = load(name, dtype=dtype, device=device, progress=progress)
            self._loaded.move_to_end(key)
            while len(self._loaded) > self._most:
                self._loaded.popitem(last=False)
            return self._loaded[key]


@dataclass(frozen=True)
class Switch:
    """A wish: lane `lane` reads on under `policy`."""

    lane: int
    policy: Policy
    pin: bool


class LiveRun:
    """A run that reads while people look at it.  `version` grows whenever there is something new to see."""

    def __init__(self, spec: Spec, text: texts.Text, models: Models) -> None:
        self.id = secrets.token_urlsafe(6)
        self.spec, self.text, self.run = spec, text, Run(spec)
        self.status, self.note = "loading", ""
        self.lanes: list[Lane] = []
        self.model: LanguageModel | None = None
        self.pieces: list[str] = []
        """How each token of the text looks."""
        self.pace = 0
        """Tokens a second that each lane may read; 0: as fast as it goes."""
        self.version, self.published = 0, time.time()
        self.reading_seconds = 0.0
        """Wall-clock time spent reading, pauses not counted."""
        self._models, self._wishes = models, queue.SimpleQueue[Switch]()
        self._wake, self._wanted = threading.Condition(), "running"
        self._news = threading.Condition()
        self._maps_wanted: dict[tuple[int, int, int], float] = {}
        self._maps: dict[tuple[int, int, int], tuple[int, HeadMap | None]] = {}
        self._maps_made = 0.0
        self._seen = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"run {self.id}", daemon=True)
        self._thread.start()

    @property
    def live(self) -> bool:
        return self.status not in ENDED

    @property
    def unseen(self) -> float:
        """Seconds since somebody looked."""
        return time.monotonic() - self._seen

    def look(self) -> None:
        """Somebody is looking: the lease is renewed."""
        self._seen = time.monotonic()

    def wish(self, what: str) -> None:
        """running, paused, stopped, or freed: then its thread ends."""
        with self._wake:
            self._wanted = what
            self._wake.notify_all()

    def switch(self, lane: int, policy: Policy, pin: bool) -> None:
        """Let a lane read on under another policy, from its next chunk on."""
        self._wishes.put(Switch(lane, policy, pin))
        with self._wake:
            self._wake.notify_all()
        if self.status == "paused":
            self.tell(f"{policy.label}: from the next token on, when reading goes on.")

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout=5)

    def set_pace(self, pace: int) -> None:
        with self._wake:
            self.pace = pace
            self._wake.notify_all()

    def tell(self, note: str) -> None:
        """Put one sentence on the page."""
        self.note = note
        self._publish()

    def wait(self, version: int, seconds: float) -> None:
        """Wait until there is something newer than `version` to see, at most so many seconds."""
        with self._news:
            self._news.wait_for(lambda: self.version != version, seconds)

    def _publish(self) -> None:
        with self._news:
            self.version += 1
            self.published = time.time()
            self._news.notify_all()

    def map(self, lane: int, layer: int, head: int) -> HeadMap | None:
        """The newest map of a head that there is; asking keeps it coming.  None until the first was made."""
        key = (lane, layer, head)
        asked_before = key in self._maps_wanted
        self._maps_wanted[key] = time.monotonic()
        if not asked_before:
            with self._wake:
                self._wake.notify_all()
        return self._maps.get(key, (0, None))[1]

    def _set(self, status: str, note: str = "") -> None:
        if status != self.status:
            self.run.event(status)
        self.status = status
        self.tell(note)

    def _work(self) -> None:
        try:
            self._open()
            self._read()
        except ValueError as e:
            self._set("failed", _sentence(e))
        except (MemoryError, RuntimeError) as e:
            logging.getLogger(__name__).exception("run %s", self.id)
            short = "memory" in str(e).lower() or isinstance(e, MemoryError)
            advice = "use smaller caches, fewer lanes or bfloat16" if short else "restart it, or choose another model"
            self._set("failed", f"Reading stopped, {'out of memory' if short else 'the model failed'}: {advice}.")

    def _open(self) -> None:
        model = self._models.get(self.spec.model, self.spec.dtype, self.spec.device, self.tell)
        ids = texts.tokenize(self.text, model.tokenizer, bos=self.spec.bos, limit=self.spec.tokens)
        lanes = open_lanes(model, ids, [parse(p) for p in self.spec.policies], hold=HOLD)
        self.run.first_token = int(ids[0])
        self.pieces = texts.pieces(model.tokenizer, ids)
        self.model, self.lanes = model, lanes
        cautions = [c for lane in lanes for c in lane.policy.cautions(len(ids), model.trained_length)]
        self._set("running", ". ".join(cautions) + "." if cautions else "")

    def _read(self) -> None:
        pace, from_position, from_time = self.pace, 1, time.monotonic()
        while self._wanted != "freed":
            switched = self._carry_out()
            self._draw_maps()
            resting = self._rest()
            if resting or pace != self.pace:
                pace, from_position, from_time = self.pace, self._furthest(), time.monotonic()
            if resting:
                with self._wake:
                    self._wake.wait(0.5)
                continue
            upto = None
            if pace:
                upto = from_position + 1 + int(pace * (time.monotonic() - from_time))
            # A lane that has just been switched goes first: its curve should answer at once.
            turn = switched if switched and not switched.done else next_lane(self.lanes, upto)
            if turn is None or (upto is not None and turn.position >= upto):
                with self._wake:
                    self._wake.wait(0.5 / pace)
                continue
            began = time.perf_counter()
            step = turn.read(self._chunk(turn), upto)
            self.reading_seconds += time.perf_counter() - began
            self.run.append(step)
            self._publish()

    def _rest(self) -> bool:
        """Whether the run stands still just now, with its status set to say why."""
        if self.status in ENDED:
            return True
        if self._wanted == "stopped":
            self._set("stopped")
        elif all(lane.done for lane in self.lanes):
            self._set("finished")
        elif self._wanted == "running" and self.unseen > UNSEEN_PAUSE:
            self._wanted = "paused"
            self._set("paused", "Paused, since nobody was looking. Press Resume to go on.")
        elif self._wanted != self.status:
            self._set(self._wanted)
        return self.status != "running"

    def _draw_maps(self) -> None:
        """Draw the maps that were asked for lately.  In this thread, since a second one that multiplies matrices would
        make this one's threads wait for each other."""
        now = time.monotonic()
        if self.status == "running" and now - self._maps_made < MAP_EVERY:
            return
        for key, asked in list(self._maps_wanted.items()):
            if now - asked > 2:
                del self._maps_wanted[key]
                self._maps.pop(key, None)
                continue
            lane, layer, head = key
            read = self.lanes[lane].position
            if self._maps.get(key, (0, None))[0] != read:
                self._maps[key] = read, head_map(self.lanes[lane], layer, head, MAP)
                self._maps_made = time.monotonic()
                self._publish()

    def _furthest(self) -> int:
        return max(lane.position for lane in self.lanes)

    def _chunk(self, lane: Lane) -> int:
        """Tokens for the lane's next turn: as many as take about `TURN` seconds, since long chunks waste less."""
        spans = self.run.tracks[lane.index].spans[-4:]
        if len(spans) < 4 or lane.seconds == 0:
            return min(self.spec.chunk, 32)
        compute = self.run.tracks[lane.index].compute.view()
        tokens, seconds = spans[-1][1] - spans[0][0], compute[-1] - compute[spans[0][0] - 1]
        wanted = int(TURN * tokens / max(seconds, 1e-6)) // 32 * 32
        return max(32, min(self.spec.chunk, wanted))

    def _carry_out(self) -> Lane | None:
        """Carry out what was wished for; the lane that was switched last."""
        switched = None
        while not self._wishes.empty():
            wish = self._wishes.get()
            lane = self.lanes[wish.lane]
            missing = lane.missing_sinks(wish.policy)
            lane.switch(wish.policy, pin=wish.pin)
            how = ("sinks pinned again" if wish.pin else "without sinks") if missing else ""
            self.run.event("switch", lane=wish.lane, position=lane.position, policy=str(wish.policy), how=how)
            self.tell("")
            switched = lane
        return switched


def _sentence(e: Exception) -> str:
    text = " ".join(str(e).split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


class Registry:
    """All runs of this process."""

    def __init__(self) -> None:
        self._runs: dict[str, LiveRun] = {}
        self._lock = threading.Lock()
        self._models = Models()

    def start(self, spec: Spec, text: texts.Text) -> LiveRun:
        """Begin a run.  Raises ValueError where there are enough already."""
        if len(spec.policies) > MOST_LANES:
            raise ValueError(f"at most {MOST_LANES} lanes read at a time, not {len(spec.policies)}: take some out")
        with self._lock:
            self._sweep()
            live = [r for r in self._runs.values() if r.live]
            unseen = [r for r in live if r.unseen > UNSEEN_PAUSE]
            if len(live) >= MOST_LIVE and unseen:
                self._free(max(unseen, key=lambda r: r.unseen))
            elif len(live) >= MOST_LIVE:
                raise ValueError(
                    f"{MOST_LIVE} runs are live already: stop one of them, or close its tab, and press Start again"
                )
            run = LiveRun(spec, text, self._models)
            self._runs[run.id] = run
            return run

    def free(self, run_id: str) -> None:
        """End a run and forget it."""
        with self._lock:
            if run_id in self._runs:
                self._free(self._runs[run_id])

    def get(self, run_id: str | None) -> LiveRun | None:
        with self._lock:
            self._sweep()
            return self._runs.get(run_id or "")

    def _sweep(self) -> None:
        for run in list(self._runs.values()):
            if run.unseen > UNSEEN_FREE:
                self._free(run)

    def _free(self, run: LiveRun) -> None:
        run.wish("freed")
        del self._runs[run.id]

    def close(self) -> None:
        """End all runs and wait for their threads: a process must not end under a thread that multiplies matrices."""
        runs = list(self._runs.values())
        for run in runs:
            self._free(run)
        for run in runs:
            run.join()


REGISTRY = Registry()
atexit.register(REGISTRY.close)
