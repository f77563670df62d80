"""Back and next through a list, by button and arrow key.  It says where to and not how far, so no press is lost however
fast they come: Streamlit makes one of two presses of a button that come before it has run."""

from collections.abc import Callable

from .parts import declare

_component = declare("pager", "main")


def mount(at: int, count: int, words: tuple[str, str], *, seen: float, key: str, on_turn: Callable[[], None]) -> None:
    """`at` of `count`; `words`: what the buttons say.

    `on_turn`: another is wanted, in `session_state[key]["turn"]`: `to`, and the `press`, of which the newest that was
    carried out is `seen`.
    """
    data = {"at": at, "count": count, "words": words, "seen": seen}
    _component(data=data, key=key, on_turn_change=on_turn)
