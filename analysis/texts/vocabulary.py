"""The bundled plays in a small vocabulary of their own, for models that are small too."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .. import SETUP
from .sources import plays, read

SMALLEST = 257
"""Every byte, and the token that begins a text."""


@cache
def plays_in(vocabulary: int) -> NDArray[np.int16]:
    """Token ids of all bundled plays, one behind the other, [tokens]; byte-pair encoding learned from them.

    Token 0 begins a text, and does not occur.  Takes some seconds the first time.  Raises ValueError where the plays
    are not installed.
    """
    written = [read(name).content or "" for name in plays()]
    if not written:
        raise ValueError(f"the bundled plays are not installed: run {SETUP}, or choose the task backcopy")
    return np.concatenate([np.array(e.ids, np.int16) for e in learned(written, vocabulary).encode_batch(written)])


def learned(written: list[str], vocabulary: int) -> Tokenizer:
    """Byte-pair encoding of so many tokens, learned from texts.  Token 0 begins a text, and does not occur."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        written,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<begin>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer
