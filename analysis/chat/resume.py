"""Conversations that go on where they stopped, in the middle of an answer too.

From the newest checkpoint on, what was said is said again, prompt by prompt as the events have them, and every answer
must be the one of the record (runs/resume.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.state import State
from ..engine.step import Step
from ..models.language_model import LanguageModel
from ..policies import parse
from ..runs.checkpoint import Checkpoint, Checkpoints
from ..runs.folder import Folder
from ..runs.resume import Comparison, Made, Stopped
from ..runs.run import Run
from .conversation import Conversation
from .partner import Partner


@dataclass
class ResumedChat:
    """A conversation that goes on: its lanes stand where the record of each ends, or a few tokens further."""

    run: Run
    folder: Folder
    """Opened again, to take in what they say."""
    lanes: list[Conversation]
    checkpoints: Checkpoints
    said: list[str]
    """What there is to say of how it went, in sentences."""
    about: dict[str, Any]
    """What the checkpoint says from which it goes on; empty where there was none."""


def state_of(run: Run, lanes: Sequence[Conversation]) -> Made:
    """What a checkpoint of conversations holds."""
    joined = State.of({str(lane.lane.index): lane.state() for lane in lanes})
    return {"kind": "chat", "events": len(run.events), "lanes": joined.values}, dict(joined.tensors)


def resumed(
    asked: Stopped,
    network: LanguageModel,
    *,
    text_sha256: str,
    history: int = 0,
    progress: Callable[[int, int], None] = lambda lane, position: None,
) -> ResumedChat:
    """Let a conversation go on with the model that its Spec names; `text_sha256`: of its script, where it has one.

    `progress` is told, while it is said again, which lane is at which position.  Raises ValueError where script or
    weights are others, or what is said again is not what the record says; the folder is then as it was.
    """
    asked.check(text_sha256, network.sha256)
    run, spec = asked.run, asked.spec
    partner = Partner(network, bos=spec.bos, special=spec.special)

    def lane(index: int, policy: str) -> Conversation:
        assert spec.sampling is not None, "a chat samples"
        made = Conversation(partner, parse(policy), spec.sampling, index=index, history=history, kv_chunk=spec.kv_chunk)
        made.trace()
        return made

    _forget_answers(run)
    checkpoints, said, since, about = Checkpoints(asked.path), list[str](), 0, dict[str, Any]()
    for checkpoint in checkpoints.generations() if asked.weights_sha256 else ():
        try:
            lanes, since, about = _loaded(checkpoint, run, lane), checkpoint.about["events"], checkpoint.about
            said.append(f"It goes on from a checkpoint at {', '.join(f'{len(c.tokens):,}' for c in lanes)} tokens.")
            break
        except (ValueError, KeyError, TypeError) as e:
            said.append(f"A checkpoint does not fit the record, and is left out: {e}")
    else:
        lanes = [lane(i, policy) for i, policy in enumerate(spec.policies)]
        said.append("There is no checkpoint to go on from: all is said again from the beginning.")
    comparison, more = Comparison(run), list[Step]()
    for one in lanes:
        for step in _again(one, run, since):
            if (rest := comparison.rest(step)) is not None:
                more.append(rest)
            progress(one.lane.index, one.lane.position)
    said.append(comparison.sentence)
    if run.first_token is None and len(lanes[0].tokens):
        run.first_token, run.first_role = int(lanes[0].tokens[0]), int(lanes[0].roles.view()[0])
    run.go_on([one.lane.seconds for one in lanes])
    folder = Folder.reopened(asked.path, run)
    for one in lanes:
        if len(one.tokens):
            folder.pieces(one.lane.index, 0, one.pieces())
    positions = [one.lane.position for one in lanes]
    folder.event("resumed", positions=positions, compared=comparison.tokens, largest=comparison.largest)
    for step in more:
        folder.append(step)
    noted = {(e["lane"], e["position"], e.get("stop")) for e in run.events if e["what"] == "answer"}
    for one in lanes:
        for turn in one.turns:
            if turn.why and (key := (one.lane.index, turn.begin, turn.stop)) not in noted:
                # Its last token was recorded, and the process was killed before this.
                folder.event("answer", lane=key[0], position=turn.begin, stop=turn.stop, why=turn.why)
    return ResumedChat(run, folder, lanes, checkpoints, said, about)


def _forget_answers(run: Run) -> None:
    """Forget answers that were to be given again, where the record does not have the new ones yet."""
    for event in [e for e in run.events if e["what"] == "again"]:
        track, begin = run.tracks[event["lane"]], event["position"]
        # When it happened is rounded in the record.
        if len(track.nll) >= begin and track.seconds.view()[begin - 1] < event["seconds"] - 0.001:
            track.truncate(begin)
            del run.pieces[event["lane"]][begin:]


def _loaded(checkpoint: Checkpoint, run: Run, lane: Callable[[int, str], Conversation]) -> list[Conversation]:
    """Conversations as a checkpoint has them.  Raises ValueError where it does not belong to the record."""
    if checkpoint.about["kind"] != "chat" or checkpoint.about["events"] > len(run.events):
        raise ValueError("it is of a moment that the record has not")
    whole, found = State(checkpoint.about["lanes"], checkpoint.tensors), []
    for index, track in enumerate(run.tracks):
        state = whole.part(str(index))
        own = state.part("lane")
        if own.value("position", int) > len(track.nll) + 1:
            raise ValueError("it is of a moment that the record has not")
        found.append(lane(index, own.value("policy", str)))
        found[-1].load_state(state)
    return found


def _again(lane: Conversation, run: Run, since: int) -> Iterator[Step]:
    """What happened to a lane `since` some event, once more, up to the end of its record."""
    end = len(run.tracks[lane.lane.index].nll) + 1
    for event in [e for e in run.events[since:] if e["lane"] == lane.lane.index]:
        if event["what"] == "prompt":
            lane.ask(event["text"])
        elif event["what"] == "switch" and "policy" in event:
            yield from _until(lane, run, lambda e=event: lane.lane.position >= e["position"])
            lane.switch(parse(event["policy"]), pin="pinned" in event.get("how", ""))
        elif event["what"] == "answer":
            yield from _until(lane, run, lambda e=event: _over(lane, e))
            lane.stop()
    yield from _until(lane, run, lambda: lane.lane.position >= end)
    if lane.lane.position < end:
        raise ValueError(
            f"the record of lane {lane.lane.index} has tokens that its events do not explain: it is damaged, or of an "
            "older version, and does not go on"
        )


def _over(lane: Conversation, event: dict[str, Any]) -> bool:
    """Whether an answer has come to where it ended: by itself, or because it was stopped."""
    cut = event.get("why") not in ("ended", "limit")
    return cut and len(lane.tokens) >= int(event.get("stop") or 0)


def _until(lane: Conversation, run: Run, over: Callable[[], bool]) -> Iterator[Step]:
    while not over() and (step := lane.step(run.spec.chunk)) is not None:
        yield step
