"""Runs that were deleted, which can be brought back for a day, and the limit of what the library may hold.

A deleted run lies in .trash/WHEN/NAME of the library.  Where the library grows above its limit, what was deleted goes
first, and then the oldest runs that nobody pinned and nobody writes.
"""

import math
import os
import re
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .. import files
from ..settings import quoted
from .claim import claimed
from .held import files_of, several, strangers
from .library import Entry, entries, entry, find, fits, home, one_line, unique

TRASH, FREED = ".trash", ".freed"
DAY = 86_400
"""Seconds for which a deleted run can be brought back."""
USUAL = 4.0
"""Gigabytes that the library may hold, where $SINKSCOPE_RUNS_GB does not say."""


def delete(name: str, place: Path | None = None) -> str:
    """Delete a run; returns what `undo` brings it back by.

    Raises ValueError where there is none of that name, somebody writes it, or it cannot be moved.
    """
    with _claimed(find(name, place)) as claims:
        if entry(name, place).live:
            raise ValueError(f"{name} is still being written: stop it first, then delete it")
        return _throw(find(name, place), claims)


@contextmanager
def _claimed(path: Path) -> Generator[list[Path]]:
    """While it is held nobody begins to write a run, or one of several in its folder; the files that say so.

    Raises ValueError where somebody does just now.
    """
    with ExitStack() as held:
        claims = list[Path]()
        for folder in (path, *((path / run).parent for run in several(files_of(path)))):
            # Where no file can be written nobody goes on with a run, and a disk that is full is to become less so.
            with suppress(files.Unwritten):
                claims.append(held.enter_context(claimed(folder)))
        yield claims


def _throw(path: Path, claims: Sequence[Path]) -> str:
    """Move a run into the trash, where nobody claims it; returns what `undo` brings it back by."""
    # The clock may have been ahead when others were deleted: the last one is the first that comes back all the same.
    newest = max((int(deleted.name) for deleted in _deleted(path.parent)), default=0)
    when = str(max(time.time_ns(), newest + 1))
    place = path.parent / TRASH / when
    try:
        place.mkdir(parents=True)
        path.rename(place / path.name)
    except OSError as e:
        with suppress(OSError):
            place.rmdir()
        raise ValueError(f"{path} cannot be deleted ({e.strerror}): check who may write there") from e
    for claim in claims:
        with suppress(OSError):
            (place / path.name / claim.relative_to(path)).unlink()
    return when


def trashed(place: Path | None = None) -> list[tuple[str, str]]:
    """What can be brought back: the word for `undo` and the name of each run, the newest first."""
    return [(path.parent.name, path.name) for path in reversed(_trash(place))]


def _trash(place: Path | None) -> list[Path]:
    """Deleted runs, the oldest first."""
    deleted = sorted(_deleted(home(place)), key=lambda p: int(p.name))
    return [path for when in deleted for path in _inside(when) if fits(path.name)]


def _deleted(folder: Path) -> list[Path]:
    return [path for path in _inside(folder / TRASH) if path.name.isdecimal()]


def _age(when: Path) -> float:
    """Seconds since a run was deleted into this folder, whose name may only say in which order."""
    moment = int(when.name) / 1e9
    with suppress(OSError):
        moment = min(moment, when.stat().st_mtime)
    return time.time() - moment


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where there is none, since another process may just have removed it."""
    with suppress(OSError):
        return list(folder.iterdir())
    return []


def undo(when: str, place: Path | None = None) -> str:
    """Bring a deleted run back; returns its name, which is another where its own was given again.

    Raises ValueError where it is gone for good.
    """
    for path in _trash(place):
        if path.parent.name == when:
            break
    else:
        raise ValueError(f"what was deleted as {quoted(when)} cannot be brought back: it is gone for good")
    back = unique(home(place), path.name)
    try:
        # An empty folder gives way to a full one that takes its name.
        path.rename(back)
    except OSError as e:
        back.rmdir()
        raise ValueError(f"{path} cannot be brought back ({e.strerror}): check who may write there") from e
    with suppress(OSError):
        # Whatever else lies there stays.
        path.parent.rmdir()
    return back.name


def limit() -> int:
    """Bytes that the library may hold.  Raises ValueError where $SINKSCOPE_RUNS_GB is no number of gigabytes."""
    said = os.environ.get("SINKSCOPE_RUNS_GB") or str(USUAL)
    try:
        size = float(said)
    except ValueError:
        size = math.nan
    if not 0 < size < 1e6:
        raise ValueError(f"SINKSCOPE_RUNS_GB must be a number of gigabytes such as {USUAL:g}, not {quoted(said)}")
    return int(size * 1e9)


def free(place: Path | None = None, keep: str = "") -> str:
    """Remove what was deleted a day ago, and then as much as the limit asks; what it did, as a sentence, or nothing.

    `keep`: a run that stays, since it was just asked for.  Raises ValueError where the limit is no number.
    """
    most, folder = limit(), home(place)
    _sweep(folder)
    runs = entries(place)
    gone = {path: _size(path) for path in _trash(place)}
    total = sum(e.size for e in runs) + sum(gone.values())
    for path, size in gone.items():
        if total > most or _age(path.parent) > DAY:
            _remove(path.parent)
            total -= size
    freed: list[Entry] = []
    for e in sorted(runs, key=lambda e: e.changed):
        if total <= most:
            break
        if e.label.pinned or e.live or not e.kind or e.name == keep or strangers(e.path):
            # What is damaged, or has a person's own files in it, only a person deletes.
            continue
        with suppress(ValueError), _claimed(find(e.name, place)) as claims:
            # Others are listed for as long as their tables are read, and somebody may have gone on with it meanwhile.
            if (now := entry(e.name, place)).live or now.label.pinned:
                continue
            # Moved first, so that nobody opens half of a run.
            _remove(folder / TRASH / _throw(e.path, claims))
            total -= e.size
            freed.append(e)
    if not freed:
        return ""
    names = ", ".join(e.title for e in freed[:3]) + (" and others" if len(freed) > 3 else "")
    said = (
        f"The library may hold {most / 1e9:g} GB, so {len(freed)} old {'run' if len(freed) == 1 else 'runs'} "
        f"({names}; {sum(e.size for e in freed) / 1e9:,.2f} GB) had to go: pin those that are to stay, or set "
        "SINKSCOPE_RUNS_GB"
    )
    with suppress(ValueError):
        files.write(folder / FREED, said)
    return said


def last_freed() -> str:
    """What `free` said last, for a day: whoever looks at the library was not there when it was said."""
    file = home() / FREED
    with suppress(OSError, ValueError):
        if time.time() - file.stat().st_mtime < DAY:
            return one_line(files.contents(file, 2**12).decode(errors="replace"), 2**10)
    return ""


def sweep() -> None:
    """Remove what dead processes left in the library, and nothing that is a run, or was one."""
    _sweep(home())


def _sweep(folder: Path) -> None:
    """Remove what a day ago was begun and never written: folders without a file of a run, and what an import left that
    was killed; and drafts of processes that were."""
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                if path.is_symlink() or not path.is_dir():
                    continue
                if fits(path.name):
                    _sweep_drafts(path)
                if time.time() - path.stat().st_mtime < DAY:
                    continue
                if path.name.startswith(".import-"):
                    _remove(path)
                elif re.match(r"\d{8}-\d{6}-", path.name):
                    if [p.name for p in path.iterdir()] == [".reserve"]:
                        files.release(path)
                    # Only where it is empty.
                    path.rmdir()


def _sweep_drafts(path: Path) -> None:
    """Remove drafts of dead processes from a run folder, from those of runs in it, and from their checkpoints."""
    for pattern in (".*.part", "*/.*.part", "*/*/.*.part"):
        for draft in path.glob(pattern):
            with suppress(OSError):
                inside = draft.relative_to(path).parts
                linked = any(path.joinpath(*inside[:count]).is_symlink() for count in range(1, len(inside) + 1))
                if not linked and draft.is_file() and files.is_left(draft):
                    draft.unlink()


def _size(path: Path) -> int:
    """Bytes in a folder, but for those that another process removes meanwhile."""
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                size += os.stat(os.path.join(folder, name), follow_symlinks=False).st_size
    return size


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
