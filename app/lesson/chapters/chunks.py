"""A row in pieces, where the student cuts it."""

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from analysis.maps.attention_row import AttentionRow, attend, merge, split
from app import address
from app.choices import choice, choose
from app.lesson import Chapter
from app.lesson.answers import Answer, Question
from app.plain import plain
from app.view import HEAD

from . import stage
from .sentence import head_near, long_enough, rows

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel

MOST = 24
HALF = 0.5
"""The head that is shown at first gives the first token about so much, so that other pieces have a share too."""


def ask(model: "LanguageModel", sentence: str, bos: str) -> Answer:
    """Logits of the last token in every head, and `values` [layers, kv_heads, keys, dim]."""
    found, passage = rows(model, sentence, bos, MOST)
    if passage is not None:
        found["values"] = np.stack([values[0].float().cpu().numpy() for values in passage.attended.values])
    return found


def row_of(answer: Answer, layer: int, head: int) -> AttentionRow:
    """The row of one head."""
    values = answer["values"][layer]
    return AttentionRow(answer["logits"][layer, head], values[head * len(values) // answer["logits"].shape[1]])


def draw(chapter: Chapter, page: Chapter) -> None:
    """The table of pieces, and what they join to."""
    question = Question(ask, (stage.written(page), stage.bos()))
    if (found := stage.answers(page, question)) is None:
        return
    (answer,), about = found
    if not long_enough(page, answer, MOST):
        return
    stage.forget_of("chunks", question, "chunks-head", "chunks-cuts")
    words, shape, usual = answer["words"].tolist(), answer["sinks"].shape, head_near(answer["sinks"], HALF)
    layer, head = stage.head_controls(page, "chunks", question, shape, usual, st.columns(2))
    thirds = (len(words) // 3, 2 * len(words) // 3) if len(words) > 4 else (1,)
    asked = choice("chunks-cuts", None)
    if wrong := [str(cut) for cut in asked or () if cut >= len(words)]:
        # Those of another sentence are forgotten, so an address asked for them.
        cuts = ", ".join(wrong)
        stage.say_problem(f"This sentence has {len(words)} tokens, and the address of this page cuts it at {cuts}.")
        asked = None
    cuts = st.pills(
        chapter.say("cuts"),
        list(range(1, len(words))),
        default=list(thirds if asked is None else asked),
        format_func=lambda i: plain(words[i]),
        selection_mode="multi",
        key=f"chunks-cuts-{stage.turn()}-{question}",
    )
    choose("chunks-cuts", None if sorted(cuts) == sorted(thirds) else tuple(sorted(cuts)))
    row = row_of(answer, layer, head)
    parts, (all_of_it,) = split(row, cuts), split(row, [])
    shares = [float(np.exp(p.lse - all_of_it.lse)) for p in parts]
    st.table(
        {
            chapter.say("piece"): [f"{i + 1}" for i in range(len(parts))],
            chapter.say("keys"): [plain(" ".join(words[p.begin : p.end])) for p in parts],
            chapter.say("lse"): [f"{p.lse:.4f}" for p in parts],
            chapter.say("share"): [f"{s:.4f}" for s in shares],
        }
    )
    whole, joined = attend(row), merge(parts)
    first = chapter.say("of", dims=len(whole))
    st.table(
        {
            first: [chapter.say("whole"), chapter.say("joined", count=len(parts)), chapter.say("difference")],
            " ": [_digits(whole), _digits(joined), f"{np.abs(whole - joined).max():.1e}"],
        }
    )
    stage.source(page, about)


def _digits(out: NDArray) -> str:
    return "   ".join(f"{x:.9f}" for x in out[:3].tolist()) + " …"


PLAY = stage.Play(
    draw,
    recorded=(Question(ask, (stage.SENTENCE, "auto")),),
    choices={
        "sentence": stage.OWN,
        "head": stage.Choice(HEAD, "chunks-head"),
        "cuts": stage.Choice(address.some_of("cuts", range(1, MOST)), "chunks-cuts"),
    },
)
