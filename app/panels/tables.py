"""Tables of results, whole: a grid that scrolls keeps the widths of what it shows first, and cuts numbers that come."""

from collections.abc import Mapping, Sequence

import streamlit as st

from ..plain import plain


def draw(rows: Sequence[Mapping[str, object]]) -> None:
    """A line for each row, under the names of its columns; all are text that is shown as it is."""
    st.table([{_cell(name): _cell(value) for name, value in row.items()} for row in rows], hide_index=True)


def _cell(value: object) -> str:
    # A number and its sign stay in one line, however narrow a column is.
    return plain(value).replace(" %", "\u00a0%")
