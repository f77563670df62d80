"""What it costs `stream` to keep a run: its folder, and a checkpoint every half minute.

The same lanes read the same text twice, in turns of one chunk: kept as the command keeps them, and not kept.  A
checkpoint is written beside the reading: until it is, only the lanes that are kept read on, and the others follow then.
So every turn has its twin, and no twin is slowed by a checkpoint.
"""

import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from analysis import texts
from analysis.engine.stream import next_lane, open_lanes
from analysis.experiments.presets import FOUR
from analysis.policies import parse
from analysis.runs import checkpoint
from analysis.runs.folder import Folder
from analysis.runs.resume import Made, state_of
from analysis.runs.run import Run
from analysis.runs.spec import Spec

from .model import load
from .report import head, line, said
from .sizes import size

CHUNK = size(512, 32)
CHECKPOINTS = size(3, 1)
EVERY = size(checkpoint.EVERY, 0.1)


def main() -> None:
    """Read with and without keeping, until some checkpoints are written."""
    # A toy does not wait half a minute.
    checkpoint.EVERY = EVERY
    head(f"stream, kept and not kept, a checkpoint every {EVERY:g} s of reading")
    model = load()
    ids = texts.tokenize(texts.read("hamlet"), model.tokenizer)
    with TemporaryDirectory() as folder:
        compare(model, ids, Path(folder) / "kept")


def compare(model, ids: np.ndarray, place: Path) -> None:
    """Take turns, and say what the turns that keep took of their twins' time."""
    spec = Spec("embedded", "hamlet", FOUR, chunk=CHUNK)
    lanes, twins = (open_lanes(model, ids, [parse(p) for p in FOUR]) for _ in range(2))
    run, twin = Run(spec, int(ids[0])), Run(spec, int(ids[0]))
    folder = Folder(place, run, text_sha256="", weights_sha256="", tokens=len(ids))
    saver = checkpoint.Saver(checkpoint.Checkpoints(place), lambda sentence: said("", sentence))
    turns, behind = list[tuple[float, float, bool]](), list[tuple[int, float, bool]]()
    saves, written, since = list[float](), 0, 0.0

    def made() -> Made:
        saves.append(since)
        return state_of(run, lanes)

    while (written < CHECKPOINTS or writing()) and (lane := next_lane(lanes)) is not None:
        beside, began = writing(), time.perf_counter()
        folder.append(lane.read(CHUNK))
        # By the time of these lanes alone, of which the clock shows twice as much.
        if since >= EVERY:
            saver.save(made)
            if len(saves) > written:
                written, since, beside = len(saves), 0.0, True
        seconds = time.perf_counter() - began
        since += seconds
        behind.append((lane.index, seconds, beside))
        if not writing():
            for index, seconds, beside in behind:
                began = time.perf_counter()
                twin.append(twins[index].read(CHUNK))
                turns.append((seconds, time.perf_counter() - began, beside))
            behind.clear()
    assert not saver.close(), "a checkpoint could not be written"
    folder.finish("interrupted")
    tell(turns, written, sum(f.stat().st_size for f in (place / "checkpoint").iterdir()))


def writing() -> bool:
    """Whether a checkpoint is being written."""
    return any(thread.name == "checkpoint" for thread in threading.enumerate())


def tell(turns: list[tuple[float, float, bool]], written: int, held: int) -> None:
    """Say the cost of the folder, of checkpoints, and of both; `turns`: seconds, the twin's, and whether beside one."""
    kept, alone, beside = (np.array(of) for of in zip(*turns, strict=True))
    folder = float(np.median(kept[~beside] / alone[~beside]))
    saving = float(kept[beside].sum() - alone[beside].sum())
    both = (folder * alone[~beside].sum() + kept[beside].sum()) / alone.sum()
    said("turns, and checkpoints", f"{len(turns)}, {written} ({held / 1e6:,.0f} MB in the end)")
    line("a turn with its folder, times one without, median", folder, "")
    line("what a checkpoint costs the reading", saving / max(written, 1), "", unit="s")
    line("reading with both, times reading without", both, "≤ 1.02", good=both <= 1.02)
