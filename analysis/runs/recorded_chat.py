"""A conversation as bytes that a browser replays: all that the chat page shows of it at any position, sent once.

A script makes the frames from it (app/components/conversation/recorded.js), the same as those of a live conversation.
Lanes have texts of their own, so one position holds for all of them: every turn begins in all lanes at once, and lasts
as long as it does in the lane that says most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..palette import colours
from ..policies import Policy, parse
from . import screen
from .codec import assemble
from .recording import SPEEDS, WHOLE, about_model, indexed, measured, names_at, piece_lists, straight
from .rows import RecordedRow
from .run import ROLES, Run, Track
from .shares import ALL, Shares, as_arrays

SAID = ROLES.index("assistant")
ALIKE = ("banded", "recomputed")
"""Stores in which all heads hold the same tokens: first ones, and the newest."""


@dataclass(frozen=True)
class _Switch:
    """A lane went on under another policy from a position on; `how`: what became of its sinks."""

    position: int
    policy: Policy
    how: str

    @property
    def label(self) -> str:
        return ", ".join(filter(None, (self.policy.label, self.how)))


def recorded_chat(
    run: Run,
    name: str,
    about: Mapping[str, Any],
    shares: Sequence[Shares] = (),
    rows: Sequence[RecordedRow] = (),
) -> bytes:
    """The recording of a conversation; `about`: what its folder says of itself; `shares`, `rows`: what it keeps of what
    heads held, and of what tokens looked back at.

    Raises ValueError where nothing was said in it.
    """
    if not any(len(track.nll) for track in run.tracks):
        raise ValueError(
            "nothing was said in this conversation yet, so there is nothing to replay: "
            "where it was ended so early, resume it, and it begins with the same settings"
        )
    begun = [parse(p) for p in run.spec.policies]
    styles, lanes = colours(begun), range(len(begun))
    turns = [_turns(run, lane) for lane in lanes]
    switches = [_switches(run, lane) for lane in lanes]
    places = _places([[stop for stop, _ in of] for of in turns])
    spent = [_spent(track) for track in run.tracks]
    vocabulary, arrays = indexed(piece_lists(run))
    for i, track in enumerate(run.tracks):
        held = _held(track, begun[i], switches[i])
        of_lane = {**measured(track), **_costs(track, spent[i]), **as_arrays(shares, i)}
        of_lane["roles"] = _roles(run, track).astype(np.uint16)
        for of, values in {"place": places[i], **held}.items():
            of_lane |= {f"{of}_{part}": array for part, array in straight(values).items()}
        arrays |= {f"{of}{i}": array for of, array in of_lane.items()}
    arrays["clock"] = _clock(places, spent)
    for k, row in enumerate(rows):
        arrays |= {f"row_places{k}": row.positions, f"row_weights{k}": row.weights}
    changed = [[(_when(places[i], s.position), s.position, s.policy) for s in of] for i, of in enumerate(switches)]
    faces = names_at(begun, changed)
    ends = {_when(places[i], stop) - 1 for i, of in enumerate(turns) for stop, _ in of}
    header = {
        "kind": run.kind,
        "run": name,
        "status": run.status or about.get("status", ""),
        "started": run.started,
        "about": about_model(run),
        "constants": {
            **screen.CHAT_CONSTANTS,
            "tail": screen.TAIL,
            "first_tokens": screen.FIRST_TOKENS,
            "recent": screen.RECENT,
            "buckets": screen.BUCKETS,
            "speeds": list(SPEEDS.items()),
            "whole": WHOLE,
            "all": ALL,
        },
        "total": len(places[0]) - 1,
        "lanes": [
            {
                "color": color,
                "dash": dash,
                "begun": begun[i].label,
                "switches": [(s.position, s.label, s.policy.label) for s in switches[i]],
                "turns": turns[i],
                "unknown": [s for s in _stretches(run.tracks[i], begun[i], switches[i]) if s is not None],
            }
            for i, (color, dash) in enumerate(styles)
        ],
        "faces": faces,
        "marks": [
            {"x": x, "text": f"{_called(faces, i, x)}: {s.label}", "kind": "switch", "lane": i}
            for i, of in enumerate(switches)
            for s, x in ((s, _when(places[i], s.position)) for s in of)
        ],
        "stops": sorted(ends),
        "caution": " ".join(dict.fromkeys(str(e.get("text", "")) for e in run.events if e["what"] == "warning")),
        "card": screen.card(run.model),
        "vocabulary": vocabulary,
        "rows": [{"lane": row.lane, "layer": row.layer, "head": row.head, "token": row.token} for row in rows],
    }
    return assemble(header, arrays)


def _called(faces: Sequence[tuple[int, list[dict[str, Any]]]], lane: int, position: int) -> str:
    """What a lane is called just before a position of the recording."""
    return next(names[lane]["label"] for at, names in reversed(faces) if at < position)


def _turns(run: Run, lane: int) -> list[tuple[int, str]]:
    """Where each turn of a lane ends, ascending, and why: as its events say, or else its roles."""
    track = run.tracks[lane]
    said = len(track.nll) + 1 if len(track.nll) else 0
    ends: dict[int, tuple[int, str]] = {}
    for event in [e for e in run.events if e["lane"] == lane and e["position"] is not None]:
        begin, stop = event["position"], event.get("stop")
        if event["what"] == "again":
            ends = {at: end for at, end in ends.items() if at < begin}
        elif event["what"] == "answer" and isinstance(stop, int) and 0 < stop <= said:
            ends[begin] = stop, str(event.get("why") or "")
    if not ends:
        # In a folder of an older version a turn begins where the model no longer speaks.
        spoken = _roles(run, track)[:said] == SAID
        ends = {int(at): (int(at) + 1, "") for at in np.flatnonzero(spoken[:-1] & ~spoken[1:])}
    found = list[tuple[int, str]]()
    for _, (stop, why) in sorted(ends.items()):
        if stop > (found[-1][0] if found else 0):
            found.append((stop, why))
    if said > (found[-1][0] if found else 0):
        # It is still in the middle of an answer.
        found.append((said, ""))
    return found


def _switches(run: Run, lane: int) -> list[_Switch]:
    """Where a lane was switched, of those under which it read something."""
    track, found = run.tracks[lane], dict[int, _Switch]()
    for event in [e for e in run.events if e["lane"] == lane and e["position"] is not None]:
        at, policy = event["position"], event.get("policy")
        if event["what"] == "again":
            found = {place: switch for place, switch in found.items() if place < at}
        elif event["what"] == "switch" and policy is not None and 0 < at <= len(track.nll):
            found[at] = _Switch(at, parse(policy), str(event.get("how") or ""))
    for at, policy in track.policies[1:]:
        found.setdefault(at, _Switch(at, parse(policy), ""))
    return [found[at] for at in sorted(found)]


def _places(ends: Sequence[Sequence[int]]) -> list[NDArray[np.int64]]:
    """How many tokens each lane has at each position of the recording, lanes of [positions + 1]."""
    parts: list[list[NDArray[np.int64]]] = [[np.zeros(1, np.int64)] for _ in ends]
    for turn in range(max(map(len, ends))):
        spans = [([0, *of][min(turn, len(of))], [0, *of][min(turn + 1, len(of))]) for of in ends]
        longest = max(stop - begin for begin, stop in spans)
        for part, (begin, stop) in zip(parts, spans, strict=True):
            part.append(np.minimum(begin + np.arange(1, longest + 1), stop))
    return [np.concatenate(part) for part in parts]


def _when(places: NDArray[np.int64], tokens: int) -> int:
    """The first position of the recording at which a lane has more than so many tokens."""
    return int(np.searchsorted(places, tokens, side="right"))


def _roles(run: Run, track: Track) -> NDArray[np.int8]:
    """Who said each token, [tokens]."""
    return np.concatenate(([run.first_role], track.roles.view())).astype(np.int8)


def _stretches(track: Track, begun: Policy, switches: Sequence[_Switch]) -> list[tuple[int, int] | None]:
    """From which token to which heads held tokens of their own, for each policy of a lane; None where they did not."""
    cuts = [1, *(s.position for s in switches), len(track.nll) + 1]
    found, known = list[tuple[int, int] | None](), True
    for (a, b), policy in zip(pairwise(cuts), [begun, *(s.policy for s in switches)], strict=True):
        # What a window that was ranked before still holds is known again when all of it has been read since.
        known = policy.store in ALIKE and (known or policy.capacity is not None)
        found.append(None if known else (a, b))
    return found


def _held(track: Track, begun: Policy, switches: Sequence[_Switch]) -> dict[str, NDArray[np.int64]]:
    """What the cache held when each token had been predicted: the first `sinks` tokens and all from `first` on, and how
    many first ones stay whatever comes, each [tokens]; 0 where each head held tokens of its own."""
    count = len(track.nll)
    read, kept = np.arange(1, count + 1), track.cache_tokens.view()[:count].astype(np.int64)
    sinks, first, protected = (np.zeros(count, np.int64) for _ in range(3))
    cuts = [1, *(s.position for s in switches), count + 1]
    stretches = _stretches(track, begun, switches)
    for i, ((a, b), unknown) in enumerate(zip(pairwise(cuts), stretches, strict=True)):
        policy, how = (switches[i - 1].policy, switches[i - 1].how) if i else (begun, "")
        if unknown is not None or a == b:
            continue
        of = slice(a - 1, b - 1)
        needed = policy.first_protected(count)
        if i and "without" in how:
            needed = 0
        elif i and policy.capacity is None:
            # What keeps everything keeps the first ones that were there.
            needed = int(sinks[a - 2])
        whole = kept[of] >= read[of]
        sinks[of] = np.where(whole, read[of], np.minimum(needed, kept[of]))
        first[of] = np.where(whole, 0, read[of] - (kept[of] - sinks[of]))
        protected[of] = np.minimum(sinks[of], policy.first_protected(count))
    return {"sinks": sinks, "first": first, "protected": protected}


def _spent(track: Track) -> NDArray[np.float64]:
    """Compute seconds of each token, [tokens]; NaN for the first of what was written at a time, which is not known."""
    seconds = track.seconds.view()[: len(track.nll)]
    spent = np.diff(seconds, prepend=np.nan)
    spent[[start - 1 for start, stop in track.spans if stop <= len(seconds) + 1]] = np.nan
    return np.where(spent < 0, np.nan, spent)


def _costs(track: Track, spent: NDArray[np.float64]) -> dict[str, NDArray]:
    """What tokens of answers cost, of those whose time is known: positions, seconds, and bytes of the cache."""
    said = np.flatnonzero((track.roles.view()[: len(spent)] == SAID) & np.isfinite(spent))
    return {
        "cost_at": (said + 1).astype(np.uint32),
        "cost_seconds": spent[said].astype(np.float32),
        "cost_bytes": track.cache_bytes.view()[said].astype(np.uint64),
    }


def _clock(places: Sequence[NDArray[np.int64]], spent: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Seconds of reading and answering until each position, of the slowest lane at each, waiting left out."""
    steps = np.zeros(len(places[0]) - 1)
    for place, seconds in zip(places, spent, strict=True):
        known = seconds[np.isfinite(seconds) & (seconds > 0)]
        filled = np.where(np.isnan(seconds), np.median(known) if len(known) else 0, seconds)
        came = np.flatnonzero((np.diff(place) > 0) & (place[1:] > 1))
        steps[came] = np.maximum(steps[came], filled[place[1:][came] - 2])
    return np.cumsum(steps).astype(np.float32)
