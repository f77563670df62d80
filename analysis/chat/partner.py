"""What all conversations with one model share: how words become its tokens, and whose each token is."""

import re

import numpy as np
from numpy.typing import NDArray

from .. import texts
from ..families.rotary import Adapted
from ..models.language_model import LanguageModel
from ..runs.run import ROLES
from ..settings import quoted
from ..texts import control
from .template import template_of

TEMPLATE, USER, ASSISTANT = range(len(ROLES))
"""Who said a token: its number in ROLES."""


class Partner:
    """What all conversations with one model share: the adapted model, its tokenizer and template.

    `bos`: whether a conversation begins with BOS: auto (as the tokenizer puts it first by itself, or the template
    writes it), on or off; never twice.  `special`: whether control tokens that a person types are text or tokens.
    """

    def __init__(self, model: LanguageModel, *, bos: str | bool = "auto", special: str = "text") -> None:
        if model.tokenizer is None:
            raise ValueError(f"{model.name} has no tokenizer, and a conversation needs one: choose another model")
        self.model, self.tokenizer = model, model.tokenizer
        self.bos, self.special = bos, special
        self.adapted: Adapted = model.adapted
        self.template = template_of(model.tokenizer)
        self.ends = _ends(model)
        if model.tokenizer.eos_token_id is not None:
            self.ends.add(model.tokenizer.eos_token_id)
        self.ends |= self._closing()
        self.begins = texts.begins(model.tokenizer, self.begin(self.encode([(TEMPLATE, self.template.head)])[0]))

    def encode(
        self, parts: list[tuple[int, str]], after: int | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int8], tuple[str, ...]]:
        """Token ids and roles, each [tokens], of pieces of text, and names of control tokens that were typed in them.

        What a person typed is text, unless `special` is tokens; what the template writes is what it is.  `after`: the
        token that they follow; some tokenizers put a space before what nothing comes before.
        """
        if after is not None and (look := self.tokenizer.decode([after])):
            ids, roles, names = self.encode([(TEMPLATE, str(look)), *parts])
            if len(ids) and ids[0] == after:
                return ids[1:], roles[1:], names
        typed = "".join(text for role, text in parts if role == USER)
        if not self.tokenizer.is_fast:
            return self._one_by_one(parts, typed)
        whole = "".join(text for _, text in parts)
        coded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, roles = coded["input_ids"], _roles(parts, coded["offset_mapping"])
        # A control token that a template's text begins and a person's ends would be one that was typed, too.
        ends = _roles(parts, [(end - 1, end) for _, end in coded["offset_mapping"]])
        mine = [i for i, role, end in zip(ids, roles, ends, strict=True) if USER in (role, end)]
        names = control.found(self.tokenizer, mine, typed) if self.special == "text" else ()
        if names:
            coded = control.partly_as_text(self.tokenizer, [(role != USER, text) for role, text in parts])
            ids, roles = coded.ids, _roles(parts, coded.offsets)
        return np.array(ids, np.int32), roles, names

    def _one_by_one(self, parts: list[tuple[int, str]], typed: str):
        """The same by a tokenizer that cannot say where its tokens stand: each piece alone."""
        names = {t for t in control.control_tokens(self.tokenizer).values() if t in typed}
        ids, roles = [], []
        for role, text in parts:
            as_text = role == USER and self.special == "text"
            coded = control.as_text(self.tokenizer, text) if as_text else texts.encode(text, self.tokenizer)[0]
            ids += coded
            roles += [role] * len(coded)
        return np.array(ids, np.int32), np.array(roles, np.int8), tuple(sorted(names)) if self.special == "text" else ()

    def begin(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The first tokens of a conversation, with BOS or without it as `bos` says, and never twice."""
        first = texts.opening(self.tokenizer, self.bos)
        usual = texts.opening(self.tokenizer)
        if self.bos == "off" and (self.template.writes_bos or (usual and list(ids[: len(usual)]) == usual)):
            return ids[len(texts.bos_of(self.tokenizer, ids)) :]
        return texts.begun(first, ids)

    def _closing(self) -> set[int]:
        """The control token that the template puts behind an answer, which a GGUF file, with one end, may leave out.

        None where an end is known that the template writes: Kimi K3's closes thoughts and answers alike before it.
        """
        close, known = self.template.close.lstrip(), control.control_tokens(self.tokenizer)
        written = self.encode([(TEMPLATE, close)])[0].tolist()
        if self.ends & known.keys() & set(written):
            return set()
        return {i for i in written[:1] if i in known and close.startswith(known[i])}

    def close(self, last: int) -> str:
        """The template's text after an answer whose last token was `last`."""
        close, end = self.template.close, re.escape(str(self.tokenizer.decode([last])))
        # Llama 2's puts a space before it, Kimi K3's closes the answer: the model said that as well.
        before = ".*?" if last in control.control_tokens(self.tokenizer) else r"\s*?"
        said = re.match(before + end, close, re.DOTALL) if last in self.ends else None
        return close[said.end() :] if said else close


def _ends(model: LanguageModel) -> set[int]:
    """Tokens that end an answer: one or several, as whoever wrote the file thought fit.

    Raises ValueError where it says something else.
    """
    written = model.network.generation_config.eos_token_id
    try:
        return {int(e) for e in np.ravel(written) if e is not None}
    except (TypeError, ValueError, OverflowError) as e:
        raise ValueError(
            f"{model.name} says that an answer ends with {quoted(written)}, which is no token: mend eos_token_id "
            "in its generation_config.json"
        ) from e


def _roles(parts: list[tuple[int, str]], offsets: list[tuple[int, int]]) -> NDArray[np.int8]:
    """Whose each token is, [tokens], by the place of its first character in the pieces put together."""
    ends = np.cumsum([len(text) for _, text in parts])
    begins = np.array([begin for begin, _ in offsets], np.int64)
    return np.array([role for role, _ in parts], np.int8)[np.searchsorted(ends[:-1], begins, side="right")]
