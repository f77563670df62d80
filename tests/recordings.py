"""Runs of made-up numbers, as long as wanted, and what a live page would show of them at any position."""

import json
import struct
from types import SimpleNamespace

import numpy as np

from analysis.engine.step import Step
from analysis.models.cache_cost import CacheCost
from analysis.policies import parse
from analysis.runs.codec import Frame
from analysis.runs.facts import ModelFacts
from analysis.runs.run import Run, Track
from analysis.runs.spec import Spec
from app.frames.reading import ReadingSender
from app.jobs.reading_lane import ReadingSnapshot

FOUR = ("dense", "window:window=128", "recompute:window=128,stride=16", "streaming:sinks=4,window=124")
WORDS = [" the", " king", ",", "\n", " <b>", " é", " of", "", "&"]


def facts(layers: int = 3, heads: int = 4) -> ModelFacts:
    return ModelFacts(
        "tiny", 500, 1536, layers, heads, 2, "cpu", {"layers": str(layers)}, (CacheCost("GQA", 2, 1536, 500, True),)
    )


def made_up(
    count: int,
    policies: tuple[str, ...] = FOUR,
    chunk: int = 128,
    layers: int = 3,
    heads: int = 4,
    ends: dict[int, int] | None = None,
    switches: dict[int, tuple[int, str]] | None = None,
    seed: int = 0,
    fidelity: bool = False,
) -> Run:
    """A run of so many tokens; `ends`: lanes that stop earlier; `switches`: of a lane, where and to what; `fidelity`:
    lanes are measured against the first one, but for some chunks."""
    spec = Spec("tiny", "a play", policies, chunk=chunk, fidelity=fidelity)
    run, random = Run(spec, 1), np.random.default_rng(seed)
    run.model, run.status = facts(layers, heads), "finished"
    run.take_pieces(-1, 0, [WORDS[i] for i in random.integers(0, len(WORDS), count)])
    for lane, written in enumerate(policies):
        policy, at = parse(written), 1
        change = (switches or {}).get(lane, (None, ""))
        stop = (ends or {}).get(lane, count)
        while at < stop:
            if at == change[0]:
                policy = parse(change[1])
                run.event("switch", lane=lane, position=at, policy=change[1], how="without sinks")
            n = min(chunk, stop - at, *([change[0] - at] if change[0] and at < change[0] else []))
            held = np.minimum(np.arange(at, at + n), policy.capacity or count).astype(np.int32)
            numbers = random.integers(0, 97, n).astype(np.int32), random.gamma(2, 1.5, n).astype(np.float32)
            mass = random.random((layers, heads, n), np.float32)
            more = measured(random, n, layers, heads) if fidelity else {}
            step = Step(lane, policy, at, *numbers, held, held.astype(np.int64) * 1536, 0.1, mass, **more)
            run.tracks[lane].append(step, 0.2 * at / chunk + 0.01 * lane)
            at += n
    return run


def measured(random: np.random.Generator, count: int, layers: int, heads: int) -> dict[str, np.ndarray]:
    """How far a chunk of a lane is from the first lane; one in five was not measured."""
    known = 1.0 if random.random() < 0.8 else np.nan
    kl, error = random.gamma(1, 0.3, count), random.gamma(1, 0.5, (layers, heads))
    agree = random.integers(0, 2, count)
    return {"kl": known * kl, "agree": known * agree, "output_error": (known * error).astype(np.float32)}


def truncated(track: Track, count: int) -> Track:
    """What a track was when so many tokens were predicted."""
    twin = Track()
    for name in ("nll", "cache_tokens", "cache_bytes", "seconds", "token_ids", "kl", "agree"):
        getattr(twin, name).append(getattr(track, name).view()[:count])
    twin.compute.append(twin.seconds.view())
    twin.sums.append(np.cumsum(twin.nll.view(), dtype=np.float64))
    whole = [k for k, (_, stop) in enumerate(track.spans) if stop <= count + 1]
    twin.spans, twin.sink_mass = [track.spans[k] for k in whole], [track.sink_mass[k] for k in whole]
    twin.output_error = [track.output_error[k] for k in whole] if track.output_error else []
    twin.policies = [p for p in track.policies if p[0] <= count]
    return twin


def decoded(
    frame: Frame | bytes, before: tuple[dict, dict[str, np.ndarray]] | None = None
) -> tuple[dict, dict[str, np.ndarray]]:
    """The header of a frame, and its arrays; `before`: of the frame that it follows, where it says what has changed."""
    frame = frame.packed() if isinstance(frame, Frame) else frame
    length = struct.unpack("<I", frame[:4])[0]
    assert length % 4 == 0
    head = json.loads(frame[4 : 4 + length])
    arrays = {}
    if "same" in head:
        assert before is not None, "this frame follows another"
        head |= {name: before[0][name] for name in head.pop("same")}
    for name, place in head["arrays"].items():
        if place is None:
            arrays[name] = before[1][name]
            continue
        kind, offset, shape = place
        dtype = {"f4": np.float32, "f8": np.float64, "u2": np.uint16, "u4": np.uint32}[kind]
        data = np.frombuffer(frame, dtype, int(np.prod(shape)), 4 + length + offset)
        arrays[name] = data.reshape(shape)
    return head, arrays


def live_frame(run: Run, position: int, view, maps=()) -> bytes:
    """What the page of a live run shows when every lane has read so many tokens, or all that it has."""
    counts = [min(position - 1, len(t.nll)) for t in run.tracks]
    tracks = tuple(truncated(t, n) for t, n in zip(run.tracks, counts, strict=True))
    begun = [parse(p) for p in run.spec.policies]
    lanes = tuple(
        SimpleNamespace(
            policy=parse(t.policies[-1][1]) if t.policies else p,
            position=n + 1,
            done=n + 1 == len(run.pieces[0]),
            sinks=0,
            cached_tokens=int(t.cache_tokens.view()[n - 1]) if n else 0,
            cached_bytes=int(t.cache_bytes.view()[n - 1]) if n else 0,
        )
        for t, p, n in zip(tracks, begun, counts, strict=True)
    )
    seen = Run(run.spec, run.first_token)
    seen.model, seen.tracks = run.model, list(tracks)
    seen.events = [e for e in run.events if e["position"] is None or e["position"] <= max(counts) + 1]

    def newest(lane: int, layer: int, head: int):
        found = [m for m in maps if m[:3] == (lane, layer, head) and m[3] <= counts[lane] + 1]
        return max(found, key=lambda m: m[3])[4] if found else None

    job = SimpleNamespace(
        id="x", status="running", said="", pace=0, spec=run.spec, facts=run.model, begins="", published=0.0, run=seen,
        snapshot=ReadingSnapshot(tracks, lanes, len(run.pieces[0]), 0.0), pieces=run.pieces[0], map=newest,
        version=position, once=lambda key, make: make(),
    )  # fmt: skip
    return ReadingSender().frame(job, view).packed()
