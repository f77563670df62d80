"""A row in pieces, where the student cuts it."""

import numpy as np
import streamlit as st
from torch import Tensor

from analysis.maps.attention_row import Passage, attend, merge, split
from app import address
from app.controls import choice, choose
from app.lesson import Chapter
from app.plain import plain
from app.view import HEAD

from . import stage

MOST = 24
HALF = 0.5
"""The head that is shown at first gives the first token about so much, so that other pieces have a share too."""


def shown_at_first(passage: Passage) -> tuple[int, int]:
    """Layer and head."""
    last = passage.sink_weights[..., -1]
    layer, head = np.unravel_index(np.abs(last - HALF).argmin(), last.shape)
    return int(layer), int(head)


def draw(chapter: Chapter, page: Chapter) -> None:
    """The table of pieces, and what they join to."""
    ids = stage.written(page, MOST, stage.bos())
    if ids is None:
        return
    words = stage.token_texts(ids)
    passage = stage.passage(ids)
    stage.forget_of("chunks", ids, "chunks-head", "chunks-cuts")
    shape = passage.sink_mass.shape
    layer, head = stage.head_controls(page, "chunks", ids, shape, shown_at_first(passage), st.columns(2))
    thirds = (len(ids) // 3, 2 * len(ids) // 3) if len(ids) > 4 else (1,)
    asked = choice("chunks-cuts", None)
    cuts = st.pills(
        chapter.say("cuts"),
        list(range(1, len(ids))),
        default=[cut for cut in (thirds if asked is None else asked) if cut < len(ids)],
        format_func=lambda i: plain(words[i]),
        selection_mode="multi",
        key=f"chunks-cuts-{stage.turn()}-{ids}",
    )
    choose("chunks-cuts", None if sorted(cuts) == sorted(thirds) else tuple(sorted(cuts)))
    row = passage.row(layer, head)
    found = split(row, cuts)
    shares = [(p.lse - row.logits.logsumexp(-1)).exp().item() for p in found]
    st.table(
        {
            chapter.say("piece"): [f"{i + 1}" for i in range(len(found))],
            chapter.say("keys"): [plain(" ".join(words[p.begin : p.end])) for p in found],
            chapter.say("lse"): [f"{p.lse:.4f}" for p in found],
            chapter.say("share"): [f"{s:.4f}" for s in shares],
        }
    )
    whole, joined = attend(row), merge(found)
    first = chapter.say("of", dims=len(whole))
    st.table(
        {
            first: [chapter.say("whole"), chapter.say("joined", count=len(found)), chapter.say("difference")],
            " ": [_digits(whole), _digits(joined), f"{(whole - joined).abs().max():.1e}"],
        }
    )


def _digits(out: Tensor) -> str:
    return "   ".join(f"{x:.9f}" for x in out[:3].tolist()) + " …"


PLAY = stage.Play(
    draw,
    choices={
        "sentence": stage.OWN,
        "head": stage.Choice(HEAD, "chunks-head"),
        "cuts": stage.Choice(address.some_of("cuts", range(1, MOST)), "chunks-cuts"),
    },
)
