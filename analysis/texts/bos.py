"""What begins a text, BOS: for most tokenizers one token, for some none or several."""

from collections.abc import Sequence
from itertools import chain, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import control
from .options import BOS, checked
from .sources import Text


def opening(tokenizer: Any, bos: str | bool = "auto", text: Text | None = None) -> list[int]:
    """Token ids that are put before a text; none before token ids, unless BOS is on.

    Raises ValueError where BOS is on and this model has none.
    """
    bos = checked("bos", bos, BOS)
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


def begins(tokenizer: Any, ids: NDArray[np.int32]) -> str:
    """The BOS that token ids really begin with, as it is written; empty where it is none."""
    first = bos_of(tokenizer, ids)
    return "".join(tokenizer.convert_ids_to_tokens(first)) if first else ""


def bos_of(tokenizer: Any, ids: NDArray[np.int32]) -> list[int]:
    """The BOS that token ids really begin with."""
    if tokenizer is None:
        return []
    begin = getattr(tokenizer, "bos_token_id", None)
    known = (_habit(tokenizer), [] if begin is None else [begin])
    return next((first for first in known if first and list(ids[: len(first)]) == first), [])


def _habit(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before a text by itself: it is asked, with a text that it has tokens for."""
    known = control.control_tokens(tokenizer)
    for probe in chain(("a", "0", ".", "\n"), (tokenizer.decode([i]) for i in range(64) if i not in known)):
        if bare := tokenizer(probe, add_special_tokens=False)["input_ids"]:
            whole = tokenizer(probe, add_special_tokens=True)["input_ids"]
            places = [n for n in range(len(whole)) if whole[n : n + len(bare)] == bare]
            return list(whole[: places[0]] if places else takewhile(known.__contains__, whole))
    return []


def with_bos(begins: str) -> str:
    """What a text begins with, in a few words that go behind others."""
    return f"with {begins}" if begins else "without BOS"
