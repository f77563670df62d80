"""The tables of a run folder: their columns, and the rows that a lane's track makes in them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from .run import ROLES, Run, Track

TOKENS = pa.schema(
    [
        ("lane", pa.int32()),
        ("policy", pa.string()),
        ("position", pa.int64()),
        ("token_id", pa.int32()),
        ("nll", pa.float32()),
        ("cache_tokens", pa.int32()),
        ("cache_bytes", pa.int64()),
        ("seconds", pa.float64()),
    ]
)
ROLE = pa.field("role", pa.string())
"""One more column, in a conversation."""
FIDELITY = (pa.field("kl", pa.float32()), pa.field("agree", pa.bool_()))
"""More columns of lanes that are measured against the first one; null where that was not possible."""
SINKS = pa.schema(
    [("lane", pa.int32()), ("start", pa.int64()), ("stop", pa.int64()), ("sink_mass", pa.list_(pa.float32()))]
)
"""Of a run that is still read: a row for each chunk."""
OUTPUT_ERROR = pa.field("output_error", pa.list_(pa.float32()))
"""One more column, of lanes that are measured against the first one."""
PIECES = pa.schema([("lane", pa.int32()), ("start", pa.int64()), ("pieces", pa.list_(pa.string()))])
"""Texts of tokens from a position on, of one lane or of all (-1); later rows win over earlier ones."""


def schema_of(run: Run) -> pa.Schema:
    """The columns of a run's tokens."""
    more = [ROLE] * (run.spec.sampling is not None) + [*FIDELITY] * run.spec.fidelity
    return pa.schema([*TOKENS, *more])


def sink_schema_of(run: Run) -> pa.Schema:
    """The columns of what is known of each chunk of a run."""
    return SINKS.append(OUTPUT_ERROR) if run.spec.fidelity else SINKS


def token_rows(run: Run, lane: int, track: Track, start: int = 1) -> pa.RecordBatch:
    """Rows of the tokens of a track, the first of which stands at `start`.

    Token 0 is read by every lane and predicted by none: it gets a row before token 1, without an NLL.
    """
    count, first = len(track.nll), int(start == 1)

    def column(name: str, of_first: int) -> np.ndarray:
        """Numbers of a track [tokens], with one for the first token, of which it has none."""
        return np.concatenate((np.full(first, of_first), getattr(track, name).view()[:count]))

    policies = np.empty(first + count, object)
    for position, policy in track.policies:
        policies[position - start + first if position > start else 0 :] = policy
    seconds = track.seconds.view()[:count]
    columns = [
        np.full(first + count, lane, np.int32),
        pa.array(policies.tolist(), pa.string()),
        np.arange(start - first, start + count),
        column("token_ids", run.first_token or 0).astype(np.int32),
        pa.array(column("nll", 0).astype(np.float32), mask=np.arange(first + count) < first),
        column("cache_tokens", 0).astype(np.int32),
        column("cache_bytes", 0).astype(np.int64),
        np.concatenate((seconds[:first], seconds)),
    ]
    if run.spec.sampling is not None:
        columns.append(pa.array([ROLES[role] for role in column("roles", run.first_role)]))
    if run.spec.fidelity:
        for field in FIDELITY:
            known = column(field.name, 0)
            columns.append(pa.array(known.astype(field.type.to_pandas_dtype()), mask=_unknown(known, first)))
    return pa.record_batch(columns, schema=schema_of(run))


def _unknown(values: np.ndarray, first: int) -> np.ndarray:
    """Which of them are no numbers, or of tokens that are not predicted."""
    return np.isnan(values) | (np.arange(len(values)) < first)


def sink_rows(run: Run, lane: int, track: Track) -> pa.RecordBatch:
    """Rows of the chunks of a track: their spans, and what is known of every head, layer after layer."""
    schema, (starts, stops) = sink_schema_of(run), np.array(track.spans).T
    of_heads = [
        pa.array([of.ravel() for of in getattr(track, name)], schema.field(name).type) for name in schema.names[3:]
    ]
    return pa.record_batch([np.full(len(starts), lane, np.int32), starts, stops, *of_heads], schema=schema)


def piece_row(lane: int, start: int, pieces: Sequence[str]) -> pa.RecordBatch:
    """A row of texts of tokens; lane -1: of all lanes."""
    return pa.record_batch([[lane], [start], [list(pieces)]], schema=PIECES)


def piece_rows(run: Run) -> list[pa.RecordBatch]:
    """Rows of the texts of all tokens of a run: one, where all lanes have the same."""
    if all(pieces == run.pieces[0] for pieces in run.pieces):
        return [piece_row(-1, 0, run.pieces[0])]
    return [piece_row(lane, 0, pieces) for lane, pieces in enumerate(run.pieces)]


def write_pieces(run: Run, path: Path) -> None:
    """The texts of a run's tokens, as pieces.arrow, where they are known.  Raises ValueError where the disk takes no
    more."""
    if not any(run.pieces):
        return
    with files.written(path / "pieces.arrow") as f, pa.ipc.new_stream(f, PIECES) as stream:
        for row in piece_rows(run):
            stream.write_batch(row)


def write_tables(run: Run, path: Path) -> None:
    """What the lanes have learned, as tokens.parquet and sinks.npz.  Raises ValueError where the disk takes no more.

    A track may grow meanwhile: what is written ends with its last whole chunk.
    """
    batches, arrays = [], {}
    for lane, track in enumerate(run.tracks):
        track = track.snapshot()
        if not (count := len(track.nll)):
            continue
        batches.append(token_rows(run, lane, track))
        spans = [span for span in track.spans if span[1] <= count + 1]
        arrays[f"mass_{lane}"], arrays[f"span_{lane}"] = np.stack(track.sink_mass[: len(spans)]), np.array(spans)
        if run.spec.fidelity:
            arrays[f"output_error_{lane}"] = np.stack(track.output_error[: len(spans)])
    with files.written(path / "sinks.npz") as f:
        np.savez_compressed(f, **arrays)
    with files.written(path / "tokens.parquet") as f:
        pq.write_table(pa.Table.from_batches(batches, schema_of(run)), f, write_page_checksum=True)


def write_stream(path: Path, table: pa.Table) -> None:
    """Write a table, compressed, in place of the one that stands there.

    Raises ValueError where the disk does not take it.
    """
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with files.written(path) as f, pa.ipc.new_stream(f, table.schema, options=options) as stream:
        stream.write_table(table)
