"""Conversations that go on where they stopped, in the middle of an answer too.

From the newest checkpoint on, what was said is said again, prompt by prompt as the events have them, and every answer
must be the one of the record (runs/resume.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.step import Step
from ..models.language_model import LanguageModel
from ..policies import parse
from ..runs.resume import Comparison, Made, Resumed, Standing, StoppedRun, state_of
from ..runs.run import Run
from .conversation import Conversation, written
from .partner import TEMPLATE, Partner


@dataclass
class ResumedChat(Resumed[Conversation]):
    """A conversation that goes on."""

    about: dict[str, Any]
    """What the checkpoint says from which it goes on; empty where there was none."""

    def left(self, script: Sequence[str] = ()) -> list[str]:
        """Prompts of a script that were not said: of the one that was being played, which the checkpoint knows, or else
        of `script`.  Others may have been typed between them."""
        if "pending" not in self.about:
            return _left(script, [turn.prompt for turn in max(self.lanes, key=lambda lane: len(lane.turns)).turns])
        told: list[list[str]] = [[] for _ in self.lanes]
        for event in self.run.events[self.about["events"] :]:
            if event["what"] == "prompt" and event["lane"] is not None:
                told[event["lane"]].append(event["text"])
        return _left(self.about["pending"], max(told, key=len))


def _left(script: Sequence[str], told: Sequence[str]) -> list[str]:
    left = list(script)
    for prompt in told:
        if left and written(prompt).strip() == written(left[0]).strip():
            del left[0]
    return left


def checkpoint(run: Run, lanes: Sequence[Conversation], pending: Sequence[str], scripted: int) -> Made:
    """What a checkpoint of a conversation holds; `pending`: what is left of the `scripted` prompts of its script."""
    # A lane that was told nothing yet has nothing to go on from but its beginning.
    about, tensors = state_of(run, lanes, [lane.index for lane in lanes if not len(lane.tokens)])
    return {**about, "pending": list(pending), "scripted": scripted}, tensors


def resumed(
    asked: StoppedRun,
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
    standing = Standing.of(asked, lane, Conversation.load_state)
    comparison, more = Comparison(run), list[Step]()
    for one, since in zip(standing.lanes, standing.since, strict=True):
        for step in _again(one, run, since):
            if (rest := comparison.rest(step)) is not None:
                more.append(rest)
            progress(one.index, one.position)
    first = standing.lanes[0]
    if run.first_token is None and len(first.tokens):
        run.first_token, run.first_role = int(first.tokens[0]), int(first.roles.view()[0])
    folder = standing.open(asked, comparison)
    for one in standing.lanes:
        if len(one.tokens):
            folder.pieces(one.index, 0, one.pieces())
    for step in more:
        folder.append(step)
    noted = {(e["lane"], e["position"], e.get("stop")) for e in run.events if e["what"] == "answer"}
    for one in standing.lanes:
        for turn in one.turns:
            if turn.why and (key := (one.index, turn.begin, turn.stop)) not in noted:
                # Its last token was recorded, and the process was killed before this.
                folder.event("answer", lane=key[0], position=turn.begin, stop=turn.stop, why=turn.why)
    return ResumedChat(run, folder, standing.lanes, standing.checkpoints, standing.said, standing.about)


def _forget_answers(run: Run) -> None:
    """Forget answers that were to be given again, where the record does not have the new ones yet."""
    for event in [e for e in run.events if e["what"] == "again" and None not in (e["lane"], e["position"])]:
        track, begin = run.tracks[event["lane"]], event["position"]
        # When it happened is rounded in the record.
        if len(track.nll) >= begin and track.seconds.view()[begin - 1] < event["seconds"] - 0.001:
            track.truncate(begin)
            del run.pieces[event["lane"]][begin:]


def _again(lane: Conversation, run: Run, since: int) -> Iterator[Step]:
    """What happened to a lane `since` some event, once more, up to the end of its record."""
    end, switches = len(run.tracks[lane.index].nll) + 1, run.switches
    for event in [e for e in run.events[since:] if e["lane"] == lane.index]:
        if event["what"] == "prompt":
            lane.ask(event["text"])
            _check_template(lane, run)
        elif event in switches:
            yield from _until(lane, run, lambda e=event: lane.position >= e["position"])
            lane.switch(parse(event["policy"]), pin="pinned" in event.get("how", ""))
        elif event["what"] == "answer":
            yield from _until(lane, run, lambda e=event: _over(lane, e))
            if event.get("why") == "failed":
                lane.fail()
            else:
                lane.stop()
    yield from _until(lane, run, lambda: lane.position >= end)
    # One that failed in an answer had gone back, and reads what it said again before the next.
    known = np.array_equal(lane.tokens[1:end], run.tracks[lane.index].token_ids.view())
    if lane.position < end and not known:
        raise ValueError(
            f"the record of lane {lane.index} has tokens that its events do not explain: it is damaged, or of an "
            "older version, and does not go on"
        )


def _check_template(lane: Conversation, run: Run) -> None:
    """Raises ValueError where the template writes something else around what was said than the record has."""
    known = run.tracks[lane.index].token_ids.view()
    other = np.flatnonzero(lane.tokens[1 : len(known) + 1] != known[: len(lane.tokens) - 1])
    if len(other) and lane.roles.view()[at := int(other[0]) + 1] == TEMPLATE:
        raise ValueError(
            f"token {at:,} of lane {lane.index} is of the chat template, which writes something else now than the "
            "record has, such as the date of the day: what was said cannot be said again, so the run does not go on, "
            "and its folder is as it was"
        )


def _over(lane: Conversation, event: dict[str, Any]) -> bool:
    """Whether an answer has come to where it ended: by itself, or because it was stopped."""
    cut = event.get("why") not in ("ended", "limit")
    return cut and len(lane.tokens) >= int(event.get("stop") or 0)


def _until(lane: Conversation, run: Run, over: Callable[[], bool]) -> Iterator[Step]:
    while not over() and (step := lane.step(run.spec.chunk)) is not None:
        yield step
