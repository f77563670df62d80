"""Runs that go on where they stopped: interrupted, killed at any moment, or finished before the end of the text.

What was read after the newest checkpoint is read again, and must be what the record says.  Until that is known nothing
in the folder is touched.  How a conversation goes on is chat/resume.py's matter.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np
from torch import Tensor

from .. import texts
from ..engine.lane import Lane
from ..engine.layers.slots import Window
from ..engine.state import State
from ..engine.step import Step
from ..engine.stream import open_lanes
from ..models.language_model import LanguageModel
from ..policies import parse
from ..texts.sources import Text
from .about import about_of
from .checkpoint import Checkpoint, Checkpoints
from .claim import claimed
from .folder import Folder
from .reader import load
from .run import Run
from .status import STOPPED
from .stopped import Stopped, refuse_written
from .switches import Switch, to_come

CLOSE = 1e-4
"""Nats by which the NLL of a token may differ from the record when it is read again."""

_WHOLE = 2**40
"""Tokens of a chunk that is as long as may be."""

Made = tuple[dict[str, Any], dict[str, Tensor | Window]]


@dataclass(frozen=True)
class StoppedRun(Stopped):
    """A run of lanes that can go on."""

    run: Run
    maps: tuple[str, ...]
    """Heads, written layer.head, whose maps were to be recorded."""
    opened: int
    """When it was last opened or ended, in nanoseconds: its run.json was written then."""
    switches: tuple[Switch, ...] = ()
    """What was to happen to its lanes; none in folders of older versions."""

    def check_left(self) -> None:
        """Raises ValueError where somebody else goes on with it by now, or did: what is known of it is not all."""
        about = about_of(self.path)
        refuse_written(self.path, about.get("status", ""), about.get("process"))
        if _opened(self.path) != self.opened:
            raise ValueError(f"{self.path} was written by another process meanwhile: resume it again")

    @property
    def policies(self) -> list[str]:
        """All that its lanes read under, as they are written: at first, after switches, and after those to come."""
        switched = [event["policy"] for event in self.run.switches]
        return [*self.spec.policies, *switched, *(switch.policy for switch in self.switches)]


def stopped(path: Path, tokens: int | None = None) -> StoppedRun:
    """The run in a folder, which goes on until `tokens` tokens are read; None: until what it was asked for.

    Raises ValueError where there is none, or it cannot go on.
    """
    path = Path(path)
    # In this order, so that what is known is never older.
    opened, about = _opened(path), about_of(path)
    if about.get("kind") not in (None, "reading", "chat"):
        raise ValueError(f"{path} holds {about['kind']}, which does not go on: begin anew")
    refuse_written(path, about.get("status", ""), about.get("process"))
    run = load(path)
    if run.kind == "chat":
        if tokens is not None:
            raise ValueError("a conversation goes on as long as somebody says something: leave out --tokens")
        spec = run.spec
    else:
        read = max((len(track.nll) + 1 for track in run.tracks), default=1)
        if tokens is not None and tokens < read:
            raise ValueError(f"tokens must be more than the {read:,} that this run has read already, not {tokens:,}")
        spec = run.spec if tokens is None else replace(run.spec, tokens=tokens)
        # What its text has is known where it was read to its end: nobody waits for a model to hear that.
        known, asked = len(run.pieces[0]), run.spec.tokens
        ends = asked is None or known < asked
        if known and (ends or tokens in (None, asked)):
            _refuse_whole(run, known, ends)
    maps = tuple(about.get("maps") or ())
    switches = msgspec.convert(about.get("switches") or (), tuple[Switch, ...])
    return StoppedRun(path, spec, about.get("text_sha256"), about.get("weights_sha256"), run, maps, opened, switches)


def _refuse_whole(run: Run, count: int, ends: bool) -> None:
    """Raises ValueError where a run has ended and its lanes have read all `count` tokens that are asked for; `ends`:
    the text has no more."""
    # Of what did not come to its end, tables and status may be left to write where all was read.
    if run.status not in STOPPED and all(len(track.nll) + 1 >= count for track in run.tracks):
        more = "the text has no more" if ends else "--tokens asks for more"
        raise ValueError(f"this run has read all {count:,} tokens that it was asked for: {more}")


def _opened(path: Path) -> int:
    file = path / "run.json"
    return os.stat(file).st_mtime_ns if os.path.exists(file) else 0


@dataclass
class Comparison:
    """Compares what is read again with the record of a run."""

    run: Run
    tokens: int = 0
    """Compared so far."""
    largest: float = 0.0
    """The largest difference of an NLL, in nats."""

    def take(self, step: Step) -> None:
        """Compare a step with what the record has of its tokens.  Raises ValueError where that is something else."""
        track = self.run.tracks[step.lane]
        start, stop = step.start - 1, min(step.stop - 1, len(track.nll))
        if (count := max(0, stop - start)) == 0:
            return
        ids, nll = track.token_ids.view()[start:stop], track.nll.view()[start:stop]
        for i in np.flatnonzero(ids != step.token_ids[:count])[:1]:
            self._differs(step, int(i), f"is {ids[i]} in the record, and {step.token_ids[i]} when it is read again")
        apart = np.abs(nll.astype(np.float64) - step.nll[:count])
        for i in np.flatnonzero(~(apart <= CLOSE))[:1]:
            how = f"has an NLL of {nll[i]:.6f} in the record, and of {step.nll[i]:.6f} when it is read again"
            self._differs(step, int(i), how)
        self.tokens += count
        self.largest = max(self.largest, float(apart.max()))

    def _differs(self, step: Step, i: int, how: str) -> None:
        raise ValueError(
            f"token {step.start + i:,} of lane {step.lane} ({step.policy.label}) {how}: this machine, or the libraries "
            "on it, compute something else, so the run does not go on, and its folder is as it was"
        )

    def rest(self, step: Step) -> Step | None:
        """Compare a step, and give what of it is not in the record; None where all of it is."""
        self.take(step)
        end = len(self.run.tracks[step.lane].nll) + 1
        return None if step.stop <= end else step if step.start >= end else step.since(end)

    @property
    def sentence(self) -> str:
        """What was compared, and how far it was apart."""
        if not self.tokens:
            return "Nothing had to be read again."
        return (
            f"{self.tokens:,} tokens were read again: no NLL differs from the record by more than {self.largest:.1e}."
        )


class Going(Protocol):
    """A lane that goes on: one that reads a text, or one that talks."""

    @property
    def index(self) -> int:
        """Which of the run's lanes it is."""
        ...

    @property
    def position(self) -> int:
        """The next token to be predicted."""
        ...

    @property
    def seconds(self) -> float:
        """Compute seconds so far."""
        ...

    def state(self) -> State:
        """All that it holds just now."""
        ...


OneLane = TypeVar("OneLane", bound=Going)


def state_of(run: Run, lanes: Sequence[Going], without: Sequence[int] = ()) -> Made:
    """What a checkpoint of the lanes of a run holds; `without`: lanes that begin again, since they failed and may be
    half done, or have nothing yet."""
    joined = State.of({str(lane.index): lane.state() for lane in lanes if lane.index not in without})
    return {"kind": run.kind, "events": len(run.events), "lanes": joined.values}, dict(joined.tensors)


@dataclass
class Standing(Generic[OneLane]):
    """Lanes as the newest checkpoint has them that fits the record, or at their beginning."""

    lanes: list[OneLane]
    since: list[int]
    """For each lane, how many events of the run lie behind it."""
    checkpoints: Checkpoints
    about: dict[str, Any]
    """What the checkpoint says; empty where there is none."""
    said: list[str]
    """What there is to say of it, in sentences."""

    @classmethod
    def of(
        cls, asked: StoppedRun, make: Callable[[int, str], OneLane], load: Callable[[OneLane, State], None]
    ) -> "Standing[OneLane]":
        """`make`: a lane of a number under a policy, at its beginning; `load`: puts it where a checkpoint has it."""
        run, checkpoints, said = asked.run, Checkpoints(asked.path), list[str]()
        for checkpoint in checkpoints.generations() if asked.weights_sha256 else ():
            try:
                lanes, since = _loaded(checkpoint, run, make, load)
                said.append(f"It goes on from a checkpoint at {_positions([lane.position for lane in lanes])}.")
                return cls(lanes, since, checkpoints, checkpoint.about, said)
            except (ValueError, KeyError, TypeError) as e:
                said.append(f"A checkpoint does not fit the record, and is left out: {e}")
        said.append("There is no checkpoint to go on from: it begins anew, and must come to what the record says.")
        lanes = [make(i, policy) for i, policy in enumerate(run.spec.policies)]
        return cls(lanes, [0] * len(lanes), checkpoints, {}, said)

    def open(self, asked: StoppedRun, comparison: Comparison) -> Folder:
        """The folder of a run whose lanes stand where its record ends, opened again.

        Raises ValueError where somebody else has opened it since.
        """
        run = asked.run
        with claimed(asked.path):
            asked.check_left()
            self.said.append(comparison.sentence)
            run.go_on([lane.seconds for lane in self.lanes])
            folder = Folder.reopened(asked.path, run)
        positions = [lane.position for lane in self.lanes]
        folder.event("resumed", positions=positions, compared=comparison.tokens, largest=comparison.largest)
        return folder


def _loaded(
    checkpoint: Checkpoint, run: Run, make: Callable[[int, str], OneLane], load: Callable[[OneLane, State], None]
) -> tuple[list[OneLane], list[int]]:
    """Lanes as a checkpoint has them, and how many events lie behind each.  Raises ValueError where it does not belong
    to the record."""
    if checkpoint.about["kind"] != run.kind or checkpoint.about["events"] > len(run.events):
        raise ValueError("it is of a moment that the record has not")
    whole, lanes, since = State(checkpoint.about["lanes"], checkpoint.tensors), [], []
    for index, (policy, track) in enumerate(zip(run.spec.policies, run.tracks, strict=True)):
        if str(index) not in whole.values:
            # One that had failed, or had nothing yet, begins again.
            lanes.append(make(index, policy))
            since.append(0)
            continue
        state = whole.part(str(index))
        own = state if run.kind == "reading" else state.part("lane")
        if own.value("position", int) > len(track.nll) + 1:
            raise ValueError("it is of a moment that the record has not")
        lanes.append(make(index, own.value("policy", str)))
        load(lanes[-1], state)
        since.append(checkpoint.about["events"])
    return lanes, since


@dataclass
class Resumed(Generic[OneLane]):
    """A run that goes on: its lanes stand where the record of each ends, those that talk a few tokens further."""

    run: Run
    folder: Folder
    """Opened again, to take in what they learn."""
    lanes: list[OneLane]
    checkpoints: Checkpoints
    said: list[str]
    """What there is to say of how it went, in sentences."""


@dataclass
class ResumedReading(Resumed[Lane]):
    """A reading that goes on."""

    read: texts.Tokenized
    switches: list[Switch]
    """Those that are still to come."""


def resumed(
    asked: StoppedRun,
    network: LanguageModel,
    source: Text,
    *,
    history: int = 0,
    progress: Callable[[int, int], None] = lambda lane, position: None,
) -> ResumedReading:
    """Let a reading go on with the model and the text that its Spec names.

    `progress` is told, while tokens are read again, which lane is at which position.  Raises ValueError where text or
    weights are others, a run that has finished has nothing left to read, or what is read again is not what the record
    says; the folder is then as it was.
    """
    asked.check(source.sha256, network.sha256)
    run, spec = asked.run, asked.spec
    read = spec.tokenized(source, network.tokenizer)
    _refuse_whole(run, len(read.ids), spec.tokens is None or len(read.ids) < spec.tokens)
    policies = [parse(p) for p in spec.policies]
    context = open_lanes(network, read.ids, policies, history=history, fidelity=spec.fidelity)[0].context
    standing = Standing.of(asked, lambda i, policy: Lane(i, parse(policy), context), Lane.load_state)
    comparison = Comparison(run)
    for lane, since in zip(standing.lanes, standing.since, strict=True):
        for step in _again(lane, run, since):
            comparison.take(step)
            progress(lane.index, lane.position)
    # A record that was cut off before its first chunk does not say it.
    run.spec, run.first_token = spec, int(read.ids[0])
    switches = to_come(asked.switches, run.events, [lane.position for lane in standing.lanes])
    folder = standing.open(asked, comparison)
    if len(read.ids) > len(run.pieces[0]):
        folder.pieces(-1, 0, texts.token_texts(network.tokenizer, read.ids))
    return ResumedReading(run, folder, standing.lanes, standing.checkpoints, standing.said, read, switches)


def _positions(positions: Sequence[int]) -> str:
    alike = len(set(positions)) == 1
    return f"token {positions[0]:,}" if alike else f"tokens {', '.join(f'{p:,}' for p in positions)}"


def _again(lane: Lane, run: Run, since: int) -> Iterator[Step]:
    """What the record has of a lane behind its position, read again, with the switches that came `since` some event."""
    end, position, known = len(run.tracks[lane.index].nll) + 1, lane.position, run.switches
    switches = [
        event
        for i, event in enumerate(run.events)
        # What others are measured against begins again before the chunk in which they may stand.
        if event in known and event["lane"] == lane.index and (i >= since or event["position"] > position)
    ]
    for event in switches:
        yield from _read(lane, run, min(event["position"], end))
        lane.switch(parse(event["policy"]), pin="pinned" in event.get("how", ""))
    yield from _read(lane, run, end)


def _read(lane: Lane, run: Run, upto: int) -> Iterator[Step]:
    """Read on in the chunks of the record.  In others tokens are rounded otherwise, of which a lane that has lost its
    sinks makes more than `CLOSE`; and where lanes are measured against one of them, its last chunk must be there as it
    was for those that stand inside it."""
    spans = run.tracks[lane.index].spans
    for _, stop in spans[bisect_left(spans, (lane.position,)) :]:
        while lane.position < min(stop, upto):
            yield lane.read(_WHOLE, upto=min(stop, upto))
