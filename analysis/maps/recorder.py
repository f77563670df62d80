"""Keeps attention maps of some heads in a run folder while lanes read, so that a recording shows them later."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..engine.lane import Lane
from ..runs.facts import ModelFacts, head_of
from ..runs.maps import SIDE, MapsFile, RecordedMap
from .recent import HeadMap, head_map


def heads_of(names: Iterable[str], model: ModelFacts) -> list[tuple[int, int]]:
    """Heads of a model, each written layer.head.  Raises ValueError where it has no such head."""
    heads = list(dict.fromkeys(map(head_of, names)))
    for layer, head in heads:
        if not model.has(layer, head):
            raise ValueError(
                f"{model.name} has no layer {layer}, head {head}: layers are 0 to {model.layers - 1}, heads 0 to "
                f"{model.heads - 1}"
            )
    return heads


def recorded_map(lane: int, read: int, drawn: HeadMap) -> RecordedMap:
    """What a folder keeps of a map that was drawn when a lane had read so many tokens."""
    return RecordedMap.of(lane, drawn.layer, drawn.head, read, drawn.first, drawn.weights, drawn.sinks, drawn.learned)


class MapRecorder:
    """Draws maps of heads now and then while lanes read, and keeps them in a run folder.

    The lanes must hold the queries and keys of the newest tokens (`SIDE` of them).
    """

    def __init__(self, folder: Path, lanes: int, total: int, heads: Sequence[tuple[int, int]]) -> None:
        self.heads, self._file = list(heads), MapsFile(folder, lanes, total)

    def record(self, lane: Lane) -> None:
        """Keep the maps that are due, of a lane that has just read.  Raises ValueError where the disk is full."""
        for layer, head in self.heads:
            if not self._file.due(lane.index, layer, head, lane.position):
                continue
            if (drawn := head_map(lane, layer, head, SIDE)) is not None:
                self._file.add(recorded_map(lane.index, lane.position, drawn))
