"""What the model does with a sentence of the student's own."""

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from analysis import texts
from app.lesson import Chapter
from app.lesson.answers import Answer

from . import stage

if TYPE_CHECKING:
    from analysis.maps.passage import Passage
    from analysis.models.language_model import LanguageModel


SIGNS = {"\n": "⏎", "\t": "⇥"}


def long_enough(page: Chapter, answer: Answer, most: int) -> bool:
    """Whether a sentence has tokens to look at; says how many of them are kept, or to write more."""
    if (count := int(answer["count"])) < 2:
        if not stage.awaited():
            st.info(page.say("short"))
        return False
    st.caption(page.say("cut" if count > most else "kept", most=most, count=count))
    return True


def tokens(model: "LanguageModel", sentence: str, bos: str = "off") -> list[int]:
    """Token ids of a sentence."""
    first = texts.opening(model.tokenizer, bos)
    return texts.begun(first, texts.encode(sentence, model.tokenizer)[0]).tolist()


def read(model: "LanguageModel", ids: list[int]) -> "Passage":
    """A sentence of two tokens or more, read whole."""
    from analysis.maps.passage import Passage

    return Passage(model, np.array(ids, np.int32))


def rows(model: "LanguageModel", sentence: str, bos: str, most: int) -> tuple[dict[str, NDArray], "Passage | None"]:
    """What all heads do at the last of the first `most` tokens of a sentence.

    `count`: tokens of the whole sentence; `words` [keys]; `logits` [layers, heads, keys]; `sinks` [layers, heads]: the
    weight on the first token.  Of a sentence that is too short only its count, and no passage.
    """
    ids = tokens(model, sentence, bos)
    count = {"count": np.array(len(ids))}
    if len(ids) < 2:
        return count, None
    passage = read(model, ids[:most])
    last = passage.sink_weights[..., -1]
    logits = [[passage.row(layer, head).logits for head in range(last.shape[1])] for layer in range(last.shape[0])]
    words = np.array(_words(model, ids[:most]))
    return count | {"words": words, "logits": np.array(logits), "sinks": last}, passage


def _words(model: "LanguageModel", ids: list[int]) -> list[str]:
    """The texts of tokens, each a different string, with a mark for each character that nobody sees."""
    found: list[str] = []
    for piece in texts.token_texts(model.tokenizer, np.array(ids, np.int32)):
        # The last token of a character has it, and those before it are empty.
        shown = "".join(map(_sign, piece.strip(" "))) or ("␣" if piece else "…")
        # Zero-width spaces tell two equal words apart on an axis, and nowhere else.
        while shown in found:
            shown += "\u200b"
        found.append(shown)
    return found


def _sign(character: str) -> str:
    """A character, or what stands for one that nobody sees: the code of those that have no sign of their own."""
    seen = character if character.isprintable() else f"U+{ord(character):04X}"
    return SIGNS.get(character, seen)


def head_near(sinks: NDArray[np.float32], weight: float) -> tuple[int, int]:
    """Layer and head of the one whose weight on the first token is nearest to a weight."""
    layer, head = np.unravel_index(np.abs(sinks - weight).argmin(), sinks.shape)
    return int(layer), int(head)
