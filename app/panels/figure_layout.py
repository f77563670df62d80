"""The page that a figure stands on, and its file: widgets of the figures page, and what its address says of them."""

from typing import Any

import streamlit as st

from analysis.figures.sheet import KINDS, WIDTHS, Layout, usual_points
from app import address
from app.choices import choice, choose, kept_index, kept_value

USUAL = {"venue": "neurips", "dpi": 300, "file": "pdf", "grey": 0}
PARAMETERS: address.Parameters = {
    "venue": address.one_of("venue", WIDTHS),
    "points": address.real("points", 4, 40),
    "dpi": address.whole("dpi", 50, 1200),
    "file": address.one_of("file", KINDS),
    "grey": address.switch("grey"),
}
"""What addresses say of a layout and a file; `grey`: whether it is shown as a black-and-white printer has it."""


def controls() -> tuple[Layout, str]:
    """Widgets for the layout and the kind of file; returns what the person chose."""
    st.caption("The page that it stands on")
    left, right = st.columns(2)
    venue = left.selectbox(
        "Venue", list(WIDTHS), **kept_index(_key("venue"), USUAL["venue"], WIDTHS), help="How wide it is",
        on_change=_resize,
    )  # fmt: skip
    points = right.number_input(
        "Points", 4.0, 40.0, step=0.5, **kept_value(_key("points"), usual_points(venue)), help="Size of the text"
    )
    file = left.selectbox("File", KINDS, **kept_index(_key("file"), USUAL["file"], KINDS))
    dpi = right.number_input("Dots per inch", 50, 1200, step=50, **kept_value(_key("dpi"), USUAL["dpi"]))
    return Layout(venue, points, dpi), file


def _resize() -> None:
    """Give the text the size that is usual at the venue, where nobody has chosen another."""
    if choice(_key("points"), None) in map(usual_points, WIDTHS):
        choose(_key("points"), usual_points(choice(_key("venue"), USUAL["venue"])))


def usual(venue: str) -> dict[str, Any]:
    """What is chosen at a venue where nobody has chosen anything else."""
    return {**USUAL, "points": usual_points(venue)}


def grey() -> bool:
    """A switch; whether the figure is shown without colours."""
    return st.toggle("As a black-and-white printer has it", **kept_value(_key("grey"), False))


def now() -> dict[str, Any]:
    """What is chosen, as the address says it."""
    first = usual(choice(_key("venue"), USUAL["venue"]))
    return {name: choice(_key(name), value) for name, value in first.items()} | {"grey": int(choice(_key("grey"), 0))}


def take(found: dict[str, Any]) -> None:
    """Set what an address asks, and all else as usual."""
    first = usual(found.get("venue", USUAL["venue"]))
    for name, value in {**first, **found}.items():
        if name in first:
            choose(_key(name), bool(value) if name == "grey" else value)


def _key(name: str) -> str:
    return f"figure-{name}"
