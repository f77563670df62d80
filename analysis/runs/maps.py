"""Attention maps that a run folder keeps, so that a recording shows them: maps.arrow.

Weights become levels (codec.py), and how many maps a run keeps is bounded.  Knows nothing of models: what is kept was
drawn by maps/recent.py.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..policies import parse
from .codec import levels_of
from .reader import read_stream
from .run import Run
from .tables import write_stream

FILE = "maps.arrow"
MOST = 48
"""Maps that a run keeps; where there would be more, every second one of the head that has most is left out."""
SIDE = 256
"""Newest tokens of which a map is kept."""
EACH = 12
"""Maps of a head from the beginning of a text to its end, where it is open all the time."""
LEVELS = pa.list_(pa.uint16())
MAPS = pa.schema(
    [
        ("lane", pa.int32()),
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("read", pa.int64()),
        ("first", pa.int64()),
        ("side", pa.int32()),
        ("weights", LEVELS),
        ("sinks", LEVELS),
        ("received", pa.list_(pa.float32())),
        ("learned", pa.float32()),
    ]
)


@dataclass(frozen=True, eq=False)
class RecordedMap:
    """A map of a head as it was when a lane had read so many tokens, from text position `first` on."""

    lane: int
    layer: int
    head: int
    read: int
    first: int
    weights: NDArray[np.uint16]
    """Levels, [queries, keys]."""
    sinks: NDArray[np.uint16]
    """Levels, [queries, first tokens]."""
    received: NDArray[np.float32]
    """Mean attention that each token received, [keys]; NaN for none."""
    learned: float | None = None
    """Mean weight that went to a sink without a token, where there is one."""

    @classmethod
    def of(
        cls,
        lane: int,
        layer: int,
        head: int,
        read: int,
        first: int,
        weights: NDArray[np.float32],
        sinks: NDArray[np.float32],
        learned: NDArray[np.float32] | None = None,
    ) -> "RecordedMap":
        """The newest tokens of a map as maps/recent.py draws it: weights 0 … 1, NaN for pairs that never met."""
        weights, sinks, cut = weights[-SIDE:, -SIDE:], sinks[-SIDE:], max(0, len(weights) - SIDE)
        met = ~np.isnan(weights)
        total = np.where(met, weights, 0).sum(0)
        received = np.divide(total, met.sum(0), out=np.full_like(total, np.nan), where=met.any(0))
        known = learned is not None and not np.isnan(learned[-SIDE:]).all()
        mean = float(np.nanmean(learned[-SIDE:])) if known and learned is not None else None
        return cls(lane, layer, head, read, first + cut, levels_of(weights), levels_of(sinks), received, mean)

    @property
    def of_head(self) -> tuple[int, int, int]:
        """The lane, layer and head that it is of."""
        return self.lane, self.layer, self.head

    def note(self, run: Run) -> str:
        """What to know of it, in a few words; empty where there is nothing."""
        policies = [p for at, p in run.tracks[self.lane].policies if at < self.read] or [run.spec.policies[self.lane]]
        fresh = getattr(parse(policies[-1]), "stride", None) is not None
        sink = "" if self.learned is None else f"{100 * self.learned:.0f} % to the extra sink"
        return ", ".join(filter(None, ("the newest window, recomputed" if fresh else "", sink)))


class MapsFile:
    """The maps of a run folder while it is written.  Raises ValueError where those that are there are damaged."""

    def __init__(self, folder: Path, lanes: int, total: int) -> None:
        self.path, self.total = folder / FILE, total
        self._maps = read_maps(folder, lanes)

    def due(self, lane: int, layer: int, head: int, read: int) -> bool:
        """Whether the next map of a head should be kept."""
        last = max((m.read for m in self._maps if m.of_head == (lane, layer, head)), default=-self.total)
        return read > last and (read - last >= self.total / EACH or read >= self.total)

    def add(self, drawn: RecordedMap) -> None:
        """Keep a map.  Raises ValueError where the disk does not take it."""
        self._maps.append(drawn)
        if len(self._maps) > MOST:
            self._maps = thinned(self._maps)
        write_stream(self.path, pa.Table.from_batches([_row(m) for m in self._maps], MAPS))


def thinned(maps: Sequence[RecordedMap]) -> list[RecordedMap]:
    """Maps without every second one of the head that has most; its newest stays."""
    (most, count), *_ = Counter(m.of_head for m in maps).most_common(1)
    of_most = [i for i, m in enumerate(maps) if m.of_head == most]
    out = set(of_most[count % 2 : -1 : 2] or of_most[:1])
    return [m for i, m in enumerate(maps) if i not in out]


def _row(drawn: RecordedMap) -> pa.RecordBatch:
    levels = [pa.array([a.ravel()], LEVELS) for a in (drawn.weights, drawn.sinks)]
    facts = [[drawn.lane], [drawn.layer], [drawn.head], [drawn.read], [drawn.first], [len(drawn.weights)]]
    received = pa.array([drawn.received], MAPS.field("received").type)
    return pa.record_batch([*facts, *levels, received, [drawn.learned]], schema=MAPS)


def read_maps(folder: Path, lanes: int) -> list[RecordedMap]:
    """The maps that a run folder keeps; none where it keeps none.  Raises ValueError where they are damaged."""
    path = Path(folder) / FILE
    table = read_stream(path, MAPS)
    wrong = f"{path} is not the table of maps of this run: it is damaged, or of another run"
    if table.schema.remove_metadata() != MAPS:
        raise ValueError(wrong)
    found = []
    for row in table.to_pylist():
        side, numbers = row.pop("side"), {k: row.pop(k) for k in ("weights", "sinks", "received")}
        known = [row[k] for k in ("lane", "layer", "head", "read", "first")]
        if None in (side, *known, *numbers.values()) or min(known) < 0 or row["lane"] >= lanes or not 1 <= side <= SIDE:
            raise ValueError(wrong)
        weights, sinks, received = numbers["weights"], numbers["sinks"], numbers["received"]
        shown = len(sinks) // side
        if len(weights) != side * side or len(received) != side or shown * side != len(sinks) or not shown:
            raise ValueError(wrong)
        if None in weights or None in sinks or None in received:
            raise ValueError(wrong)
        learned = row.pop("learned")
        found.append(
            RecordedMap(
                **row,
                weights=np.array(weights, np.uint16).reshape(side, side),
                sinks=np.array(sinks, np.uint16).reshape(side, shown),
                received=np.array(received, np.float32),
                learned=learned if learned is not None and math.isfinite(learned) else None,
            )
        )
    return found
