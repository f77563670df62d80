"""How a text becomes tokens.  Knows nothing of models but a tokenizer that is handed to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import control
from .bos import begins, begun, opening
from .options import SPECIAL, checked
from .sources import Text


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


def tokenize(
    text: Text, tokenizer: Any, *, bos: str | bool = "auto", special: str = "text", limit: int | None = None
) -> NDArray[np.int32]:
    """Token ids [tokens] of a text, at most `limit`, BOS included: the `ids` of `tokenized`."""
    return tokenized(text, tokenizer, bos=bos, special=special, limit=limit).ids


def tokenized(
    text: Text, tokenizer: Any, *, bos: str | bool = "auto", special: str = "text", limit: int | None = None
) -> Tokenized:
    """A text as a model reads it.

    `bos`: auto (what the tokenizer puts first by itself), on or off; a text never begins with it twice, and token ids
    are taken as they are unless it is on.  `special`: whether names of control tokens in a text are text or tokens.
    `limit`: read at most so many tokens, BOS included.  Raises ValueError with what to do.
    """
    if limit is not None and limit < 2:
        raise ValueError(f"tokens must be at least 2, to predict one from another, not {limit}")
    first, as_text = opening(tokenizer, bos, text), ()
    if text.ids is not None:
        ids = text.ids
    else:
        ids, as_text = encode(text.content or "", tokenizer, special=special, limit=limit)
    ids = begun(first, ids)[:limit]
    if len(ids) < 2:
        raise ValueError(
            f"{text.name} has only {len(ids)} token, and 2 are needed to predict one from another: choose a longer text"
        )
    return Tokenized(ids, begins(tokenizer, ids), as_text)


def encode(
    content: str, tokenizer, *, special: str = "text", limit: int | None = None
) -> tuple[list[int], tuple[str, ...]]:
    """Token ids of some words without BOS, `limit` of them or more, and names of control tokens read as text."""
    checked("special", special, SPECIAL)
    if tokenizer is None:
        raise ValueError("this model has no tokenizer: give the text as a .npy file of token ids")
    size = len(content) if limit is None else 8 * limit + 1024
    while True:
        ids = tokenizer(content[:size], add_special_tokens=False, verbose=False)["input_ids"]
        # A cut changes the tokens of the word that it goes through, so that word must lie well beyond the limit.
        if limit is None or size >= len(content) or len(ids) > limit + 64:
            break
        size *= 4
    if special == "text" and control.found(tokenizer, ids, content):
        # One that stands behind the limit changes the tokens before it, and is not said.
        return control.as_text(tokenizer, content[:size]), control.found(tokenizer, ids[:limit], content)
    return ids, ()
