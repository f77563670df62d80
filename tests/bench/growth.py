"""What grows as a text of a million tokens is read under a band: not time, not memory, and the record on disk evenly.

Plays are read again and again, in bfloat16 where the processor multiplies it and else with int8 weights, and kept as
`stream` keeps them.  The run's own numbers stay in memory, as they do there, and are told apart from all else.
"""

import gc
import os
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from analysis import texts
from analysis.engine import allocator
from analysis.engine.lane import Lane
from analysis.engine.stream import open_lanes
from analysis.policies import Streaming
from analysis.runs.folder import Folder
from analysis.runs.run import Run
from analysis.runs.spec import Spec

from .machine import machine
from .model import load
from .report import head, line
from .sizes import TOY, size

TOKENS = 1_000 if TOY else int(os.environ.get("SINKSCOPE_BENCH_TOKENS", 1_000_000))
CHUNK = size(256, 32)
POLICY = Streaming(4, size(252, 60))
PLAYS = size(4, 1)
TENTHS = 10


def main() -> None:
    """Read to the end, and tell every tenth of the way."""
    how: dict[str, Any] = {"dtype": "bfloat16"} if machine().bfloat16 else {"weights": "int8"}
    model = load(**how)
    ids = repeated(model.tokenizer, TOKENS)
    spec = Spec("embedded", "plays", (str(POLICY),), TOKENS, CHUNK, **how)
    head(f"{len(ids):,} tokens of plays, again and again, {spec.arithmetic}, {POLICY.label}, chunks of {CHUNK}")
    lane, run = open_lanes(model, ids, [POLICY])[0], Run(spec, int(ids[0]))
    with TemporaryDirectory() as place:
        folder = Folder(Path(place) / "run", run, text_sha256="", weights_sha256="", tokens=len(ids))
        seconds, resident, held = tenths(lane, folder)
        written = sum(file.stat().st_size for file in folder.path.iterdir())
        folder.finish("finished")
        kept = sum(file.stat().st_size for file in folder.path.iterdir())
    tell(len(ids), seconds, resident, held)
    line("on disk while it reads", written / len(ids), "", unit="B/token", digits=1)
    line("on disk when it has ended", kept / len(ids), "", unit="B/token", digits=1)


def repeated(tokenizer: Any, count: int) -> NDArray[np.int32]:
    """So many tokens: those of some plays, from the first again after the last."""
    every = "\n".join(texts.read(name).content for name in list(texts.plays())[:PLAYS])
    return np.resize(texts.tokenize(texts.Text("plays", "plays", every, None, ""), tokenizer), count)


def tenths(lane: Lane, folder: Folder) -> tuple[list[float], list[int], list[int]]:
    """Read to the end, and tell each tenth: seconds per token, and bytes in memory then, in all and of the run's own
    numbers.  What is freed and kept for the next chunk is given back before, and told as the most that there was."""
    process, total = psutil.Process(), len(lane.context.tokens)
    seconds, resident, held = list[float](), list[int](), list[int]()
    for tenth in range(1, TENTHS + 1):
        began, first = time.perf_counter(), lane.position
        while lane.position < tenth * total // TENTHS and not lane.done:
            folder.append(lane.read(CHUNK))
        seconds.append((time.perf_counter() - began) / max(1, lane.position - first))
        gc.collect()
        allocator.give_back()
        resident.append(process.memory_info().rss)
        held.append(size_of(folder.run))
        line(f"tenth {tenth}: speed", 1 / seconds[-1], "", unit="tokens/s", digits=0)
        line(f"tenth {tenth}: resident", resident[-1] / 1e6, "", unit="MB", digits=1)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        line(f"tenth {tenth}: resident at most, so far", most / 1e6, "", unit="MB", digits=1)
        line(f"tenth {tenth}: of that, the run's own numbers", held[-1] / 1e6, "", unit="MB", digits=1)
    return seconds, resident, held


def size_of(run: Run) -> int:
    """Bytes of the numbers of a run: of every token, and of every chunk."""
    track = run.tracks[0]
    columns = [c.view().nbytes for c in vars(track).values() if hasattr(c, "view")]
    return sum(columns) + sum(mass.nbytes for mass in track.sink_mass)


def tell(count: int, seconds: list[float], resident: list[int], held: list[int]) -> None:
    """Say what grew from the first tenths to the last."""
    ratio = float(np.median(seconds[-3:]) / np.median(seconds[:3]))
    line("time per token, last three tenths / first three", ratio, "≤ 1.05", good=ratio <= 1.05)
    grown = ((resident[-1] - resident[0]) - (held[-1] - held[0])) / 1e6
    line("resident, growth beside the run's own numbers", grown, "≤ 20", unit="MB", good=grown <= 20, digits=1)
    line("the run's own numbers", held[-1] / count, "", unit="B/token", digits=1)
