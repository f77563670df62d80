"""A run as bytes that a browser replays: all that the board shows of it at any position, sent once.

A script makes the frames from it (app/components/shared/recording.js), the same as those of a live page, so that no
server, model or tokenizer is needed while somebody plays or scrubs.  The bytes are those of codec.py.
"""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..palette import colours
from ..policies import Policy, parse
from ..texts import token_texts, with_bos
from . import screen
from .about import about_of
from .codec import assemble
from .maps import RecordedMap, read_maps
from .reader import load
from .run import Run, Track

SPEEDS = {
    0: "as recorded",
    5: "5 tokens/s",
    20: "20 tokens/s",
    100: "100 tokens/s",
    500: "500 tokens/s",
    2000: "2,000 tokens/s",
}
"""Tokens a second at which a recording is played, and the words for it; 0: as fast as it was read."""
WHOLE = 65_534
"""The level of a sink mass of 1; the next one stands for a mass that is not known."""


def recording(path: Path) -> bytes:
    """The recording of the run in a folder, compressed with gzip.

    Raises ValueError where there is none, it has read nothing, or a file of it is damaged.
    """
    path = Path(path)
    return gzip.compress(recorded_in(path, load(path), about_of(path)), 6, mtime=0)


def recorded_in(folder: Path | None, run: Run, about: Mapping[str, Any]) -> bytes:
    """The recording of a run, a reading or a conversation, as a script reads it.

    `folder`: where the run lies, with the maps, shares and rows that are kept beside it; None: in memory alone.
    Raises ValueError where it has read nothing, or a file of it is damaged.
    """
    lanes, name = len(run.tracks), folder.name if folder else "run"
    if run.kind == "chat":
        from .recorded_chat import recorded_chat
        from .rows import read_rows
        from .shares import read_shares

        beside = (read_shares(folder, lanes), read_rows(folder, lanes)) if folder else ()
        return recorded_chat(run, name, about, *beside)
    return recorded(run, name, about, read_maps(folder, lanes) if folder else ())


def recorded(run: Run, name: str, about: Mapping[str, Any], maps: Sequence[RecordedMap] = ()) -> bytes:
    """The recording of a run; `about`: what its folder says of itself.  Raises ValueError where it has read nothing."""
    if not any(len(track.nll) for track in run.tracks):
        raise ValueError(
            "the run has read nothing yet, so there is nothing to replay: "
            "where it was ended so early, resume it, and it begins with the same settings"
        )
    read = max(len(track.nll) for track in run.tracks) + 1
    begun = [parse(p) for p in run.spec.policies]
    texts, alike = _pieces(run)
    vocabulary, arrays = indexed(texts)
    for lane, track in enumerate(run.tracks):
        arrays |= {f"{of}{lane}": array for of, array in measured(track).items()}
    arrays["clock"] = _clock(run, read)
    for i, drawn in enumerate(maps):
        arrays |= {f"map{i}": drawn.weights, f"map_sinks{i}": drawn.sinks, f"received{i}": drawn.received}
    facts = run.model
    header = {
        "kind": run.kind,
        "run": name,
        "text": run.spec.text,
        "status": run.status or about.get("status", ""),
        "started": run.started,
        "about": about_model(run),
        "constants": screen.CONSTANTS | {"speeds": list(SPEEDS.items()), "whole": WHOLE},
        "total": read,
        "measured": run.spec.fidelity,
        "lanes": [
            {"color": color, "dash": dash, "changes": screen.changes(track, begun, lane)}
            for lane, ((color, dash), track) in enumerate(zip(colours(begun), run.tracks, strict=True))
        ],
        "faces": _faces(run),
        "marks": screen.marks(run, read),
        "bytes_per_token": facts.bytes_per_token if facts else None,
        "trained_length": facts.trained_length if facts else None,
        "card": screen.card(facts),
        "vocabulary": vocabulary,
        "alike": alike,
        "maps": [
            {"lane": m.lane, "layer": m.layer, "head": m.head, "read": m.read, "first": m.first, "note": m.note(run)}
            for m in maps
        ],
    }
    return assemble(header, arrays)


def about_model(run: Run) -> str:
    """The model of a run, what was done to it, and how its text begins, in a line; less where less is known."""
    if run.model is None:
        return f"{run.spec.model} · {run.spec.arithmetic}"
    return " · ".join(screen.about(run.spec, run.model, with_bos(run.begins) if run.begins is not None else ""))


def _faces(run: Run) -> list[tuple[int, list[dict[str, Any]]]]:
    """The names of all lanes, from which token on they have them."""
    begun = [parse(p) for p in run.spec.policies]
    return names_at(begun, [[(at, at, parse(policy)) for at, policy in track.policies] for track in run.tracks])


def names_at(
    begun: Sequence[Policy], changes: Sequence[Sequence[tuple[int, int, Policy]]]
) -> list[tuple[int, list[dict[str, Any]]]]:
    """The names of all lanes, and from which position on they have them.

    `changes` of each lane: at which position, from which token of the lane on, and to what policy.
    """
    styles, found = colours(begun), list[tuple[int, list[dict[str, Any]]]]()
    for at in sorted({0, *(change[0] for of in changes for change in of)}):
        now = [[(token, policy) for place, token, policy in of if place <= at][-1:] for of in changes]
        policies = [n[0][1] if n else p for n, p in zip(now, begun, strict=True)]
        names = screen.named(policies, styles, [n[0][0] if n else 0 for n in now])
        if not found or found[-1][1] != names:
            found.append((at, names))
    return found


def piece_lists(run: Run) -> list[list[str]]:
    """The texts of the tokens of each lane; numbers where they are not kept."""
    found = []
    for track, known in zip(run.tracks, run.pieces, strict=True):
        ids = np.concatenate(([run.first_token or 0], track.token_ids.view())).astype(np.int32)
        # In a folder of an older version tokens are shown as numbers, as those of a model without a tokenizer.
        found.append(known if len(known) >= len(ids) else [*known, *token_texts(None, ids[len(known) :])])
    return found


def _pieces(run: Run) -> tuple[list[list[str]], bool]:
    """The texts of the tokens of each lane, or once where all lanes have read the same ones, and whether they have."""
    found = piece_lists(run)
    longest = max(found, key=len)
    alike = run.spec.sampling is None and all(pieces == longest[: len(pieces)] for pieces in found)
    return ([longest] if alike else found), alike


def indexed(texts: list[list[str]]) -> tuple[list[str], dict[str, NDArray]]:
    """The different texts of tokens, and for each list of them which these are, as `pieces0`, `pieces1` …"""
    index: dict[str, int] = {}
    places = [np.array([index.setdefault(p, len(index)) for p in pieces], np.uint32) for pieces in texts]
    return list(index), {f"pieces{i}": array for i, array in enumerate(places)}


def measured(track: Track) -> dict[str, NDArray]:
    """The numbers of a lane: NLL, what was cached, and the sink mass of each chunk; how far it is from the first lane,
    where this was measured; and the slots that the cache takes where these are handed out in blocks."""
    count = len(track.nll)
    whole = [k for k, (_, stop) in enumerate(track.spans) if stop <= count + 1]
    spans = np.array([track.spans[k] for k in whole], np.uint32).reshape(-1, 2)
    mass = np.stack([track.sink_mass[k] for k in whole]) if whole else np.zeros((0, 0, 0), np.float32)
    levels = np.where(np.isnan(mass), WHOLE + 1, np.round(np.clip(mass, 0, 1) * WHOLE)).astype(np.uint16)
    found = {"nll": track.nll.view()[:count], "spans": spans, "mass": levels}
    if len(track.kl):
        found |= {name: getattr(track, name).view()[:count] for name in ("kl", "agree")}
        found["error"] = np.stack([track.output_error[k] for k in whole]) if whole else np.zeros((0, 0, 0), np.float32)
    whole_numbers = {"tokens": track.cache_tokens.view()[:count], "bytes": track.cache_bytes.view()[:count]}
    if (slots := track.allocated()).any():
        whole_numbers["slots"] = slots
    for name, numbers in whole_numbers.items():
        found |= {f"{name}_{of}": array for of, array in straight(numbers).items()}
    return found


def straight(values: NDArray[np.integer]) -> dict[str, NDArray]:
    """Whole numbers as straight pieces, exactly: where each begins, its first value, and the second one."""
    if not len(values):
        return {of: np.zeros(0, kind) for of, kind in (("at", np.uint32), ("from", np.uint64), ("next", np.uint64))}
    steps = np.diff(values, append=values[-1:])
    begins = np.flatnonzero(np.r_[True, steps[1:] != steps[:-1]])
    return {
        "at": begins.astype(np.uint32),
        "from": values[begins].astype(np.uint64),
        "next": values[np.minimum(begins + 1, len(values) - 1)].astype(np.uint64),
    }


def _clock(run: Run, read: int) -> NDArray[np.float32]:
    """Seconds of reading, pauses left out, until all lanes that came so far knew each token, [tokens]."""
    known = np.zeros(read, np.float64)
    for track in run.tracks:
        seconds = track.seconds.view()[: len(track.nll)]
        known[1 : len(seconds) + 1] = np.maximum(known[1 : len(seconds) + 1], seconds)
    # A run that was resumed may have begun to count anew.
    steps = np.maximum(np.diff(known), 0)
    begun = None
    for event in run.events:
        if event["what"] == "paused":
            begun = event["seconds"]
        elif begun is not None and event["what"] == "running":
            inside = np.flatnonzero((known[:-1] <= begun) & (known[1:] >= event["seconds"]))
            steps[inside] -= event["seconds"] - begun
            begun = None
    return np.concatenate(([0.0], np.cumsum(np.maximum(steps, 0)))).astype(np.float32)
