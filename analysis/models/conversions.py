"""Models converted once from GGUF files, kept in the cache with a checksum of each file and made again when damaged.

A file that has not been touched since it was last found whole is taken for whole; all others are read again.  Only one
process converts a model at a time, and removes what killed ones left.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from filelock import FileLock

from .. import files
from .progress import Tell, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Made = tuple[PreTrainedModel, PreTrainedTokenizerBase | None]

MANIFEST = "conversion.json"
WORTH = 2**24
"""Bytes of a GGUF file from which on its conversion is kept: a smaller one is converted within seconds."""
MOST = 4
"""Conversions that are kept, beside that of the embedded model: those that were used last."""
HOUR = 3600


@dataclass(frozen=True)
class _File:
    """A file as it was when it was whole."""

    stamp: tuple[int, int, int]
    """Size, and when its content and its entry were changed, ns: writing into a file changes these."""
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "_File":
        """A file as it is now, which is read whole."""
        with path.open("rb") as f:
            return cls(_stamp(path), hashlib.file_digest(f, "sha256").hexdigest())

    def again(self, path: Path) -> "_File | None":
        """The same file, now; None where it is another."""
        if _stamp(path) == self.stamp:
            return self
        found = _File.of(path)
        return found if found.sha256 == self.sha256 else None


@dataclass(frozen=True)
class _Manifest:
    made_with: list[str]
    source: _File | None
    """The GGUF file."""
    files: dict[str, _File]


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _made_with() -> list[str]:
    """What a conversion depends on beside its file."""
    code = [
        Path(__file__).with_name(name).read_bytes() for name in ("gguf_metadata.py", "gguf_tokenizer.py", "laid_out.py")
    ]
    return [version("transformers"), version("gguf"), *(hashlib.sha256(part).hexdigest() for part in code)]


def kept(folder: Path, source: Path, called: str, convert: Callable[[], "Made"], progress: Tell) -> None:
    """Let a folder of the cache hold the conversion of a GGUF file, whole: made now, where it is not there or damaged.

    Raises OSError where the cache cannot take it, and what `convert` raises.
    """
    if not damage(folder, source):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        _sweep(folder)
        # Another process may have made it meanwhile.
        if not (why := damage(folder, source)):
            return
        if folder.exists():
            again = f"The converted {called} cannot be used ({why}): converting it again"
            logging.getLogger(__name__).warning("%s", again)
            progress(again)
        network, tokenizer = convert()
        with quiet(f"Keeping {called}", progress):
            place(folder, network, tokenizer, source)
        _make_room(folder)


def damage(folder: Path, source: Path | None = None) -> str:
    """What is wrong with a conversion, in a few words; empty where it is whole."""
    try:
        manifest = files.record(folder / MANIFEST, _Manifest, "")
    except ValueError:
        return "it has no checksums"
    if manifest.made_with != _made_with():
        return "it was made with another version of what converts"
    now: dict[str, _File] = {}
    with contextlib.suppress(OSError):
        for name, file in manifest.files.items():
            if (found := file.again(folder / name)) is None:
                return f"{name} has changed"
            now[name] = found
        others = {p.name for p in folder.iterdir() if not p.name.startswith(".")} - {MANIFEST, *now}
        if others:
            return f"{min(others)} does not belong to it"
    if gone := manifest.files.keys() - now.keys():
        return f"{min(gone)} is gone"
    origin = manifest.source
    if source is not None and (origin is None or (origin := origin.again(source)) is None):
        return "its GGUF file is another now"
    with contextlib.suppress(OSError, ValueError):
        # Where the cache is only to be read, files that were touched are read again each time.
        if (seen := replace(manifest, files=now, source=origin)) != manifest:
            files.write(folder / MANIFEST, msgspec.json.encode(seen).decode())
        else:
            os.utime(folder / MANIFEST)
    return ""


def place(
    folder: Path, network: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", source: Path | None = None
) -> None:
    """Save a model as `folder`: aside first and then moved, so that what is cut off leaves nothing half done.

    Its weights lie in another order in memory then.  A whole one that is there already stays.  Raises OSError where the
    disk does not take it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # save_pretrained refuses a model that still says it is quantised.
    setattr(network, "hf_quantizer", None)  # noqa: B010
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    with _aside(folder) as aside:
        draft = aside / folder.name
        _save(network, draft)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
            _read_once(draft / "tokenizer_config.json", tokenizer)
        made = {p.name: _File.of(p) for p in sorted(draft.iterdir())}
        manifest = _Manifest(_made_with(), None if source is None else _File.of(source), made)
        files.write(draft / MANIFEST, msgspec.json.encode(asdict(manifest)).decode())
        if folder.exists():
            if not damage(folder, source):
                return
            folder.rename(aside / "damaged")
        draft.rename(folder)


def _save(network: "PreTrainedModel", draft: Path) -> None:
    """Save a network with its weights as they lie when it is read with, or as transformers does."""
    # Here, since a folder can be looked through without torch.
    from ..engine.check import adapt
    from . import laid_out
    from .quantization import lay_out

    lay_out(network)
    # What cannot be adapted is refused when it is loaded.
    with contextlib.suppress(ValueError):
        adapt(network)
    draft.mkdir()
    if not laid_out.save(network, draft / "model.safetensors"):
        network.save_pretrained(draft)
        return
    network.config.architectures = [type(network).__name__]
    network.config.save_pretrained(draft)
    if network.can_generate():
        network.generation_config.save_pretrained(draft)


def _read_once(config: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Let the configuration of a saved tokenizer say what transformers would parse all of tokenizer.json once more for,
    which takes seconds where it is large: it then is that file, whatever class has made it."""
    if not config.is_file() or not tokenizer.is_fast:
        return
    special = {i: t for i, t in tokenizer.added_tokens_decoder.items() if i in tokenizer.all_special_ids}
    said = files.record(config, dict[str, Any], "that of a tokenizer") | {
        "tokenizer_class": "TokenizersBackend",
        "padding_side": tokenizer.padding_side,
        "added_tokens_decoder": {i: t.__getstate__() for i, t in special.items()},
    }
    files.write(config, json.dumps(said, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _aside(folder: Path) -> Generator[Path]:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as aside:
        yield Path(aside)


def _sweep(folder: Path) -> None:
    """Remove what killed conversions left: whoever asks has the lock, so nobody else is at this one."""
    left = [p for p in folder.parent.glob(f".{folder.name}.*") if p.is_dir()]
    # As they were named before there was a lock; one that is an hour old is no more in use.
    old = [p.parent for p in folder.parent.glob("tmp????????/*/") if p.name.startswith(folder.name.rpartition("-")[0])]
    left += [p for p in old if time.time() - p.stat().st_mtime > HOUR]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def _make_room(folder: Path) -> None:
    """Remove the conversions that were used longest ago, beside this one; those of installed files stay."""
    found = [p.parent for p in folder.parent.glob(f"*{KIND}*/{MANIFEST}") if p.parent != folder]
    for path in sorted(found, key=lambda p: (p / MANIFEST).stat().st_mtime, reverse=True)[MOST - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


KIND = ".gguf-"
"""Stands in the names of conversions of a person's own files."""


def folder_of(cache: Path, gguf: Path) -> Path:
    """Where the conversion of a person's own GGUF file lies."""
    where = hashlib.sha256(os.fsencode(gguf.resolve())).hexdigest()[:12]
    return cache / f"{gguf.stem[:80]}{KIND}{where}"
