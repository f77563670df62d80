"""Files that people hand around and disks that fill up: each kind is read by a schema, and written beside and renamed.

What is wrong with which file is one sentence (ValueError).  What a library says of foreign bytes is never passed on:
numpy's advice is to trust them.  Knows nothing of what the files are of.
"""

import io
import json
import math
import os
import platform
import re
import shutil
import stat
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import advice

MAX_JSON = 2**26
"""Bytes of a JSON file, or of a table of text, at most."""
MAX_NUMBERS = 2**33
"""Bytes of an array that is read into memory, at most."""
RESERVE = 2**16
"""Bytes that are kept free for the last words of who writes."""

DRAFT = re.compile(r"\..+\.(?:([0-9a-f]{8})-)?([0-9]{1,9})(?:-[0-9]+-[0-9a-f]+)?\.part")
"""What drafts are called: with the machine and the number of the process that writes; those of older versions without
a machine."""
STILL = 600.0
"""Seconds for which a draft stays of a process that is no longer seen: it may be in another container of one name."""
UNTOUCHED = 86_400
"""Seconds after which what another machine seems to write is taken for what nobody writes."""

T = TypeVar("T")


def cache_folder() -> Path:
    """Where converted models lie: $SINKSCOPE_CACHE, or a folder in the user's cache."""
    if named := os.environ.get("SINKSCOPE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sinkscope"


def contents(path: Path, most: int = MAX_JSON) -> bytes:
    """All bytes of a regular file of at most `most`.  Raises ValueError where it is none."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is not a regular file: name another")
        if found.st_size > most:
            raise ValueError(f"{path} has {found.st_size / 1e6:,.0f} MB, more than such a file ever has: name another")
        with open(path, "rb") as f:
            # Python takes all that is asked for before it reads.
            return f.read(min(most, os.fstat(f.fileno()).st_size))
    except OSError as e:
        raise ValueError(f"{path} cannot be read ({e.strerror}): check the path and who may read it") from e


def record(path: Path, kind: type[T], what: str) -> T:
    """A JSON file as what it should be: a dataclass, or anything else that msgspec knows.

    `what` is in it, in a few words.  Raises ValueError with what is wrong where.
    """
    return decoded(contents(path), kind, f"{path} is not {what}")


def decoded(data: bytes | str, kind: type[T], wrong: str) -> T:
    """JSON as what it should be; `wrong` begins the sentence of what it is not."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as e:
        raise ValueError(f"{wrong}: it is nested too deeply") from e
    except (msgspec.MsgspecError, ValueError) as e:
        raise ValueError(f"{wrong}: {' '.join(str(e).split())[:300]}") from e


def lines(data: bytes) -> list[bytes]:
    """Lines as a file has them, ended by newlines and nothing else: U+2028 and NEL are characters of a text."""
    return data.replace(b"\r\n", b"\n").split(b"\n")


class Kind(NamedTuple):
    """What an array must be: one of some kinds of numbers (numpy's letters), and its sizes, None where any will do."""

    numbers: str
    shape: tuple[int | None, ...]

    def check(self, dtype: np.dtype, shape: tuple[int, ...], where: str) -> None:
        """Raises ValueError where an array is of another kind; `where`: what it is called in that sentence."""
        fits = len(shape) == len(self.shape) and all(b in (None, a) for a, b in zip(shape, self.shape, strict=True))
        if dtype.kind in self.numbers and dtype.names is None and fits:
            return
        names = {"f": "fractions", "i": "whole numbers", "u": "whole numbers"}
        wanted = f"{names[self.numbers[0]]} [{', '.join('any' if n is None else str(n) for n in self.shape)}]"
        raise ValueError(f"{where} holds {dtype} {list(shape)} and not {wanted}: it is damaged, or of something else")


def array(path: Path, kind: Kind, *, mapped: bool = False) -> NDArray:
    """A .npy file; `mapped`: left on disk.  Raises ValueError where it is none of this kind, or not whole."""
    if not mapped:
        return _array(contents(path, MAX_NUMBERS), kind, str(path))
    with opened(path) as f:
        shape, fortran, dtype = _header(f, str(path))
        kind.check(dtype, shape, str(path))
        _whole(os.fstat(f.fileno()).st_size - f.tell(), shape, dtype, str(path))
        return np.memmap(f, dtype, "r", f.tell(), shape, "F" if fortran else "C")


def _array(data: bytes, kind: Kind | None, where: str) -> NDArray:
    f = io.BytesIO(data)
    shape, fortran, dtype = _header(f, where)
    if kind is not None:
        kind.check(dtype, shape, where)
    _whole(len(data) - f.tell(), shape, dtype, where)
    flat = np.frombuffer(data, dtype, math.prod(shape), f.tell())
    return flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


def npy(data: bytes, where: str) -> NDArray:
    """The array in the bytes of a .npy file, of whatever numbers."""
    return _array(data, None, where)


def _header(f: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(f)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(f)
    except Exception as e:
        # Numpy evaluates a header as Python, and foreign bytes may raise anything there.
        raise ValueError(f"{where} is not a .npy file, or its header is damaged: write one with numpy.save") from e
    if dtype.hasobject or dtype.itemsize == 0 or min(shape, default=1) < 0:
        raise ValueError(f"{where} holds no plain numbers: write such with numpy.save")
    return shape, fortran, dtype


def _whole(left: int, shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    needed = math.prod(shape) * dtype.itemsize
    if left != needed:
        how = "cut short" if left < needed else "too long"
        raise ValueError(
            f"{where} is {how} ({left:,} bytes of numbers, {needed:,} in its header): write it again with numpy.save"
        )


def arrays(path: Path, kinds: dict[str, Kind], *, some: bool = False) -> dict[str, NDArray]:
    """Those arrays of a .npz file; `some`: as many of them as it has.

    Raises ValueError where it is none, or lacks an array, or one is of another kind.
    """
    with opened(path) as f:
        try:
            with zipfile.ZipFile(f) as held:
                there = {i.filename.removesuffix(".npy"): i for i in held.infolist()}
                wanted = {name: there[name] for name in kinds if name in there}
                if any(i.file_size > MAX_NUMBERS for i in wanted.values()):
                    raise ValueError("larger than any")
                found = {name: held.read(i) for name, i in wanted.items()}
        except Exception as e:
            # Every part of a zip file has errors of its own.
            raise ValueError(f"{path} is not a .npz file that can be read: it is cut short, or damaged") from e
    if missing := [] if some else sorted(kinds.keys() - found.keys()):
        raise ValueError(f"{path} has no array {missing[0]}: it is damaged, or of something else")
    return {name: _array(data, kinds[name], f"{name} of {path}") for name, data in found.items()}


def opened(path: Path) -> IO[bytes]:
    """A regular file, open to read.  Raises ValueError where there is none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{path} is not a regular file: name another")
        return open(path, "rb")
    except OSError as e:
        raise ValueError(f"{path} cannot be read ({e.strerror}): check the path and who may read it") from e


class Unwritten(OSError, ValueError):
    """Something could not be written; says what to do in one sentence."""


def unwritten(path: Path, e: OSError) -> Unwritten:
    """The sentence for what a system says."""
    if isinstance(e, Unwritten):
        return e
    return Unwritten(f"{path} cannot be written ({e.strerror or e}): {advice(e, 'name another place')}")


def draft_of(path: Path) -> Path:
    """Where a file is written before it takes its name; the name of that says who writes it."""
    # Two tabs of one server may write the same file at once, and one of them two files whose long names begin alike:
    # none may see another's draft.
    who = f"{_machine()}-{os.getpid()}-{threading.get_ident()}-{hash(path) & 0xFFFFFFFF:x}"
    return path.with_name(f".{path.name[:50]}.{who}.part")


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def is_left(draft: Path) -> bool:
    """Whether a file is a draft of a process that is dead: it wrote on this machine, and is not any more; or on another
    one, or one that had another name, and has written nothing for a day."""
    import psutil

    if (found := DRAFT.fullmatch(draft.name)) is None:
        return False
    machine, pid = found.groups()
    try:
        changed = draft.stat().st_mtime
    except OSError:
        return False
    try:
        # Numbers of processes are given again: the one that has it now may have begun later.
        alive = psutil.Process(int(pid)).create_time() < changed + 2
    except (OverflowError, psutil.NoSuchProcess):
        alive = False
    except psutil.Error:
        alive = True
    return not alive and time.time() - changed > (STILL if machine == _machine() else UNTOUCHED)


@contextmanager
def written(path: Path) -> Generator[IO[bytes]]:
    """A file to write, which takes its name when it is whole; what is cut off leaves what was there before.

    Raises ValueError where the disk does not take it.
    """
    draft = draft_of(path)
    try:
        try:
            with open(draft, "wb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            os.replace(draft, path)
        except OSError as e:
            raise unwritten(path, e) from e
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise


def write(path: Path, text: str) -> None:
    """Put a text into a file, whole or not at all."""
    with written(path) as f:
        f.write(text.encode())


def safetensors_head(
    tensors: Mapping[str, tuple[str, Sequence[int], int]], said: Mapping[str, str] | None = None, aligned: int = 8
) -> bytes:
    """What a file of safetensors begins with; the bytes of its tensors follow, one after the other.

    `tensors`: kind, shape and bytes of each; `said`: what else stands there; `aligned`: bytes of which the length of
    this is a multiple.  Whoever writes the tensors from where they lie needs no second copy of them all, as the
    library's own writer does.
    """
    header: dict[str, Any] = {"__metadata__": dict(said)} if said else {}
    at = 0
    for name, (kind, shape, size) in tensors.items():
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % aligned)
    return len(text).to_bytes(8, "little") + text


def new_folder(path: Path, what: str = "something") -> None:
    """Make a folder that holds nothing.  Raises ValueError where it does, or cannot be made.

    Hidden files do not count: some systems put them everywhere.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise unwritten(path, e) from e
    except ValueError as e:
        raise ValueError(f"{path} cannot be written (it is no path): name another place") from e
    check_empty(path, what)


def check_empty(path: Path, what: str = "something") -> None:
    """Raises ValueError where a folder that is to be a new one holds something that is not hidden, or is a file."""
    try:
        there = sorted(p.name for p in path.iterdir() if not p.name.startswith(".")) if os.path.lexists(path) else []
    except OSError as e:
        raise unwritten(path, e) from e
    if there:
        raise ValueError(f"{path} holds {what} already ({there[0]}): choose another folder for --out")


def check_room(path: Path, needed: int, what: str) -> None:
    """Raises ValueError where the disk has less than `needed` bytes, and a little, to spare under a path."""
    path = Path(path).absolute()
    there = next(p for p in (path, *path.parents) if os.path.exists(p))
    if (needed := needed + RESERVE) > (free := shutil.disk_usage(there).free):
        raise ValueError(
            f"{what} needs {_size(needed, math.ceil)} on disk, and {there} has {_size(free, math.floor)}: make room, "
            "ask for less, or name another folder"
        )


def reserve(folder: Path) -> None:
    """Keep a little room in a folder, for the last words of who writes there.  Raises OSError where there is none."""
    try:
        (folder / ".reserve").write_bytes(os.urandom(RESERVE))
    except OSError:
        release(folder)
        raise


def release(folder: Path) -> None:
    """Give that room back."""
    with suppress(OSError):
        (folder / ".reserve").unlink()


def _size(count: int, rounded: Callable[[float], int]) -> str:
    """Rounded so that what does not fit never looks as if it did."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{rounded(10 * count / unit) / 10:,.1f} {name}"


def mapped(path: Path, shape: Sequence[int]) -> np.memmap:
    """A new .npy file of float32 zeros to write into, whose room on disk is taken first: a map without it kills the
    process when the disk is full.  Raises ValueError where there is not enough."""
    dtype, shape = np.dtype(np.float32), tuple(int(n) for n in shape)
    size = math.prod(shape) * dtype.itemsize
    try:
        with open(path, "xb") as f:
            np.lib.format.write_array_header_1_0(
                f, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            )
            begin = f.tell()
            f.flush()
            allocate(f, begin + size)
    except OSError as e:
        with suppress(OSError):
            os.unlink(path)
        raise unwritten(path, e) from e
    return np.memmap(path, dtype, "r+", begin, shape)


def allocate(f: IO[bytes], size: int) -> None:
    """Take the room of a file on disk; raises OSError where there is not so much."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(f.fileno(), 0, size)
        return
    f.seek(0, os.SEEK_END)
    for _ in range(f.tell(), size, 2**20):
        f.write(bytes(min(2**20, size - f.tell())))
