"""What single tokens of a conversation looked back at, of those that somebody clicked while it went on: rows.arrow."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .reader import read_stream
from .tables import write_stream

FILE = "rows.arrow"
MOST = 64
"""Rows that a run keeps, the newest."""
ROWS = pa.schema(
    [
        ("lane", pa.int32()),
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("token", pa.int64()),
        ("positions", pa.list_(pa.uint32())),
        ("weights", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, eq=False)
class RecordedRow:
    """What the token at a text position gave to each token that it reached, in one head of a lane."""

    lane: int
    layer: int
    head: int
    token: int
    positions: NDArray[np.uint32]
    """Of the tokens, [keys]."""
    weights: NDArray[np.float32]
    """0 … 1, [keys]."""

    @property
    def of(self) -> tuple[int, int, int, int]:
        """Lane, layer, head and token."""
        return self.lane, self.layer, self.head, self.token


class RowsFile:
    """The rows of a run folder while it is written.  Raises ValueError where those that are there are damaged."""

    def __init__(self, folder: Path, lanes: int) -> None:
        self.path, self._rows = folder / FILE, read_rows(folder, lanes)

    def add(self, row: RecordedRow) -> None:
        """Keep a row, in place of an older one of its token and head.  Raises ValueError where the disk is full."""
        self._write([*(old for old in self._rows if old.of != row.of), row][-MOST:])

    def forget(self, lane: int, token: int) -> None:
        """Forget the rows of a lane from a token on: it is said anew.  Raises ValueError where the disk is full."""
        if len(left := [row for row in self._rows if row.lane != lane or row.token < token]) < len(self._rows):
            self._write(left)

    def _write(self, rows: list[RecordedRow]) -> None:
        self._rows = rows
        write_stream(self.path, pa.Table.from_pylist([vars(row) for row in rows], ROWS))


def read_rows(folder: Path, lanes: int) -> list[RecordedRow]:
    """The rows that a run folder keeps; none where it keeps none.  Raises ValueError where they are damaged."""
    path = Path(folder) / FILE
    table, found = read_stream(path, ROWS), list[RecordedRow]()
    wrong = f"{path} is not the table of attention rows of this run: it is damaged, or of another run"
    if table.schema.remove_metadata() != ROWS:
        raise ValueError(wrong)
    for row in table.to_pylist():
        positions, weights = row.pop("positions"), row.pop("weights")
        if None in (*row.values(), positions, weights) or min(row.values()) < 0 or row["lane"] >= lanes:
            raise ValueError(wrong)
        if None in positions or None in weights or len(positions) != len(weights):
            raise ValueError(wrong)
        one = RecordedRow(**row, positions=np.array(positions, np.uint32), weights=np.array(weights, np.float32))
        if not (np.isfinite(one.weights).all() and (one.positions <= one.token).all()):
            raise ValueError(wrong)
        found.append(one)
    return found
