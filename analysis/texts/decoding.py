"""The text of single tokens, byte by byte."""

import codecs
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray


def token_texts(tokenizer: Any, ids: NDArray[np.int32]) -> list[str]:
    """The text of each of these tokens, exactly: together they are the whole text.

    Where a character is spread over several tokens, the last of them has it and the ones before are empty; bytes that
    never become a character are U+FFFD.  Without a tokenizer the text of a token is its number.
    """
    if tokenizer is None:
        return [f" {i}" for i in ids]
    distinct, where = np.unique(ids, return_inverse=True)
    parts = _bytes(tokenizer, distinct.tolist())
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    shown: list[str] = []
    for part in (parts[i] for i in where):
        if shown and part and not 0x80 <= part[0] < 0xC0:
            # Nothing continues the character that was begun: what there is of it belongs to the token before.
            shown[-1] += decoder.decode(b"", final=True)
        shown.append(decoder.decode(part))
    if shown:
        shown[-1] += decoder.decode(b"", final=True)
    return shown


def _bytes(tokenizer: Any, ids: list[int]) -> list[bytes]:
    """The bytes of text that each token stands for, inside a text."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    # Decoded behind another token, since some tokenizers strip the space that a text's first token begins with.
    before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    keep = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    stripped = len(tokenizer.decode(before, **keep))
    decoded = [text[stripped:] for text in tokenizer.batch_decode([[*before, i] for i in ids], **keep)]
    byte = {sign: number for number, sign in bytes_to_unicode().items()}
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    found = []
    for i, text, name in zip(ids, decoded, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if "\ufffd" not in text or name is None:
            found.append(text.encode())
        elif fallback := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
            found.append(bytes.fromhex(fallback[1]))
        elif i in added and len(name) > 1:
            # It is written as it is; a decoder of bytes takes letters such as ñ in it for bytes, too.
            found.append(name.encode())
        elif all(sign in byte for sign in name):
            found.append(bytes(byte[sign] for sign in name))
        else:
            found.append(text.encode())
    return found
