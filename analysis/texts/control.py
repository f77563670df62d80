"""Control tokens: what a tokenizer has beside the pieces of its text, such as `<|endoftext|>`, `<s>` or `<think>`.

A tokenizer turns every such string into its token wherever it stands, also where somebody only wrote about it.  Here a
text is turned into tokens as if the tokenizer had never had them.  Added tokens that are white space (Gemma's newlines,
GPT-NeoX's runs of spaces) are no control tokens: they are how that tokenizer writes a text.
"""

import json
import re
import secrets
from functools import lru_cache
from typing import Any, NamedTuple


class Coded(NamedTuple):
    """Token ids, and the first and last character (exclusive) of each in what was encoded."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Control tokens by id: special ones, and added ones that can be seen.  None where there is no tokenizer."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return {i: t.content for i, t in added.items() if t.special or t.content.replace("▁", " ").strip()}


def found(tokenizer: Any, ids: list[int], content: str) -> tuple[str, ...]:
    """Control tokens among `ids`, by name in the order of the text that they were made from, which is `content`."""
    known = control_tokens(tokenizer)
    names = dict.fromkeys(known[i] for i in dict.fromkeys(ids) if i in known)
    # What stands for unknown characters comes without being written.
    unknown = getattr(tokenizer, "unk_token", None)
    return tuple(name for name in names if name != unknown or name in content)


def as_text(tokenizer: Any, content: str) -> list[int]:
    """Token ids of a text in which no control token is one."""
    if not getattr(tokenizer, "is_fast", False):
        return tokenizer(content, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return _twin(tokenizer, tuple(control_tokens(tokenizer).items())).encode([(False, content)]).ids


def partly_as_text(tokenizer: Any, parts: list[tuple[bool, str]]) -> Coded:
    """Pieces of text, encoded as the one text that they are; control tokens are such where a piece says so.

    `parts`: whether a piece may hold control tokens, and the piece.  Offsets are those of the pieces put together.
    For tokenizers of the tokenizers library (`is_fast`).
    """
    return _twin(tokenizer, tuple(control_tokens(tokenizer).items())).encode(parts)


class Twin:
    """A tokenizer whose control tokens have names that nobody can write; where one is meant, its new name is put.

    Made anew from the tokenizer's own description, so that all else (normalisation, words, merges, added white space)
    is the same, and nothing is set on a tokenizer that another thread may use.
    """

    def __init__(self, tokenizer: Any, control: dict[int, str]) -> None:
        self._secret = "".join(chr(97 + byte % 26) for byte in secrets.token_bytes(24))
        self._marks = {name: self._mark(i) for i, name in control.items()}
        about = json.loads(tokenizer.backend_tokenizer.to_str())
        about.update(truncation=None, padding=None, post_processor=None)
        for token in about["added_tokens"]:
            token["content"] = self._renamed(token["content"])
        self._rename(about["model"])
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(json.dumps(about))
        # Added tokens are numbered anew: where that differs, the old number is put back.
        pairs = ((self._tokenizer.token_to_id(self._renamed(name)), i) for name, i in _added(tokenizer))
        self._moved = {there: i for there, i in pairs if there is not None and there != i}
        names = sorted(self._marks, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def _mark(self, i: int) -> str:
        letters = "".join(chr(97 + (i // 26**k) % 26) for k in range(6))
        return f"<{self._secret}{letters}>"

    def _renamed(self, name: str) -> str:
        return self._marks.get(name, name)

    def _rename(self, model: dict[str, Any]) -> None:
        vocab = model["vocab"]
        if isinstance(vocab, dict):
            model["vocab"] = {self._renamed(piece): i for piece, i in vocab.items()}
        else:
            model["vocab"] = [[self._renamed(piece), *more] for piece, *more in vocab]
        if model.get("unk_token") is not None:
            model["unk_token"] = self._renamed(model["unk_token"])
        if "merges" in model:
            pairs = ((m, m.split(" ", 1) if isinstance(m, str) else m) for m in model["merges"])
            prefix = model.get("continuing_subword_prefix") or ""
            # No merge may lead to a control token, or begin at one.
            model["merges"] = [m for m, (a, b) in pairs if not {a, b, a + b.removeprefix(prefix)} & self._marks.keys()]

    def encode(self, parts: list[tuple[bool, str]]) -> Coded:
        """Token ids of the pieces put together, with control tokens in those that may hold them."""
        text, cuts, shift = "", [], 0
        for meant, piece in parts:
            if not meant:
                text += piece
                continue
            at = 0
            for match in self._pattern.finditer(piece):
                text += piece[at : match.start()] + (mark := self._marks[match[0]])
                shift += len(mark) - len(match[0])
                # From the end of this mark on, a place in `text` lies so much behind its place in the pieces.
                cuts.append((len(text), shift))
                at = match.end()
            text += piece[at:]
        coded = self._tokenizer.encode(text, add_special_tokens=False)
        ids = [self._moved.get(i, i) for i in coded.ids] if self._moved else coded.ids
        return Coded(ids, _shifted(coded.offsets, cuts))


def _added(tokenizer: Any) -> list[tuple[str, int]]:
    return [(token.content, i) for i, token in tokenizer.added_tokens_decoder.items()]


def _shifted(offsets: list[tuple[int, int]], cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Offsets in the text without marks."""
    if not cuts:
        return offsets
    found, at, less = [], 0, 0
    for begin, end in offsets:
        first = less
        while at < len(cuts) and cuts[at][0] <= end:
            if cuts[at][0] <= begin:
                first = cuts[at][1]
            less, at = cuts[at][1], at + 1
        found.append((begin - first, end - less))
    return found


@lru_cache(maxsize=2)
def _twin(tokenizer: Any, control: tuple[tuple[int, str], ...]) -> Twin:
    return Twin(tokenizer, dict(control))
