"""Which share of the heads held each token while a conversation went on, where each head keeps tokens of its own.

It stands in shares.arrow: after every token of a short conversation, of a longer one at evenly spaced ones.  Where all
heads hold the same tokens the tables tell which these are, and nothing stands here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .reader import read_stream
from .tables import write_stream

if TYPE_CHECKING:
    from ..engine.lane import Lane

FILE = "shares.arrow"
MOST = 512
"""Moments of a lane that are kept, about."""
ALL = 100
"""The level of a token that all heads hold."""
SHARES = pa.schema(
    [
        ("lane", pa.int32()),
        ("read", pa.int64()),
        ("sinks", pa.int64()),
        ("first", pa.int64()),
        ("protected", pa.int64()),
        ("levels", pa.list_(pa.uint8())),
    ]
)


@dataclass(frozen=True, eq=False)
class Shares:
    """What the heads of a lane held when it had read so many tokens.

    All of them held the first `sinks` tokens and all from `first` on; the first `protected` ones stay whatever comes.
    """

    lane: int
    read: int
    sinks: int
    first: int
    protected: int
    levels: NDArray[np.uint8]
    """The share of the heads that held each token, in hundredths, [read]."""


def spacing(read: int) -> int:
    """How many tokens lie between two moments that are kept of a lane that has read so many."""
    return 1 << (read // MOST).bit_length()


def hundredths(shares: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Shares as levels up to ALL: what some heads hold, and others do not, is neither 0 nor ALL."""
    return np.clip(np.round(shares * ALL), shares > 0, ALL - (shares < 1)).astype(np.uint8)


class SharesFile:
    """The shares of a run folder while it is written.  Raises ValueError where those that are there are damaged."""

    def __init__(self, folder: Path, lanes: int) -> None:
        self.path = folder / FILE
        self._kept: list[list[Shares]] = [[] for _ in range(lanes)]
        for shares in read_shares(folder, lanes):
            self._kept[shares.lane].append(shares)
        self._changed = False

    def take_in(self, lane: "Lane") -> None:
        """Take in what a lane holds now, where this moment is kept; what it held later, before an answer was given
        again, is forgotten."""
        kept, read = self._kept[lane.index], lane.view.read
        while kept and kept[-1].read >= read:
            kept.pop()
            self._changed = True
        every = spacing(read)
        if read % every or (shares := lane.shares) is None:
            return
        if kept and spacing(kept[-1].read) < every:
            # Where a long prompt was read since, the moments in between are not there.
            kept[:] = [one for one in kept if one.read % every == 0]
        kept.append(Shares(lane.index, read, lane.sinks, lane.first, lane.protected, hundredths(shares)))
        self._changed = True

    def write(self) -> None:
        """Write all that was taken in.  Raises ValueError where the disk does not take it."""
        if not self._changed:
            return
        rows = [vars(one) for kept in self._kept for one in kept]
        write_stream(self.path, pa.Table.from_pylist(rows, SHARES))
        self._changed = False


def read_shares(folder: Path, lanes: int) -> list[Shares]:
    """The shares that a run folder keeps, by lane and ascending; none where it keeps none.

    Raises ValueError where they are damaged.
    """
    path = Path(folder) / FILE
    table, found = read_stream(path, SHARES), list[Shares]()
    wrong = f"{path} is not the table of shares of this run: it is damaged, or of another run"
    if table.schema.remove_metadata() != SHARES:
        raise ValueError(wrong)
    for row in table.to_pylist():
        levels = row.pop("levels")
        if None in row.values() or levels is None or None in levels or min(row.values()) < 0 or row["lane"] >= lanes:
            raise ValueError(wrong)
        one = Shares(**row, levels=np.array(levels, np.uint8))
        before = found[-1] if found else None
        ascending = before is None or (before.lane, before.read) < (one.lane, one.read)
        inside = one.protected <= one.sinks <= one.read and one.first <= one.read
        if not (ascending and inside and len(levels) == one.read and max(levels, default=0) <= ALL):
            raise ValueError(wrong)
        found.append(one)
    return found


def as_arrays(shares: Sequence[Shares], lane: int) -> dict[str, NDArray]:
    """The shares of a lane for a script: moments, what stands beside each of them, and their levels on end."""
    of = [one for one in shares if one.lane == lane]
    found = {name: np.array([getattr(one, name) for one in of], np.uint32) for name in ("read", "sinks", "first")}
    found["protected"] = np.array([one.protected for one in of], np.uint32)
    levels = np.concatenate([one.levels for one in of]) if of else np.zeros(0)
    return {f"share_{name}": array for name, array in found.items()} | {"share_levels": levels.astype(np.uint16)}
