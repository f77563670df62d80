"""Runs as .zip files: packed to be handed on, and taken in from other hands.

Nothing of a .zip file is unpacked before all its names and sizes are known to be those of a run.  It is unpacked beside
the runs of the library, read as a run, and gets its name in one step.  A checkpoint stays behind: it is as large as a
cache, and goes on only where it was made.
"""

import json
import os
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from .. import files
from ..settings import quoted
from .held import CHECKPOINT, FILES, files_of
from .library import entry, find, fits, home, pin, slug, unique
from .status import CAPTURING, COMPUTING, LABEL, PREVIEW, RUNNING, TRIES
from .trash import limit

MAX_FILES = 5_000
"""In one .zip file: a map of recall has a file for each of its cells, of which a page asks for 4,000."""
MAX_NAMES = 2**21
"""Bytes of the list of what is in it."""
RATIO, SMALL = 200, 2**24
"""How many times smaller than its contents a .zip file of a run may be, where these are larger than SMALL bytes."""
PIECE = 2**20
"""Bytes that are unpacked at a time."""
WRONG = "this .zip file is not taken in"

Parts = tuple[str, ...]
"""Of the path of a file in a run folder."""


def export(name: str, file: Path | IO[bytes], place: Path | None = None) -> None:
    """Write a run of the library as a .zip file with one folder in it.

    Raises ValueError where there is none of that name, it has more files than are taken in, or the file cannot be
    written.
    """
    path = find(name, place)
    if (path / CAPTURING).exists() and not (path / "stretch.json").exists():
        raise ValueError(f"{name} is a capture that has not come to its end, and nobody can read part of a stretch")
    with ExitStack() as stack:
        written = stack.enter_context(files.written(file)) if isinstance(file, Path) else file
        for left in reversed(range(TRIES)):
            try:
                _pack(path, written)
                break
            except FileNotFoundError:
                # Its tables are in other files once it has ended, or goes on.
                if not left:
                    raise
                written.seek(0)
                written.truncate()


def _pack(path: Path, file: IO[bytes]) -> None:
    held = {}
    for found in sorted(path.rglob("*")):
        parts = found.relative_to(path).parts
        if _of_a_run(parts) and not _left_out(parts) and found.is_file() and not found.is_symlink():
            held[found] = "/".join((path.name, *parts))
    if len(held) > MAX_FILES:
        raise ValueError(
            f"{path.name} has {len(held):,} files, and a .zip file of a run at most {MAX_FILES:,}: hand on its folder"
        )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as packed:
        for found, written in held.items():
            packed.write(found, written)


def _of_a_run(parts: Parts) -> bool:
    """Whether a file has a name that run folders have, or folders of runs."""
    if _says_what_is_missing(parts[-1]):
        return len(parts) == 1
    return 1 <= len(parts) <= 2 and parts[-1] in FILES and all(fits(part) for part in parts)


def _says_what_is_missing(name: str) -> bool:
    """Whether a file says how a folder of runs ended that lacks some: without it, those that it has look like all."""
    return re.fullmatch(rf"{re.escape(COMPUTING)}[0-9a-f]{{8}}", name) is not None


def _left_out(parts: Parts) -> bool:
    """What is made again wherever a run lies, goes on only where it was made, or is of a file system."""
    if _says_what_is_missing(parts[-1]) and len(parts) <= 2:
        return False
    return parts[-1] == PREVIEW or CHECKPOINT in parts[:-1] or any(p[0] == "." or p == "__MACOSX" for p in parts)


def take_in(file: Path | IO[bytes], check: Callable[[Path], Any], place: Path | None = None) -> str:
    """Put the run in a .zip file into the library; returns the name that it got there.

    `check`: reads a folder as a run, and raises ValueError where it is none.  Raises ValueError, and leaves nothing
    behind, where the file is damaged, holds anything but one run, or is larger than it says or the library may be.
    """
    folder = home(place)
    with ExitStack() as stack:
        source = stack.enter_context(files.opened(file)) if isinstance(file, Path) else file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            bounded: Any = _InPieces(source)
            packed = stack.enter_context(zipfile.ZipFile(bounded))
            held, name = _looked_through(packed)
            files.check_room(folder, sum(info.file_size for info in held.values()), "what this .zip file holds")
            draft = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".import-")))
            (draft / name).mkdir()
            for parts, info in held.items():
                _unpack(packed, info, (draft / name).joinpath(*parts))
        except (zipfile.BadZipFile, EOFError, zlib.error, struct.error, NotImplementedError, RuntimeError) as e:
            raise ValueError(f"{WRONG}: it is no .zip file, or damaged") from e
        except OSError as e:
            raise files.unwritten(folder, e) from e
        try:
            name = _taken_out(draft, name)
            _end(draft / name)
            if not files_of(draft / name):
                raise ValueError("it holds no run")
            if problem := entry(name, draft).problem:
                raise ValueError(problem.rstrip("."))
            if (draft / name / LABEL).exists():
                # Who had it may have wanted to keep it; here the size limit goes by what is pinned here.
                pin(name, False, draft)
            _check_alike(draft / name)
            check(draft / name)
            # An empty folder gives way to a full one that takes its name.
            return (draft / name).rename(unique(folder, name)).name
        except OSError as e:
            raise files.unwritten(folder, e) from e
        except ValueError as e:
            raise ValueError(f"{WRONG}: {str(e).replace(f'{draft}/', '')}") from e


def _taken_out(draft: Path, name: str) -> str:
    """Take a run out of a folder that holds nothing else; the name of its own.

    A training of one kind of attention is such a folder, as the page makes it; a grid has tables beside its runs.
    """
    outer, (inner, *others) = draft / name, sorted((draft / name).iterdir())
    if others or not inner.is_dir() or not files_of(inner):
        return name
    if (inner / "run.json").exists() and "recipe" in files.record(inner / "run.json", dict[str, Any], "that of a run"):
        return name
    own, outer = slug(inner.name), outer.rename(draft / ".outer")
    (outer / inner.name).rename(draft / own)
    outer.rmdir()
    return own


def _check_alike(path: Path) -> None:
    """Raises ValueError where a folder of runs is no grid: they are of several texts or models."""
    if (path / "run.json").exists():
        return
    abouts = [files.record(file, dict[str, Any], "that of a run") for file in sorted(path.glob("*/run.json"))]
    specs = [about.get("spec") or {} for about in abouts]
    if len({(str(spec.get("model")), str(spec.get("text"))) for spec in specs}) > 1:
        raise ValueError("it holds several runs, of other texts or models: pack each of them by itself")


class _InPieces:
    """A file that gives no more at a time than the list of the files of a run takes: zipfile makes an object of each
    of them before anybody can count them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, count: int = -1) -> bytes:
        """The next bytes.  Raises ValueError where there are more than a list of files has."""
        data = self._file.read(MAX_NAMES + 1 if count < 0 else min(count, MAX_NAMES + 1))
        if len(data) > MAX_NAMES:
            raise ValueError(f"{WRONG}: it holds more files than any run has")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _looked_through(packed: zipfile.ZipFile) -> tuple[dict[Parts, zipfile.ZipInfo], str]:
    """The files that are to be unpacked, and the name of their folder.  Raises ValueError where they are no run's."""
    listed = packed.infolist()
    if len(listed) > MAX_FILES:
        raise ValueError(f"{WRONG}: it holds {len(listed):,} files, and a run has at most {MAX_FILES:,}")
    found: dict[Parts, zipfile.ZipInfo] = {}
    for info in listed:
        parts = _parts(info)
        if info.is_dir() or _left_out(parts):
            continue
        if parts in found:
            raise ValueError(f"{WRONG}: it holds {quoted('/'.join(parts))} twice")
        found[parts] = info
    tops = {parts[0] if len(parts) > 1 else "" for parts in found}
    top = tops.pop() if len(tops) == 1 else ""
    held = {parts[1:] if top else parts: info for parts, info in found.items()}
    for parts in held:
        if not _of_a_run(parts) or parts[:-1] in held:
            raise ValueError(f"{WRONG}: no run has a file {quoted('/'.join(parts))}")
    if not held:
        raise ValueError(f"{WRONG}: it holds no run")
    total, stored = (sum(getattr(i, size) for i in held.values()) for size in ("file_size", "compress_size"))
    if total > limit():
        raise ValueError(
            f"{WRONG}: it holds {total / 1e9:,.1f} GB, and the library {limit() / 1e9:g} GB: set SINKSCOPE_RUNS_GB"
        )
    if total > max(SMALL, RATIO * stored):
        raise ValueError(f"{WRONG}: it would grow to {total / max(1, stored):,.0f} times its size, and no run does")
    return held, slug(top or "imported")


def _parts(info: zipfile.ZipInfo) -> Parts:
    """The path of a file in a .zip file.  Raises ValueError where it leads elsewhere, or is no plain file's."""
    # As it stands there: zipfile cuts names at a zero byte.
    name = info.orig_filename
    if name[:1] in ("/", "\\") or name[1:2] == ":" or ".." in name.replace("\\", "/").split("/"):
        raise ValueError(f"{WRONG}: its file {quoted(name)} would lie outside of the library")
    parts = tuple(name.removesuffix("/").split("/"))
    if not all(part.isprintable() and part.strip(". ") and not {*part} & {*'\\:*?"<>|'} for part in parts):
        raise ValueError(f"{WRONG}: its file {quoted(name)} has a name that no file of a run has")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "no file"
        raise ValueError(f"{WRONG}: {quoted(name)} is {what}")
    if info.flag_bits & 1:
        raise ValueError(f"{WRONG}: it is locked by a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{WRONG}: {quoted(name)} is packed in a way that is not read here: pack it with deflate")
    return parts


def _unpack(packed: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Write one file, of exactly the size that it was said to have."""
    path.parent.mkdir(exist_ok=True)
    count = 0
    with packed.open(info) as source, open(path, "xb") as f:
        while piece := source.read(PIECE):
            f.write(piece)
            count += len(piece)
        f.flush()
        os.fsync(f.fileno())
    if count != info.file_size:
        raise zipfile.BadZipFile


def _end(path: Path) -> None:
    """Whoever wrote a run that was still written when it was packed does not write it here."""
    for file in (*path.glob("run.json"), *path.glob("*/run.json"), *path.glob(f"{COMPUTING}*")):
        about = files.record(file, dict[str, Any], "that of a run")
        if about.pop("process", None) is not None or about.get("status") == RUNNING:
            # The files of a training may stand as a kill leaves them: maps written, and their curves not yet.
            ended = "killed" if "recipe" in about else "interrupted"
            about["status"] = ended if about.get("status") == RUNNING else about.get("status")
            files.write(file, json.dumps(about, indent=2) + "\n")
