"""Widgets for what recall asks, which the pages of recall and of the verdict both have.

`page`: its name, under which its settings lie in the session's state, and with which keys of its widgets begin.
"""

import streamlit as st

from analysis.errors import sentence
from analysis.experiments.recall.base import ASKING
from app.address import Parameter
from app.controls import whole_control
from app.parameters import MOST_REPEATS, MOST_SEED, RECALL
from app.plain import plain


def numbers(page: str, name: str, parameter: Parameter, label: str, help: str) -> None:
    """A widget for several numbers; what was set before stays until what is written can be read."""
    now, key = st.session_state[page], f"{page}-{name}-{st.session_state.revision}"
    written = st.text_input(
        label, value=parameter.write(now[name]).replace(",", ", "), key=key, help=help, max_chars=400
    )
    try:
        now[name] = parameter.read(written.replace(" ", ""))
    except ValueError as e:
        st.warning(plain(sentence(e)))


def asked(page: str, *, sized: bool = True, placed: bool = True) -> None:
    """How long and how many texts are, where facts stand in them, and how they are asked for; `sized`, `placed`: the
    task has texts of chosen lengths, and facts at chosen depths."""
    now, revision = st.session_state[page], st.session_state.revision
    if sized:
        what = "Tokens of the texts, with commas between them"
        numbers(page, "lengths", RECALL["lengths"], "Lengths, in tokens", what)
    if placed:
        what = "Where in the text the fact stands, with commas between them"
        numbers(page, "depths", RECALL["depths"], "Depths, in %", what)
    if sized:
        left, right = st.columns(2)
        now["repeats"] = whole_control(
            "Texts for each", 1, MOST_REPEATS, now["repeats"], key=f"{page}-repeats-{revision}",
            help="Texts of each length and depth, with other facts in them", place=left,
        )  # fmt: skip
        now["seed"] = whole_control(
            "Seed", 0, MOST_SEED, now["seed"], key=f"{page}-seed-{revision}",
            help="Decides all texts: the same seed gives the same ones everywhere", place=right,
        )  # fmt: skip
    names = {"aware": "read on", "blind": "unseen"}
    now["question"] = st.radio(
        "The question is", list(ASKING), index=list(ASKING).index(now["question"]), format_func=names.__getitem__,
        key=f"{page}-question-{revision}", horizontal=True,
        help="; ".join(f"{names[name]}: {what}" for name, what in ASKING.items()),
    )  # fmt: skip
