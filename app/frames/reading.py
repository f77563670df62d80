"""What the read page is sent several times a second: the state of a run.  Curves are thinned so that spikes survive.

Pages that look at the same thing are sent the same bytes.  No Streamlit in here.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis import metrics
from analysis.metrics import FIDELITY, FIRST, ROLL
from analysis.palette import colours
from analysis.policies import Policy, parse
from analysis.runs import screen
from analysis.runs.codec import Frame, levels_of
from analysis.runs.run import Track
from analysis.runs.screen import GRID, MEMORY_POINTS, POINTS, STRIP

from ..jobs.reading import ReadingJob
from ..jobs.reading_lane import ReadingSnapshot
from ..view import View
from .lanes import SCHEMA, faces

if TYPE_CHECKING:
    from analysis.maps.recent import HeadMap

PACES = {0: "as fast as it goes", 100: "100 tokens/s", 20: "20 tokens/s", 5: "5 tokens/s"}
"""Tokens a second that a person can choose, and the words for it."""
CONSTANTS = screen.CONSTANTS | {"paces": list(PACES.items())}
"""What the script shares with Python."""


@dataclass
class ReadingSender:
    """Makes a frame, or takes it from a tab that looks at the same."""

    _arrays: dict[str, NDArray] = field(default_factory=dict)
    _seen: ReadingSnapshot = field(default_factory=lambda: ReadingSnapshot((), (), 0, 0.0))
    """What a frame is made of: the lanes themselves read on meanwhile."""

    def frame(self, run: ReadingJob, view: View, steers: bool = True) -> Frame:
        """The newest state of a run as a person chose to see it; `steers`: whether this page may tell it what to do."""
        if view.head and run.facts and not run.facts.has(*view.head):
            # It was chosen in another model.
            view.head = None
        # Asked for by every page: a map that nobody asks for is not drawn any more.
        drawn = run.map(view.chosen, *view.head) if view.head and run.snapshot.lanes else None
        of_map = (drawn.first, len(drawn.weights)) if drawn is not None else None
        state = run.status, run.said, run.pace, len(run.run.events)
        key = (steers, *astuple(view), of_map, state)
        return run.once(key, lambda: self._frame(run, view, steers, drawn))

    def _frame(self, run: ReadingJob, view: View, steers: bool, drawn: "HeadMap | None") -> Frame:
        self._arrays, self._seen = {}, run.snapshot
        policies = [
            parse(t.policies[-1][1]) if t.policies else parse(p)
            for t, p in zip(self._seen.tracks, run.spec.policies, strict=True)
        ]
        begun = [parse(p) for p in run.spec.policies]
        since = [t.policies[-1][0] if t.policies else 0 for t in self._seen.tracks]
        lanes = faces(policies, colours(begun), since)
        header = self._header(view, run.status, run.said, run.pace) | {
            "seq": run.version,
            "published": run.published,
            "run": run.id,
            "steers": steers,
            **self._progress(run),
            "trained_length": run.facts.trained_length if run.facts else None,
            "measured": run.spec.fidelity,
            "lanes": [face | self._lane(run, view, i) for i, face in enumerate(lanes)],
            "marks": screen.marks(run.run, max(len(t.nll) for t in self._seen.tracks)),
            "card": screen.card(run.facts) if self._seen.lanes else {},
        }
        self._curves(run, view)
        header.update(self._text(run, view, drawn))
        self._grid(self._seen.tracks[view.chosen], view)
        return Frame(header, self._arrays)

    def empty(self, policies: list[Policy], view: View, pace: int, note: str, fidelity: bool = False) -> Frame:
        """A frame before anything was read: the lanes as they are set, whether they are to be measured against the
        first one, and a note."""
        unread: dict[str, Any] = {"past": [], "state": "ready"}
        unread |= dict.fromkeys(("read", "kept", "slots", "bytes", "sinks_held"), 0)
        unread |= dict.fromkeys(("relative", "excess", "error", "rolling", "rate"))
        lanes = [face | unread for face in faces(policies, colours(policies))]
        header = self._header(view, "ready", note, pace) | {
            "seq": 0,
            "published": 0,
            "run": "",
            "reference": min(view.reference, len(lanes) - 1),
            "chosen": min(view.chosen, len(lanes) - 1),
            "progress": "",
            "share": 0.0,
            "total": 0,
            "trained_length": None,
            "measured": fidelity,
            "lanes": lanes,
            "marks": [],
            "card": {},
            "tokens": [],
            "tokens_start": 0,
            "marked": [],
            "map": None,
        }
        return Frame(header, {})

    def _header(self, view: View, status: str, note: str, pace: int) -> dict[str, Any]:
        return {
            "status": status,
            "note": note,
            "pace": pace,
            "mode": view.mode,
            "paint": view.paint,
            "grid": view.grid,
            "reference": view.reference,
            "chosen": view.chosen,
            "head": view.head,
            "mark": view.mark,
            "roll": ROLL,
            "schema": SCHEMA,
            "constants": CONSTANTS,
        }

    def _progress(self, run: ReadingJob) -> dict[str, Any]:
        if not self._seen.lanes:
            return {"progress": "", "share": 0.0, "total": 0}
        from analysis.models.memory import memory_of

        total = self._seen.total
        read = max(lane.position for lane in self._seen.lanes)
        minutes, seconds = divmod(int(self._seen.seconds), 60)
        clock = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        # Lanes are opened with the model.
        assert run.facts is not None
        where = " · ".join([*screen.about(run.spec, run.facts, run.begins), memory_of(run.facts.device)])
        return {"progress": f"{read:,} of {total:,} tokens · {where} · {clock}", "share": read / total, "total": total}

    def _lane(self, run: ReadingJob, view: View, i: int) -> dict[str, Any]:
        track, reference = self._seen.tracks[i], self._seen.tracks[view.reference]
        nll = track.nll.view()
        lane = {
            "past": _past(track, [parse(p) for p in run.spec.policies], i),
            "read": len(nll) + 1 if len(nll) else 0,
            "relative": None,
            "excess": None,
            "error": None,
            "rolling": None,
            "kept": 0,
            "slots": 0,
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
            lane.update(relative=_finite(float(metrics.perplexities(now))), excess=_finite(mean), error=_finite(error))
        rolling = metrics.rolling_mean(sums, np.array([len(nll)]), ROLL)[0]
        lane["rolling"] = _finite(float(metrics.perplexities(rolling)))
        if self._seen.lanes:
            held = self._seen.lanes[i]
            lane["kept"], lane["bytes"] = held.cached_tokens, held.cached_bytes
            lane["slots"] = held.policy.allocated(held.cached_tokens) if held.policy.block > 1 else 0
        # Over the last few chunks, since a policy may have been switched.
        lane["rate"] = _finite(track.rate(6))
        return lane

    def _curves(self, run: ReadingJob, view: View) -> None:
        reference = self._seen.tracks[view.reference]
        for i, track in enumerate(self._seen.tracks):
            if view.mode in FIDELITY:
                known = (track.kl if view.mode == "KL" else track.agree).view()
                ends, y = metrics.curve_of_known(known if view.mode == "KL" else 100 * known)
            else:
                ends, y = metrics.curve(track.sums.view(), view.mode, reference=reference.sums.view())
            kept = metrics.decimate(y, POINTS)
            self._arrays[f"x{i}"] = (ends[kept] if len(kept) else ends).astype(np.float32)
            # float32 ends at 88 nats.
            y = y[kept] if view.mode in FIDELITY else metrics.perplexities(np.minimum(y[kept], 88))
            self._arrays[f"y{i}"] = y.astype(np.float32)
            size = track.cache_bytes.view()[: len(track.nll)]
            places = (
                np.unique(np.linspace(0, max(0, len(size) - 1), MEMORY_POINTS).astype(int))
                if len(size)
                else np.arange(0)
            )
            self._arrays[f"mx{i}"] = (places + 1).astype(np.float32)
            self._arrays[f"my{i}"] = (size[places] / 1e6).astype(np.float32)
        furthest = max(len(t.nll) for t in self._seen.tracks)
        if run.facts and furthest:
            self._arrays["px"] = np.array([0, furthest], np.float32)
            self._arrays["py"] = np.array([0, furthest * run.facts.bytes_per_token / 1e6], np.float32)

    def _grid(self, track: Track, view: View) -> None:
        chunks, tokens, of = [], 0, track.sink_mass if view.grid == "sink mass" else track.output_error
        for (start, stop), heads in zip(reversed(track.spans[:]), reversed(of[: len(track.spans)]), strict=False):
            chunks.append((stop - start, heads))
            tokens += stop - start
            if tokens >= GRID:
                break
        if chunks:
            self._arrays["grid"] = metrics.mean_of_chunks([m for _, m in chunks], [n for n, _ in chunks])

    def _text(self, run: ReadingJob, view: View, drawn: "HeadMap | None") -> dict[str, Any]:
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
            "marked": run.pieces[view.mark[0] : min(view.mark[1], stop)] if view.mark and len(nll) else [],
            "map": None,
        }
        if drawn is not None:
            last = drawn.first + len(drawn.weights)
            # A lane that was switched while it stands still shows what it read before.
            read = [p for at, p in track.policies if at < last] or [run.spec.policies[view.chosen]]
            recomputed = getattr(parse(read[-1]), "stride", None) is not None
            shown["map"] = {
                "layer": drawn.layer,
                "head": drawn.head,
                "first": drawn.first,
                "note": ", ".join(
                    filter(None, ["the newest window, recomputed" if recomputed else "", _learned(drawn)])
                ),
                "tokens": run.pieces[drawn.first : last],
                "sink_tokens": run.pieces[: drawn.sinks.shape[1]],
            }
            self._arrays["map"], self._arrays["map_sinks"] = levels_of(drawn.weights), levels_of(drawn.sinks)
            if drawn.learned is not None:
                self._arrays["map_extra"] = levels_of(drawn.learned[:, None])
            if drawn.ranges is not None and any(lane.policy.cache != "own" for lane in self._seen.lanes):
                assert run.facts is not None
                times = metrics.widened(drawn.ranges)
                # Fewer than two tokens behind the first ones have no range to compare theirs with.
                if np.isfinite(times).all() or np.isnan(drawn.ranges[0]).all():
                    of_keys: dict[str, Any] = {"beyond": int((times > 1).sum()), "widened": _finite(times.max())}
                    shown["map"] |= of_keys | {"kv_head": drawn.head * run.facts.kv_heads // run.facts.heads}
                    self._arrays["key_ranges"] = drawn.ranges.astype(np.float32)
            if view.paint == "attention":
                # The map may be older than the text on screen, or newer.
                begin, end = max(start, drawn.first), min(stop, last)
                if begin < end:
                    values[begin - start : end - start] = drawn.received()[begin - drawn.first : end - drawn.first]
        self._arrays["token_values"] = values
        return shown


def _past(track: Track, begun: Sequence[Policy], lane: int) -> list[tuple[int, int, str]]:
    """What a lane was called before it was switched: the first token, the one behind the last, and a name."""
    return [(at, then, name) for (at, name), (then, _) in pairwise(screen.changes(track, begun, lane))]


def _learned(drawn: "HeadMap") -> str:
    """What went to a sink without a token, where there is one."""
    return "" if drawn.learned is None else f"{100 * np.nanmean(drawn.learned):.0f} % to the extra sink"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
