"""Reads run folders, finished or cut off at any moment, and says in one sentence what is wrong with which file.

What stands in a folder may have gone through many hands: every file is checked against what it must hold, and all of
them against each other.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .. import files
from ..files import Kind
from ..policies import parse
from .about import About, about_of
from .run import ROLES, NotFinite, Run, Track
from .status import TRIES
from .tables import FIDELITY, OUTPUT_ERROR, PIECES, ROLE, SINKS, TOKENS


@dataclass
class _Event:
    what: str
    lane: int | None = None
    position: int | None = None
    seconds: float = 0.0
    policy: str | None = None
    how: str = ""
    text: str = ""
    why: str = ""
    stop: int | None = None


def load(path: Path) -> Run:
    """The run in a folder, finished or cut off at any moment.

    Raises ValueError where there is none, or a file of it is damaged or of another run, and NotFinite, which is one,
    where a token has no finite NLL.
    """
    path = Path(path)
    for _ in range(TRIES):
        before = _stage(path)
        try:
            run = _load(path)
        except ValueError:
            if _stage(path) == before:
                raise
            continue
        if _stage(path) == before:
            return run
    return _load(path)


def _stage(path: Path) -> list[int]:
    """Another one as soon as a run begins, goes on or ends: its tables are then in other files."""
    stage = []
    for name in ("run.json", "tokens.arrow", "tokens.parquet"):
        with suppress(OSError):
            stage.append(os.stat(path / name).st_ino)
            continue
        stage.append(0)
    return stage


def _load(path: Path) -> Run:
    raw = about_of(path)
    about = msgspec.convert(raw, About)
    run = Run(about.spec)
    run.started, run.begins, run.as_text = about.started or run.started, about.begins, about.as_text
    run.status, run.model = about.status, about.model
    grown, whole = (path / "tokens.arrow").exists(), (path / "tokens.parquet").exists()
    if not grown and not whole and about.status in ("finished", "saved"):
        raise ValueError(f"{path} lacks tokens.parquet, though its run has ended: copy all files of the run")
    for tokens, sinks_of in (("tokens.parquet", "sinks.npz"), ("tokens.arrow", "sinks.arrow")):
        # Of a run that was cut off in the middle nothing else says that it has read more than nothing.
        if not grown and not whole and (path / sinks_of).exists():
            raise ValueError(f"{path} lacks {tokens}, though it has sink masses: copy all files of the run")
    # Where both kinds are there, the process was killed while it wrote the second.
    if whole and not grown:
        table, sinks = _finished(path, len(run.tracks))
        if about.status == "saved":
            # Saved again and again: the one may be newer than the other.
            table, sinks = _ending_alike(table, sinks)
    else:
        table, sinks = _growing(path, about.heads, len(run.tracks))
    for lane, track in enumerate(run.tracks):
        _take_in(run, track, table.filter(pc.field("lane") == lane), sinks.get(lane, _Chunks()), path)
    if os.path.exists(path / "events.jsonl"):
        run.events = _events(path / "events.jsonl", len(run.tracks))
    elif about.status in ("finished", "saved"):
        # Whoever writes a run makes it, also where nothing happens: switches, stops and warnings would be left out.
        raise ValueError(f"{path} lacks events.jsonl, though its run has ended: copy all files of the run")
    if run.kind == "reading":
        _check_policies(run, path)
    _take_in_pieces(run, path / "pieces.arrow")
    if run.kind == "chat":
        for pieces, track in zip(run.pieces, run.tracks, strict=True):
            if count := len(track.nll):
                # Of an answer that was given again, and is shorter now.
                del pieces[count + 1 :]
    return run


@dataclass
class _Chunks:
    """What is known of each chunk of a lane."""

    spans: list[tuple[int, int]] = field(default_factory=list)
    sink_mass: list[NDArray[np.float32]] = field(default_factory=list)
    """[layers, heads]."""
    output_error: list[NDArray[np.float32]] = field(default_factory=list)
    """[layers, heads]; none where it was not measured."""


Sinks = dict[int, _Chunks]
"""Of each lane."""


def _take_in(run: Run, track: Track, rows: pa.Table, chunks: _Chunks, path: Path) -> None:
    """Put what a folder has of a lane into its track, where it fits together."""
    spans = chunks.spans
    if not len(rows):
        return
    column = {name: rows[name].to_numpy() for name in rows.column_names}
    count = len(rows)
    if not np.array_equal(column["position"], np.arange(count)) or rows["nll"][1:].null_count:
        raise ValueError(f"{path} lacks tokens of a lane, or has some twice: it is damaged")
    nll = column["nll"][1:]
    if not (finite := np.isfinite(nll)).all():
        raise NotFinite(
            f"token {int((~finite).argmax()) + 1:,} of lane {run.tracks.index(track)} of {path} has an NLL that is no "
            f"finite number: the model gave none in {run.spec.arithmetic}, so read anew in another dtype, or with "
            "another model"
        )
    # Rounding may leave a token that is certain a little below 0, and sums of much larger ones would lose the rest.
    if not ((nll > -0.01) & (nll < 1e6)).all():
        raise ValueError(f"{path} has tokens whose NLL no model gives: it is damaged")
    starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
    if not spans or [*starts, count] != [1, *stops] or any(start >= stop for start, stop in spans):
        raise ValueError(f"the sink masses of {path} are not those of its tokens: a file is damaged, or of another run")
    for policy in set(column["policy"].tolist()):
        try:
            parse(policy)
        except (ValueError, AttributeError) as e:
            raise ValueError(f"{path} names a policy that there is not: {e}") from e
    run.first_token = int(column["token_id"][0])
    for name in ("token_ids", "nll", "cache_tokens", "cache_bytes", "seconds"):
        getattr(track, name).append(column["token_id" if name == "token_ids" else name][1:])
    if "role" in column:
        if not set(column["role"].tolist()) <= set(ROLES):
            raise ValueError(f"{path} names a role that there is not: roles are {', '.join(ROLES)}")
        roles = np.array([ROLES.index(r) for r in column["role"]], np.int8)
        run.first_role = int(roles[0])
        track.roles.append(roles[1:])
    measured = [field.name for field in FIDELITY if field.name in column]
    if {bool(measured), bool(chunks.output_error)} != {run.spec.fidelity}:
        raise ValueError(f"{path} has not the columns that its run.json names: the two are of different runs")
    for name in measured:
        getattr(track, name).append(rows[name].cast(pa.float32()).to_numpy()[1:])
    track.sums.append(np.cumsum(column["nll"][1:], dtype=np.float64))
    changes = np.flatnonzero(np.r_[True, column["policy"][2:] != column["policy"][1:-1]])
    track.policies = [(int(column["position"][1 + i]), str(column["policy"][1 + i])) for i in changes]
    track.spans, track.sink_mass, track.output_error = spans, chunks.sink_mass, chunks.output_error


def _check_policies(run: Run, path: Path) -> None:
    """Raises ValueError where a lane of a reading begins with a policy that nobody asked for."""
    for lane, track in enumerate(run.tracks):
        begun = [parse(policy) for at, policy in track.policies if at <= 1]
        # Whoever switched a lane before it read had it begin with another policy.
        asked = [run.spec.policies[lane], *(e["policy"] for e in run.switches if e["lane"] == lane)]
        if begun and begun[0] not in map(parse, asked):
            raise ValueError(
                f"{path} has tokens of another policy than its run.json names: the two are of different runs, or the "
                "events.jsonl of a lane that was switched before it read is missing"
            )


def _take_in_pieces(run: Run, path: Path) -> None:
    """Put the texts of tokens that a folder has into its run."""
    table = read_stream(path, PIECES)
    if table.schema.remove_metadata() != PIECES:
        raise ValueError(f"{path} is not the table of texts of a run: it has other columns")
    for row in table.to_pylist():
        if None in row.values() or None in row["pieces"] or not -1 <= row["lane"] < len(run.tracks) or row["start"] < 0:
            raise ValueError(f"{path} does not fit run.json: it is damaged, or of another run")
        try:
            run.take_pieces(**row)
        except ValueError as e:
            raise ValueError(f"{path} is damaged: {e}") from e


def _events(path: Path, lanes: int) -> list[dict[str, Any]]:
    found = []
    *whole, last = files.lines(files.contents(path))
    # The last line of a process that was killed may be cut short, at whatever sign.
    with suppress(ValueError):
        files.decoded(last, dict[str, Any], "")
        whole.append(last)
    for number, line in enumerate(whole, 1):
        if not line.strip():
            continue
        wrong = f"line {number} of {path} is no event of this run"
        event = files.decoded(line, _Event, wrong)
        if event.lane is not None and not 0 <= event.lane < lanes:
            raise ValueError(f"{wrong}: it has no lane {event.lane}")
        if event.policy is not None:
            try:
                parse(event.policy)
            except ValueError as e:
                raise ValueError(f"{wrong}: {e}") from e
        known = {"lane": event.lane, "position": event.position, "seconds": event.seconds}
        found.append(known | files.decoded(line, dict[str, Any], wrong))
    return found


def _finished(path: Path, lanes: int) -> tuple[pa.Table, Sinks]:
    """The tables of a folder that is whole."""
    file = path / "tokens.parquet"
    with files.opened(file) as f:
        try:
            table = pq.read_table(f, page_checksum_verification=True)
            table.validate(full=True)
        except Exception as e:
            # Whatever Arrow says of foreign bytes is of its insides.
            raise ValueError(f"{file} is not a table that can be read: it is cut short, or damaged") from e
    table = _in_order(_checked(table, file, lanes))
    spans, masses = Kind("iu", (None, 2)), Kind("f", (None, None, None))
    of_lane = {"span": spans, "mass": masses, "output_error": masses}
    kinds = {f"{name}_{lane}": kind for lane in range(lanes) for name, kind in of_lane.items()}
    held = files.arrays(path / "sinks.npz", kinds, some=True)
    sinks: Sinks = {}
    for lane in range(lanes):
        span, mass, error = (held.get(f"{name}_{lane}") for name in of_lane)
        if span is None and mass is None:
            continue
        fits = error is None or mass is None or error.shape == mass.shape
        if span is None or mass is None or len(span) != len(mass) or not fits:
            raise ValueError(f"{path / 'sinks.npz'} has not as many sink masses as chunks: it is damaged")
        errors = [] if error is None else list(error.astype(np.float32))
        sinks[lane] = _Chunks([(int(a), int(b)) for a, b in span], list(mass.astype(np.float32)), errors)
    if len({chunks.sink_mass[0].shape for chunks in sinks.values() if chunks.sink_mass}) > 1:
        raise ValueError(f"{path / 'sinks.npz'} has lanes with other layers and heads: it is damaged")
    return table, sinks


def _checked(table: pa.Table, path: Path, lanes: int) -> pa.Table:
    """A table of tokens, where it is one."""
    schema = table.schema.remove_metadata()
    if schema not in (TOKENS, TOKENS.append(ROLE), pa.schema([*TOKENS, *FIDELITY])):
        missing = [f.name for f in TOKENS if f not in list(schema)]
        which = f"it has no column {missing[0]} of its kind" if missing else "it has other columns"
        raise ValueError(f"{path} is not the table of a run: {which}")
    for name in TOKENS.names:
        if name != "nll" and table[name].null_count:
            raise ValueError(f"{path} has rows without {name}: it is damaged")
    if len(table) and not set(table["lane"].unique().to_pylist()) <= set(range(lanes)):
        raise ValueError(f"{path} has lanes that its run.json does not name: the two are of different runs")
    return table


def _growing(path: Path, heads: tuple[int, int] | None, lanes: int) -> tuple[pa.Table, Sinks]:
    """The tables of a folder that was not finished: tokens in order, and spans and sink masses of each lane."""
    table = _checked(read_stream(path / "tokens.arrow", TOKENS), path / "tokens.arrow", lanes)
    table = _in_order(_newest(table, "position"))
    file = path / "sinks.arrow"
    grown = read_stream(file, SINKS)
    if grown.schema.remove_metadata() not in (SINKS, SINKS.append(OUTPUT_ERROR)):
        raise ValueError(f"{file} is not the table of sink masses of a run: it has other columns")
    sinks: Sinks = {}
    for row in _newest(grown, "start").to_pylist():
        of_heads = {name: row[name] for name in grown.schema.names[3:]}
        count = heads and heads[0] * heads[1]
        if None in row.values() or any(len(of) != count for of in of_heads.values()):
            raise ValueError(f"{file} does not fit run.json: it is damaged, or of another run")
        chunks = sinks.setdefault(row["lane"], _Chunks())
        chunks.spans.append((row["start"], row["stop"]))
        for name, of in of_heads.items():
            getattr(chunks, name).append(np.array(of, np.float32).reshape(heads))
    return _ending_alike(table, sinks)


def _newest(table: pa.Table, place: str) -> pa.Table:
    """The rows that no later row of their lane takes the place of: an answer that is given again begins where the one
    before it did."""
    if table["lane"].null_count or table[place].null_count:
        return table
    lanes, at, kept = table["lane"].to_numpy(), table[place].to_numpy(), np.ones(len(table), bool)
    for lane in np.unique(lanes):
        rows = np.flatnonzero(lanes == lane)
        later = np.minimum.accumulate(at[rows][::-1])[::-1]
        kept[rows[:-1]] = at[rows][:-1] < later[1:]
    return table if kept.all() else table.filter(pa.array(kept))


def _ending_alike(table: pa.Table, sinks: Sinks) -> tuple[pa.Table, Sinks]:
    """Tokens and sink masses up to the last chunk that stands whole in both."""
    lanes = table["lane"].to_numpy()
    ends = np.bincount(lanes, minlength=1)
    cut: Sinks = {}
    for lane, chunks in sinks.items():
        kept = [i for i, (_, stop) in enumerate(chunks.spans) if lane < len(ends) and stop <= ends[lane]]
        if kept:
            errors = [chunks.output_error[i] for i in kept] if chunks.output_error else []
            cut[lane] = _Chunks([chunks.spans[i] for i in kept], [chunks.sink_mass[i] for i in kept], errors)
    ends = np.array([cut[lane].spans[-1][1] if lane in cut else 0 for lane in range(len(ends))])
    return table.filter(pa.array(table["position"].to_numpy() < ends[lanes])), cut


def read_stream(path: Path, schema: pa.Schema) -> pa.Table:
    """All whole batches of a stream that may end anywhere; `schema` where not even its own is there."""
    if not os.path.exists(path):
        return schema.empty_table()
    batches, data = [], files.contents(path, files.MAX_NUMBERS)
    # What is cut off is no error, and Arrow has many names for it.
    with suppress(StopIteration, pa.ArrowException, OSError, ValueError), pa.ipc.open_stream(data) as stream:
        schema = stream.schema
        while True:
            batch = stream.read_next_batch()
            batch.validate(full=True)
            batches.append(batch)
    return pa.Table.from_batches(batches, schema)


def _in_order(table: pa.Table) -> pa.Table:
    return table.sort_by([("lane", "ascending"), ("position", "ascending")])
