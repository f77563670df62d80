"""What the page is sent ten times a second: the state of a run in one piece of bytes.

A frame stands for itself (the browser draws the newest and drops older ones): a JSON header, and arrays behind it whose
type, place and shape the header tells.  Curves are thinned so that spikes survive.  No Streamlit in here.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis import metrics
from analysis.palette import briefs, colours, labels
from analysis.policies import POLICIES, Policy, parse
from analysis.runs.run import Track

from ..jobs.base import Job
from ..jobs.reading import ReadingJob, ReadingSnapshot
from ..view import View

if TYPE_CHECKING:
    from analysis.maps.recent import HeadMap
    from analysis.models.language_model import LanguageModel

ROLL = 256
"""Tokens of the rolling curves."""
POINTS = 360
"""Points of a curve: about one a pixel."""
FIRST = 32
"""Tokens before a curve begins: means over fewer say nothing."""
STRIP = 360
"""Tokens of text on screen."""
GRID = 256
"""Tokens over which the sink grid is a mean."""
FLOOR = 1e-6
"""The smallest weight that a map tells from zero."""


@dataclass
class Sender:
    """Makes the frames of one tab."""

    seq: int = 0
    _arrays: dict[str, NDArray] = field(default_factory=dict)
    _seen: ReadingSnapshot | None = None
    """What a frame is made of: the lanes themselves read on meanwhile."""

    def frame(self, run: ReadingJob, view: View) -> bytes:
        """The newest state of a run as a person chose to see it."""
        self.seq += 1
        self._arrays, self._seen = {}, run.snapshot
        if view.head and run.model and not run.model.has(*view.head):
            # It was chosen in another model.
            view.head = None
        policies = [
            parse(t.policies[-1][1]) if t.policies else parse(p)
            for t, p in zip(self._seen.tracks, run.spec.policies, strict=True)
        ]
        begun = [parse(p) for p in run.spec.policies]
        since = [t.policies[-1][0] if t.policies else 0 for t in self._seen.tracks]
        faces = named(policies, colours(begun), since)
        head = {
            "seq": self.seq,
            "published": run.published,
            "run": run.id,
            "status": run.status,
            "note": run.note,
            "pace": run.pace,
            "mode": view.mode,
            "paint": view.paint,
            "reference": view.reference,
            "chosen": view.chosen,
            "head": view.head,
            "roll": ROLL,
            **self._progress(run),
            "trained_length": run.model.trained_length if run.model else None,
            "lanes": [face | self._lane(run, view, i) for i, face in enumerate(faces)],
            "marks": self._marks(run, begun),
            "schema": SCHEMA,
            "card": card(run.model) if run.model and self._seen.lanes else {},
        }
        self._curves(run, view)
        head.update(self._text(run, view))
        self._grid(self._seen.tracks[view.chosen])
        return assemble(head, self._arrays)

    def _progress(self, run: ReadingJob) -> dict[str, Any]:
        if not self._seen.lanes:
            return {"progress": "", "share": 0.0, "total": 0}
        from analysis.models.memory import memory_of

        total = self._seen.total
        read = max(lane.position for lane in self._seen.lanes)
        minutes, seconds = divmod(int(self._seen.seconds), 60)
        clock = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        where = " · ".join([*about(run), memory_of(run.model.device)])
        return {"progress": f"{read:,} of {total:,} tokens · {where} · {clock}", "share": read / total, "total": total}

    def _lane(self, run: ReadingJob, view: View, i: int) -> dict[str, Any]:
        track, reference = self._seen.tracks[i], self._seen.tracks[view.reference]
        nll = track.nll.view()
        lane = {
            "past": _past(track, run.spec.policies, i),
            "read": len(nll) + 1 if len(nll) else 0,
            "relative": None,
            "excess": None,
            "error": None,
            "rolling": None,
            "kept": 0,
            "bytes": 0,
            "rate": None,
            "sinks_held": self._seen.lanes[i].sinks if self._seen.lanes else 0,
            "state": "reading",
        }
        if self._seen.lanes and self._seen.lanes[i].done:
            lane["state"] = "end of text"
        if not len(nll):
            return lane
        shared = min(len(nll), len(reference.nll))
        sums, other = track.sums.view(), reference.sums.view()
        if shared >= FIRST and i != view.reference:
            begin = max(0, shared - ROLL)
            now = ((sums[shared] - sums[begin]) - (other[shared] - other[begin])) / (shared - begin)
            mean, error = metrics.excess(nll, reference.nll.view())
            lane.update(relative=_finite(np.exp(now)), excess=_finite(mean), error=_finite(error))
        lane["rolling"] = _finite(np.exp(metrics.rolling_mean(sums, np.array([len(nll)]), ROLL)[0]))
        lane["kept"], lane["bytes"] = int(track.cache_tokens.view()[-1]), int(track.cache_bytes.view()[-1])
        # Over the last few chunks, since a policy may have been switched.
        spans = track.spans[-6:]
        compute = track.compute.view()
        before = compute[spans[0][0] - 2] if spans[0][0] > 1 else 0.0
        lane["rate"] = _finite((spans[-1][1] - spans[0][0]) / max(compute[spans[-1][1] - 2] - before, 1e-9))
        return lane

    def _marks(self, run: ReadingJob, policies: list[Policy]) -> list[dict[str, Any]]:
        read = max(len(t.nll) for t in self._seen.tracks)
        full: dict[int, int] = {}
        for policy in policies:
            if (at := policy.full_from) is not None and at < read and getattr(policy, "stride", None) is None:
                full[at] = full.get(at, 0) + 1
        marks = [{"x": x, "text": "caches full" if n > 1 else "cache full", "kind": "full"} for x, n in full.items()]
        trained = run.model.trained_length if run.model else None
        if trained and trained < read:
            marks.append({"x": trained, "text": "trained length", "kind": "trained"})
        # What was switched again before anything was read leaves no mark.
        switches = {(e["position"], e["lane"]): e for e in list(run.run.events) if e["what"] == "switch"}
        for (position, lane), event in switches.items():
            text = ", ".join(filter(None, (parse(event["policy"]).label, event["how"])))
            marks.append({"x": position, "text": text, "kind": "switch", "lane": lane})
        return marks

    def _curves(self, run: ReadingJob, view: View) -> None:
        reference = self._seen.tracks[view.reference]
        for i, track in enumerate(self._seen.tracks):
            count = len(track.nll)
            if view.mode == "relative":
                count = min(count, len(reference.nll))
            ends = np.arange(FIRST, count + 1)
            sums = track.sums.view()
            if view.mode == "relative":
                y = metrics.rolling_mean(sums[: count + 1] - reference.sums.view()[: count + 1], ends, ROLL)
            elif view.mode == "rolling":
                y = metrics.rolling_mean(sums, ends, ROLL)
            else:
                y = sums[ends] / ends
            kept = metrics.decimate(y, POINTS)
            self._arrays[f"x{i}"] = (ends[kept] if len(kept) else ends).astype(np.float32)
            self._arrays[f"y{i}"] = np.exp(y[kept]).astype(np.float32)
            size = track.cache_bytes.view()[: len(track.nll)]
            places = np.unique(np.linspace(0, max(0, len(size) - 1), 120).astype(int)) if len(size) else np.arange(0)
            self._arrays[f"mx{i}"] = (places + 1).astype(np.float32)
            self._arrays[f"my{i}"] = (size[places] / 1e6).astype(np.float32)
        furthest = max(len(t.nll) for t in self._seen.tracks)
        if run.model and furthest:
            self._arrays["px"] = np.array([0, furthest], np.float32)
            self._arrays["py"] = np.array([0, furthest * run.model.bytes_per_token / 1e6], np.float32)

    def _grid(self, track: Track) -> None:
        chunks, tokens = [], 0
        for (start, stop), mass in zip(
            reversed(track.spans[:]), reversed(track.sink_mass[: len(track.spans)]), strict=False
        ):
            chunks.append((stop - start, mass))
            tokens += stop - start
            if tokens >= GRID:
                break
        if chunks:
            self._arrays["grid"] = np.average([m for _, m in chunks], axis=0, weights=[n for n, _ in chunks])

    def _text(self, run: ReadingJob, view: View) -> dict[str, Any]:
        track = self._seen.tracks[view.chosen]
        nll = track.nll.view()
        stop = len(nll) + 1
        start = max(0, stop - STRIP) if len(nll) else 0
        values = np.full(stop - start, np.nan, np.float32)
        if view.paint == "nll":
            values[max(0, 1 - start) :] = nll[max(0, start - 1) : stop - 1]
        shown: dict[str, Any] = {
            "tokens_start": start,
            "tokens": run.pieces[start:stop] if len(nll) else [],
            "map": None,
        }
        drawn = run.map(view.chosen, *view.head) if view.head and self._seen.lanes else None
        if drawn is not None:
            last = drawn.first + len(drawn.weights)
            policy = self._seen.lanes[view.chosen].policy
            fresh = getattr(policy, "stride", None) is not None
            shown["map"] = {
                "layer": drawn.layer,
                "head": drawn.head,
                "first": drawn.first,
                "note": ", ".join(
                    filter(None, ["the newest window, encoded afresh" if fresh else "", _learned(drawn)])
                ),
                "tokens": run.pieces[drawn.first : last],
                "sink_tokens": run.pieces[: drawn.sinks.shape[1]],
            }
            self._arrays["map"], self._arrays["map_sinks"] = coded(drawn.weights), coded(drawn.sinks)
            if view.paint == "attention":
                # The map may be older than the text on screen, or newer.
                begin, end = max(start, drawn.first), min(stop, last)
                if begin < end:
                    values[begin - start : end - start] = drawn.received()[begin - drawn.first : end - drawn.first]
        self._arrays["token_values"] = values
        return shown


def named(
    policies: Sequence[Policy], looks: Sequence[tuple[str, str]], since: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """What each lane is called and what it looks like; no two have one name (palette.py)."""
    called = zip(policies, labels(policies, since), briefs(policies, since), looks, strict=True)
    return [
        {"label": label, "brief": brief, "policy": str(policy), "color": color, "dash": dash}
        for policy, label, brief, (color, dash) in called
    ]


def _past(track: Track, begun: Sequence[str], lane: int) -> list[tuple[int, int, str]]:
    """What a lane was called before it was switched: the first token, the one behind the last, and a name."""
    changes, policies = track.policies[:], [parse(p) for p in begun]
    names = [parse(policy).label for _, policy in changes]
    if names and names[0] == policies[lane].label:
        names[0] = labels(policies)[lane]
    return [(at, then, name) for (at, _), (then, _), name in zip(changes, changes[1:], names, strict=False)]


def about(run: Job) -> list[str]:
    """The model of a run, and what was done to it, a few words each."""
    changed = []
    if run.spec.kv_heads is not None:
        changed.append(f"KV heads averaged to {run.spec.kv_heads}, without training")
    begins = [f"begins {run.begins}"] if run.begins else []
    return [run.model.name, *changed, *begins, run.spec.arithmetic, run.model.device] if run.model else []


def card(model: "LanguageModel") -> dict[str, Any]:
    """What the page says of a model: facts, and what the cache costs with more and with fewer KV heads."""
    return {
        "facts": model.card,
        "sharings": [
            {
                "what": f"{s.name}, {s.kv_heads} KV head{'s' if s.kv_heads > 1 else ''}",
                "own": s.own,
                "bytes": s.token,
                "costs": f"{s.token / 1e3:,.1f} kB a token, {s.token * s.length / 1e6:,.0f} MB for {s.length:,}",
            }
            for s in model.cache_costs
        ],
    }


def empty(sender: Sender, policies: list[Policy], view: View, pace: int, note: str) -> bytes:
    """A frame before anything was read: the lanes as they are set, and what there is to say."""
    sender.seq += 1
    lanes = []
    for face in named(policies, colours(policies)):
        face |= {"past": [], "read": 0, "kept": 0, "bytes": 0, "sinks_held": 0, "state": "ready"}
        lanes.append(face | dict.fromkeys(("relative", "excess", "error", "rolling", "rate")))
    head = {
        "seq": sender.seq,
        "published": 0,
        "run": "",
        "status": "ready",
        "note": note,
        "pace": pace,
        "mode": view.mode,
        "paint": view.paint,
        "reference": min(view.reference, len(lanes) - 1),
        "chosen": min(view.chosen, len(lanes) - 1),
        "head": view.head,
        "roll": ROLL,
        "progress": "",
        "share": 0.0,
        "total": 0,
        "trained_length": None,
        "lanes": lanes,
        "marks": [],
        "schema": SCHEMA,
        "card": {},
        "tokens": [],
        "tokens_start": 0,
        "map": None,
    }
    return assemble(head, {})


def assemble(head: dict[str, Any], arrays: dict[str, NDArray]) -> bytes:
    """A frame: the header, and these arrays behind it."""
    table, parts, offset = {}, [], 0
    for name, array in arrays.items():
        array = np.ascontiguousarray(array, np.uint16 if array.dtype == np.uint16 else np.float32)
        data = array.tobytes()
        data += b"\0" * (-len(data) % 4)
        table[name] = ["u2" if array.dtype == np.uint16 else "f4", offset, list(array.shape)]
        parts.append(data)
        offset += len(data)
    return _packed({**head, "arrays": table}, b"".join(parts))


def _packed(head: dict[str, Any], blob: bytes) -> bytes:
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<I", len(text)) + text + blob


def _learned(drawn: "HeadMap") -> str:
    """What went to a sink without a token, where there is one."""
    return "" if drawn.learned is None else f"{np.nanmean(drawn.learned):.0%} to the extra sink"


def coded(weights: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Weights as 1 … 65535 on a logarithmic scale from FLOOR to 1; 0 stands for a pair that was never met.

    A weight that rounding has made larger than 1 is 1: a level beyond the last would come out as another one.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        level = 1 + np.round((1 - np.log10(np.clip(weights, FLOOR, 1)) / np.log10(FLOOR)) * 65534)
    return np.where(np.isnan(weights), 0, level).astype(np.uint16)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


SCHEMA = [
    {
        "name": name,
        "title": policy.title,
        "help": policy.__doc__.split("\n")[0].replace("`", ""),
        "settings": [
            {
                "name": f.name,
                "default": f.default,
                "step": {int: 1, float: 0.5}.get(f.type),
                **{k: f.metadata[k] for k in ("help", "low", "high", "choices", "pattern", "intervention")},
            }
            for f in policy.settings() + policy.interventions()
        ],
    }
    for name, policy in POLICIES.items()
]
"""The policies and their settings, from which the page makes the form that switches a lane."""
