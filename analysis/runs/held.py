"""Which files lie in a run folder, and which of them are a run's; what stands in them is not read here."""

import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from .status import CAPTURING, LABEL, PREVIEW

MARKS = {"run.json", "stretch.json", "tokens.parquet", "tokens.arrow", CAPTURING}
"""A folder that has one of these is a run, whatever has become of it."""
FILES = {
    *("run.json", "events.jsonl", "tokens.parquet", "sinks.npz", "tokens.arrow", "sinks.arrow", "pieces.arrow"),
    *("maps.arrow", "shares.arrow", "rows.arrow", LABEL, PREVIEW),
    *("stretch.json", "queries.npy", "keys.npy", "quantized.npy", "norms.npy", "token_ids.npy"),
    *("massive.npy", "mass.npy", "median.npy", "curves.csv", "maps.npz", "alpha.npz", "table.csv", "table.md"),
    *("effects.csv", "measures.npz", "costs.csv", "recall.parquet", "questions.jsonl"),
    *("verdict.json", "pairs.csv", "seconds.json"),
}
"""All that a run folder of any kind holds, but for its checkpoint and hidden files."""
CHECKPOINT = "checkpoint"


def files_of(path: Path) -> dict[str, os.stat_result]:
    """Files of a run folder and of all folders in it, by their paths from there; empty where it is no run."""
    found: dict[str, os.stat_result] = {}
    inside = _look(path, "", found)
    deeper = [folder for under in inside for folder in _look(path / under, f"{under}/", found)]
    if not MARKS & found.keys() and not several(found):
        return {}
    while deeper:
        under = deeper.pop()
        deeper += _look(path / under, f"{under}/", found)
    return found


def several(held: Iterable[str]) -> list[str]:
    """The run.json of each run in a folder of several."""
    return sorted(name for name in held if name.endswith("/run.json") and name.count("/") == 1)


def changed(held: Mapping[str, os.stat_result]) -> float:
    """When files of a run folder were written last, in seconds since 1970; 0 where there are none.

    What the library itself wrote there is no news of the run.
    """
    return max((about.st_mtime for name, about in held.items() if name not in (PREVIEW, LABEL)), default=0.0)


def version(held: Mapping[str, os.stat_result]) -> int:
    """A number that is another one as soon as a file of the work in a run folder is another.

    The newest moment does not tell: the clock may have been ahead when a file was written that stays as it is.
    """
    of = [(name, s.st_size, s.st_mtime_ns) for name, s in held.items() if name not in (PREVIEW, LABEL)]
    return zlib.crc32(repr(sorted(of)).encode())


def strangers(path: Path) -> list[str]:
    """Files in a run folder that no run has: somebody put them there."""
    parts = [name.split("/") for name in files_of(path) if not of_checkpoint(name)]
    return ["/".join(p) for p in parts if (len(p) > 2 or p[-1] not in FILES) and not p[-1].startswith(".")]


def of_checkpoint(name: str) -> bool:
    """Whether a file lies in the checkpoint of a run, or of a training beside others."""
    return CHECKPOINT in name.split("/")[:-1][:2]


def _look(path: Path, under: str, found: dict[str, os.stat_result]) -> list[str]:
    """Add the files of a folder to those that were found, all by their paths; the paths of the folders in it."""
    folders = []
    # What cannot be read, or is removed meanwhile, hides nothing of the rest.
    with suppress(OSError, ValueError), os.scandir(path) as there:
        for f in there:
            if f.is_dir(follow_symlinks=False) and f.name not in MARKS:
                folders.append(under + f.name)
            elif f.is_file(follow_symlinks=False) or f.name in MARKS:
                with suppress(FileNotFoundError):
                    found[under + f.name] = f.stat(follow_symlinks=False)
    return folders
