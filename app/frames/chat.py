"""What the chat page is sent: the state of its conversations, with the newest tokens and the first ones."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.models.memory import memory_of
from analysis.palette import colours
from analysis.policies import Policy, parse
from analysis.runs.codec import Frame
from analysis.runs.screen import BUCKETS, CHAT_CONSTANTS, RECENT, about, card
from analysis.runs.shares import ALL, hundredths

from ..jobs.chat import ChatJob
from ..jobs.chat_lane import ChatLaneSnapshot
from ..jobs.token_costs import TokenCosts
from ..view import ChatView
from .lanes import SCHEMA, faces


class ChatSender:
    """Makes a frame, or takes it from a tab that looks at the same."""

    def frame(self, talk: ChatJob, view: ChatView, lesson: str = "", steers: bool = True) -> Frame:
        """The newest state of the conversations as a person chose to see them; `lesson`: what to see in them;
        `steers`: whether this page may tell them what to do."""
        if view.head and talk.facts and not talk.facts.has(*view.head):
            # It was chosen in another model.
            view.head = None
        key = (talk.status, talk.said, lesson, steers, view.chosen, view.head, view.token)
        return talk.once(key, lambda: self._frame(talk, view, lesson, steers))

    def _frame(self, talk: ChatJob, view: ChatView, lesson: str, steers: bool) -> Frame:
        arrays: dict[str, NDArray] = {}
        # Once: it is replaced whenever something is said.
        lanes_shown = talk.snapshot
        if not lanes_shown:
            return self.empty([parse(p) for p in talk.spec.policies], view, talk.said, talk.status, talk.id)
        since = [s.switches[-1].position if s.switches else 0 for s in lanes_shown]
        named = faces([s.policy for s in lanes_shown], colours([parse(p) for p in talk.spec.policies]), since)
        lanes = [
            face | self._lane(shown, parse(talk.spec.policies[shown.lane]), shown.costs, arrays)
            for face, shown in zip(named, lanes_shown, strict=True)
        ]
        if (mass := lanes_shown[view.chosen].costs.sink_mass) is not None:
            arrays["grid"] = mass
        shown = None
        if view.token is not None and view.head is not None:
            row = talk.row(view.token[0], *view.head, view.token[1])
            if row is not None:
                shown = {"lane": view.token[0], "token": row.token, "layer": row.layer, "head": row.head}
                arrays["row_places"], arrays["row_weights"] = row.positions, row.weights
        return Frame(
            self._head(talk.id, talk.status, talk.said or lesson, view)
            | {
                "seq": talk.version,
                "unsaid": talk.unsaid,
                "steers": steers,
                "published": talk.published,
                "epoch": talk.epoch,
                "caution": talk.caution,
                "lanes": lanes,
                "row": shown,
                "script": {"left": len(talk.pending), "of": talk.scripted, "playing": talk.playing},
                "about": _about(talk),
                "card": card(talk.facts),
            },
            arrays,
        )

    def empty(
        self, policies: list[Policy], view: ChatView, note: str, status: str = "ready", run: str = "", unsaid: int = 0
    ) -> Frame:
        """A frame before anything was said: the lanes as they are set, and what there is to say; `unsaid`: the mark of
        a prompt that was not taken."""
        lanes = [
            face
            | {
                "total": 0,
                "start": 0,
                "text": [],
                "roles": "",
                "first_tokens": [],
                "sinks": 0,
                "protected": 0,
                "first": 0,
                "shares": None,
                "first_shares": None,
                "kept": 0,
                "bytes": 0,
                "ms": None,
                "state": "",
                "cut": [],
                "switches": [],
                "past": [],
                "sinks_held": 0,
                "read": 0,
            }
            for face in faces(policies, colours(policies))
        ]
        head = self._head(run, status, note, view)
        script = {"left": 0, "of": 0, "playing": False}
        more = {
            "seq": 0,
            "unsaid": unsaid,
            "published": 0,
            "epoch": 0,
            "caution": "",
            "lanes": lanes,
            "row": None,
            "script": script,
            "about": "",
            "card": {},
        }
        return Frame(head | more, {})

    def _head(self, run: str, status: str, note: str, view: ChatView) -> dict[str, Any]:
        return {
            "run": run,
            "status": status,
            "note": note,
            "chosen": view.chosen,
            "head": view.head,
            "token": view.token,
            "schema": SCHEMA,
            "constants": CHAT_CONSTANTS,
        }

    def _lane(
        self, shown: ChatLaneSnapshot, begun: Policy, costs: TokenCosts, arrays: dict[str, NDArray]
    ) -> dict[str, Any]:
        i = shown.lane
        places, seconds, sizes = (c.view() for c in (costs.positions, costs.seconds, costs.bytes))
        count = min(len(places), len(seconds), len(sizes))
        # The lower quartile: what a token takes when this page does not take the processor from it.
        cuts = np.unique(np.linspace(0, count, min(BUCKETS, count // 8) + 1).astype(int))
        spans = list(pairwise(cuts))
        arrays[f"x{i}"] = np.array([places[b - 1] for _, b in spans], np.float32)
        arrays[f"ms{i}"] = np.array([np.quantile(seconds[a:b], 0.25) * 1e3 for a, b in spans], np.float32)
        arrays[f"mb{i}"] = np.array([sizes[b - 1] / 1e6 for _, b in spans], np.float32)
        return {
            "total": shown.start + len(shown.pieces),
            "start": shown.start,
            "text": shown.pieces,
            "roles": "".join(map(str, shown.roles.tolist())),
            "first_tokens": shown.first_tokens,
            "sinks": shown.sinks,
            "protected": shown.protected,
            "first": shown.first,
            **_shares(shown),
            "kept": shown.cached_tokens,
            "bytes": shown.cached_bytes,
            "ms": float(np.quantile(seconds[count - RECENT : count], 0.25) * 1e3) if count >= RECENT else None,
            "state": shown.state,
            "cut": shown.cut,
            # Of two at one place only the last was ever read under.
            "past": _past(shown, begun),
            "switches": list({s.position: s.label for s in shown.switches}.items()),
            "sinks_held": shown.sinks,
            "read": shown.read,
        }


def strongest_head(talk: ChatJob, lane: int) -> tuple[int, int] | None:
    """The head with the largest sink mass just now: what to look at when none was chosen."""
    mass = talk.snapshot[lane].costs.sink_mass if talk.snapshot else None
    return None if mass is None else divmod(int(mass.argmax()), mass.shape[1])


def _about(talk: ChatJob) -> str:
    """The model and what it takes just now, on one line."""
    if talk.facts is None:
        return ""
    return " · ".join([*about(talk.spec, talk.facts, talk.begins), memory_of(talk.facts.device)])


def _past(shown: ChatLaneSnapshot, begun: Policy) -> list[tuple[int, int, str]]:
    """What a lane was called before it was switched: the first token, the one behind the last, and a name."""
    at = [0, *(s.position for s in shown.switches)]
    names = [begun.label, *(s.policy.label for s in shown.switches)]
    return [(a, b, name) for (a, b), name in zip(pairwise(at), names, strict=False) if a < b]


def _shares(shown: ChatLaneSnapshot) -> dict[str, list[float] | None]:
    """Which share of the heads holds each token on screen, and each of the first; None where all hold the same."""
    if shown.shares is None:
        return {"shares": None, "first_shares": None}
    # The newest token is said and not read yet: every head will take it in.
    shares = np.append(shown.shares, np.ones(max(0, shown.start + len(shown.pieces) - len(shown.shares))))
    return {
        "shares": (hundredths(shares[shown.start :]) / ALL).tolist(),
        "first_shares": (hundredths(shares[: len(shown.first_tokens)]) / ALL).tolist(),
    }
