"""Checkpoints of a run: what is needed to go on, in two generations, of which a kill spoils at most the one being made.

A generation is a small JSON file, written last, that names files of tensors (safetensors) and their checksums.  Windows
that only grow are written as far as they are new: a generation then names the files of those before it, too.  What the
tensors are of is not known here.
"""

import contextlib
import json
import os
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import files
from ..engine.layers.slots import Slots, Window

GENERATIONS = 2
EVERY = 30.0
"""Seconds from the end of one checkpoint to the next."""
PIECES = 16
"""Pieces of a window from which on small ones are put together."""
SPARE = 2**26
"""Bytes of the disk that are left to what the run itself has still to write."""
KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls the kinds of numbers."""


@dataclass(frozen=True)
class Checkpoint:
    """What was written together: plain values, and tensors by name, on the CPU."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass
class _Piece:
    """Tokens `first` … `stop` − 1 of a window, and the file in which they stand."""

    file: str
    first: int
    stop: int


@dataclass
class _Manifest:
    about: dict[str, Any]
    checks: dict[str, int]
    """Checksums of all files that are named."""
    windows: dict[str, list[_Piece]]
    """The pieces of each window, oldest first; of one that held nothing there are none."""
    spans: dict[str, tuple[int, int]]
    """Of each window, the first token held and the one behind the last."""


class Checkpoints:
    """The generations of a run, in the folder `checkpoint` of its own."""

    def __init__(self, run_folder: Path) -> None:
        self.path = Path(run_folder) / "checkpoint"
        self._windows: dict[str, tuple[weakref.ref[Slots], list[_Piece]]] = {}
        """Of each window, whose it was when it was last written, and the pieces that have it."""
        self._checks: dict[str, int] = {}

    def write(self, about: Mapping[str, Any], tensors: Mapping[str, Tensor | Window]) -> None:
        """Write a generation, and forget all but the one before it; `about` is anything that JSON can hold.

        Raises ValueError where the disk does not take it; the generations before it stay.
        """
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as e:
            raise files.unwritten(self.path, e) from e
        number = max(self._numbers(), default=0) + 1
        names = f"{number:08}.safetensors", f"{number:08}-windows.safetensors"
        windows = {name: t for name, t in tensors.items() if isinstance(t, Window)}
        pieces = {name: self._pieces(name, window, names[1]) for name, window in windows.items()}
        whole = {n: t.tensor if isinstance(t, Window) else t for n, t in tensors.items() if not pieces.get(n)}
        new = {name: _cut(windows[name], had[-1]) for name, had in pieces.items() if had and had[-1].file == names[1]}
        size = sum(t.numel() * t.element_size() for t in chain(whole.values(), new.values()))
        files.check_room(self.path, size + SPARE, "a checkpoint")
        spans = {name: (w.first, w.first + w.tensor.shape[1]) for name, w in windows.items()}
        try:
            made = {name: _save(self.path / name, held) for name, held in zip(names, (whole, new), strict=True) if held}
            used = {*made, *(piece.file for had in pieces.values() for piece in had)}
            checks = {name: (self._checks | made)[name] for name in sorted(used)}
            body = json.dumps(asdict(_Manifest(dict(about), checks, pieces, spans)))
            files.write(self.path / f"{number:08}.json", f"{zlib.crc32(body.encode())}\n{body}\n")
        except BaseException:
            _remove(self.path / name for name in names)
            raise
        _sync(self.path)
        self._windows = {name: (weakref.ref(windows[name].source), had) for name, had in pieces.items()}
        self._checks = checks
        self._tidy()

    def _pieces(self, name: str, window: Window, file: str) -> list[_Piece]:
        """The pieces that a window has, the last of them in the file that is about to be written if any of it is
        new."""
        source, had = self._windows.get(name, (lambda: None, []))
        first, stop = window.first, window.first + window.tensor.shape[1]
        # A window puts a token at a position once and for all, so what was written of the same one still holds.
        kept = [p for p in had if first < p.stop and p.first < stop] if source() is window.source else []
        begin = max(first, kept[-1].stop) if kept else first
        if begin == stop:
            return kept
        if len(kept) >= PIECES:
            # A window that is written n times is rewritten about log n times.
            while kept and kept[-1].stop - kept[-1].first <= stop - begin:
                begin = max(first, kept.pop().first)
        return [*kept, _Piece(file, begin, stop)]

    def newest(self) -> Checkpoint | None:
        """The newest generation that is whole; None where there is none."""
        return next(self.generations(), None)

    def about(self) -> dict[str, Any]:
        """What the newest generation says of itself, whose tensors are not looked at; empty where there is none."""
        for number in sorted(self._numbers(), reverse=True):
            with contextlib.suppress(ValueError, OSError):
                return self._manifest(number).about
        return {}

    def generations(self) -> Iterator[Checkpoint]:
        """All generations that are whole, newest first."""
        for number in sorted(self._numbers(), reverse=True):
            # Damaged in whatever way: the one before it may be whole.
            with contextlib.suppress(ValueError, OSError, KeyError, RuntimeError, SafetensorError):
                yield self._read(number)

    def remove(self) -> None:
        """Forget all generations."""
        self._windows, self._checks = {}, {}
        _remove([*self.path.glob("*.json"), *self.path.glob("*"), *self.path.glob(".*.part")])
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _numbers(self) -> list[int]:
        return [int(p.stem) for p in self.path.glob("*.json") if p.stem.isdigit()]

    def _manifest(self, number: int) -> _Manifest:
        file = self.path / f"{number:08}.json"
        check, _, body = files.contents(file).rstrip(b"\n").partition(b"\n")
        if str(zlib.crc32(body)).encode() != check:
            raise ValueError(f"{file} is damaged")
        return files.decoded(body, _Manifest, f"{file} is no checkpoint")

    def _read(self, number: int) -> Checkpoint:
        manifest = self._manifest(number)
        with contextlib.ExitStack() as stack:
            opened: dict[str, Any] = {}
            for name, check in manifest.checks.items():
                if Path(name).name != name or _check(self.path / name) != check:
                    raise ValueError(f"{self.path / name} is damaged")
                opened[name] = stack.enter_context(safe_open(self.path / name, "pt"))
            own = opened.get(f"{number:08}.safetensors")
            tensors = {} if own is None else {name: own.get_tensor(name) for name in list(own.keys())}
            for name, pieces in manifest.windows.items():
                first, stop = manifest.spans[name]
                parts = [
                    opened[p.file].get_tensor(name)[:, max(0, first - p.first) : min(stop, p.stop) - p.first]
                    for p in pieces
                ]
                if parts:
                    tensors[name] = torch.cat(parts, 1)
        return Checkpoint(manifest.about, tensors)

    def _tidy(self) -> None:
        """Remove what the newest generations do not name."""
        numbers = sorted(self._numbers())
        kept = {f"{number:08}.json" for number in numbers[-GENERATIONS:]}
        for number in numbers[-GENERATIONS:]:
            with contextlib.suppress(ValueError):
                kept |= self._manifest(number).checks.keys()
        # Generations go before what they name.
        there = sorted(self.path.glob("*"), key=lambda p: p.suffix != ".json")
        _remove(path for path in there if path.name not in kept)


class Saver:
    """Writes checkpoints in a thread of its own, so that whoever reads is hardly held up."""

    def __init__(self, checkpoints: Checkpoints, tell: Callable[[str], None]) -> None:
        """`tell`: is called, in the thread that saves, with a sentence where one could not be written."""
        self.checkpoints, self._tell = checkpoints, tell
        self._thread: threading.Thread | None = None
        self._wrong, self._last, self._took = "", time.monotonic(), 0.0

    def save(self, make: Callable[[], tuple[Mapping[str, Any], Mapping[str, Tensor | Window]]]) -> None:
        """Begin to write what `make` gives, if the last time is long enough ago: half a minute, and so long that
        writing takes no more than a fiftieth of the time."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._complain()
        if time.monotonic() - self._last >= max(EVERY, 50 * self._took):
            about, tensors = make()
            self._thread = threading.Thread(target=self._write, args=(about, tensors), name="checkpoint")
            self._thread.start()

    def close(self, make: Callable[[], tuple[Mapping[str, Any], Mapping[str, Tensor | Window]]] | None = None) -> str:
        """Wait for what is being written, and then write what `make` gives; a sentence where that could not be."""
        if self._thread is not None:
            self._thread.join()
        if make is not None:
            self._write(*make())
        return self._wrong

    def _complain(self) -> None:
        if self._wrong:
            self._tell(self._wrong)
            self._wrong = ""

    def _write(self, about: Mapping[str, Any], tensors: Mapping[str, Tensor | Window]) -> None:
        began = time.monotonic()
        try:
            self.checkpoints.write(about, tensors)
            self._wrong = ""
        except Exception as e:
            # Whatever it is, the run has no part in it.
            self._wrong = f"no checkpoint could be written, and the run goes on without: {e}"
        self._last = time.monotonic()
        self._took = self._last - began


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _cut(window: Window, piece: _Piece) -> Tensor:
    return window.tensor[:, piece.first - window.first :]


def _save(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Write tensors as safetensors has them, and give the checksum of the file.

    The library's own writer also holds the other threads up meanwhile.
    """
    head = files.safetensors_head(
        {name: (KINDS[t.dtype], t.shape, t.numel() * t.element_size()) for name, t in tensors.items()}
    )
    check = 0
    with files.written(path) as f:
        # One without numbers may have strides that torch does not view as bytes.
        for data in chain((head,), (_bytes(t) for t in tensors.values() if t.numel())):
            check = zlib.crc32(data, check)
            f.write(data)
    return check


def _bytes(t: Tensor) -> memoryview:
    return memoryview(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def _check(path: Path) -> int:
    check = 0
    with files.opened(path) as f:
        while data := f.read(2**22):
            check = zlib.crc32(data, check)
    return check


def _sync(folder: Path) -> None:
    """Let the names of files last, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
