"""Runs that go on where they stopped: interrupted, killed at any moment, or finished before the end of the text.

What was read after the newest checkpoint is read again, and must be what the record says.  Until that is known nothing
in the folder is touched.  How a conversation goes on is chat/resume.py's matter.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
from .checkpoint import Checkpoint, Checkpoints
from .folder import Folder
from .reader import about_of, load
from .run import Run
from .spec import Spec
from .status import RUNNING

CLOSE = 1e-4
"""Nats by which the NLL of a token may differ from the record when it is read again."""

Made = tuple[dict[str, Any], dict[str, Tensor | Window]]


@dataclass(frozen=True)
class Stopped:
    """A run in a folder that can go on, and what it is asked for now."""

    path: Path
    run: Run
    spec: Spec
    text_sha256: str | None
    weights_sha256: str | None

    def check(self, text_sha256: str, weights_sha256: str) -> None:
        """Raises ValueError where the text or the weights are not those of the run."""
        for what, then, now in (
            (f"the text {self.spec.text}", self.text_sha256, text_sha256),
            (f"the model {self.spec.model}", self.weights_sha256, weights_sha256),
        ):
            # Of weights whose digest was not yet known nothing is believed that is not read again.
            if then and then != now:
                raise ValueError(
                    f"{what} is not the one that this run was read with (sha256 {_short(then)} then, {_short(now)} "
                    "now): it goes on with the same only"
                )


def _short(digest: str | None) -> str:
    return (digest or "unknown")[:12]


def stopped(path: Path, tokens: int | None = None) -> Stopped:
    """The run in a folder, which goes on until `tokens` tokens are read; None: until what it was asked for.

    Raises ValueError where there is none, or it cannot go on.
    """
    path = Path(path)
    about = about_of(path)
    if about.get("kind") not in (None, "reading", "chat"):
        raise ValueError(f"{path} holds {about['kind']}, which does not go on: begin anew")
    if about.get("status") == RUNNING:
        process = about.get("process") or {}
        raise ValueError(
            f"{path} is being written by process {process.get('pid')} on {process.get('host')}: end it first, or wait "
            "until it has finished"
        )
    run = load(path)
    if run.kind == "chat":
        if tokens is not None:
            raise ValueError("a conversation goes on as long as somebody says something: leave out --tokens")
        spec = run.spec
    else:
        read = max((len(track.nll) + 1 for track in run.tracks), default=1)
        if tokens is not None and tokens < read:
            raise ValueError(f"this run has read {read:,} tokens already: ask for more than {tokens:,}")
        spec = run.spec if tokens is None else replace(run.spec, tokens=tokens)
    return Stopped(path, run, spec, about.get("text_sha256"), about.get("weights_sha256"))


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


@dataclass
class Resumed:
    """A run that goes on: its lanes stand where the record of each ends."""

    run: Run
    folder: Folder
    """Opened again, to take in what they learn."""
    lanes: list[Lane]
    checkpoints: Checkpoints
    read: texts.Tokenized
    said: list[str] = field(default_factory=list)
    """What there is to say of how it went, in sentences."""


def state_of(run: Run, lanes: Sequence[Lane], without: Sequence[int] = ()) -> Made:
    """What a checkpoint of lanes that read a text holds; `without`: lanes that failed and may be half done."""
    states = {str(lane.index): lane.state() for lane in lanes if lane.index not in without}
    joined = State.of(states)
    return {"kind": "reading", "events": len(run.events), "lanes": joined.values}, dict(joined.tensors)


def resumed(
    asked: Stopped,
    network: LanguageModel,
    source: Text,
    *,
    history: int = 0,
    progress: Callable[[int, int], None] = lambda lane, position: None,
) -> Resumed:
    """Let a reading go on with the model and the text that its Spec names.

    `progress` is told, while tokens are read again, which lane is at which position.  Raises ValueError where text or
    weights are others, there is nothing left to read, or what is read again is not what the record says; the folder is
    then as it was.
    """
    asked.check(source.sha256, network.sha256)
    run, spec = asked.run, asked.spec
    read = spec.tokenized(source, network.tokenizer)
    if all(len(track.nll) + 1 >= len(read.ids) for track in run.tracks):
        more = (
            "the text has no more" if spec.tokens is None or len(read.ids) < spec.tokens else "--tokens asks for more"
        )
        raise ValueError(f"this run has read all {len(read.ids):,} tokens that it was asked for: {more}")
    checkpoints, said = Checkpoints(asked.path), list[str]()
    lanes, events = open_lanes(network, read.ids, [parse(p) for p in spec.policies], history=history), 0
    for checkpoint in checkpoints.generations() if asked.weights_sha256 else ():
        try:
            lanes, events = _loaded(checkpoint, run, lanes), checkpoint.about["events"]
            said.append(f"It goes on from a checkpoint at {_positions([lane.position for lane in lanes])}.")
            break
        except (ValueError, KeyError, TypeError) as e:
            said.append(f"A checkpoint does not fit the record, and is left out: {e}")
    else:
        said.append("There is no checkpoint to go on from: it is read again from the beginning.")
    comparison = Comparison(run)
    for lane in lanes:
        for step in _again(lane, run, events):
            comparison.take(step)
            progress(lane.index, lane.position)
    said.append(comparison.sentence)
    run.spec = spec
    run.go_on([lane.seconds for lane in lanes])
    folder = Folder.reopened(asked.path, run)
    if len(read.ids) > len(run.pieces[0]):
        folder.pieces(-1, 0, texts.token_texts(network.tokenizer, read.ids))
    positions = [lane.position for lane in lanes]
    folder.event("resumed", positions=positions, compared=comparison.tokens, largest=comparison.largest)
    return Resumed(run, folder, lanes, checkpoints, read, said)


def _positions(positions: Sequence[int]) -> str:
    alike = len(set(positions)) == 1
    return f"token {positions[0]:,}" if alike else f"tokens {', '.join(f'{p:,}' for p in positions)}"


def _loaded(checkpoint: Checkpoint, run: Run, lanes: Sequence[Lane]) -> list[Lane]:
    """Lanes as a checkpoint has them.  Raises ValueError where it does not belong to the record."""
    if checkpoint.about["kind"] != "reading" or checkpoint.about["events"] > len(run.events):
        raise ValueError("it is of a moment that the record has not")
    whole, found = State(checkpoint.about["lanes"], checkpoint.tensors), []
    for lane, track in zip(lanes, run.tracks, strict=True):
        if str(lane.index) not in whole.values:
            # One that had failed begins again.
            found.append(lane)
            continue
        state = whole.part(str(lane.index))
        if state.value("position", int) > len(track.nll) + 1:
            raise ValueError("it is of a moment that the record has not")
        found.append(Lane(lane.index, parse(state.value("policy", str)), lane.context))
        found[-1].load_state(state)
    return found


def _again(lane: Lane, run: Run, since: int) -> Iterator[Step]:
    """What the record has of a lane behind its position, read again, with the switches that came `since` some event."""
    end = len(run.tracks[lane.index].nll) + 1
    switches = [e for e in run.events[since:] if e["what"] == "switch" and e["lane"] == lane.index and "policy" in e]
    for event in switches:
        yield from _read(lane, min(event["position"], end), run.spec.chunk)
        lane.switch(parse(event["policy"]), pin="pinned" in event.get("how", ""))
    yield from _read(lane, end, run.spec.chunk)


def _read(lane: Lane, upto: int, chunk: int) -> Iterator[Step]:
    while lane.position < upto:
        yield lane.read(chunk, upto=upto)
