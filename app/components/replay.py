"""A recording on a page: the browser fetches it and plays it by itself, in the component that draws it live."""

from collections.abc import Callable
from typing import Any

from ..recordings import address_of


def mount(
    component: Callable[..., Any],
    name: str,
    *,
    view: dict[str, Any],
    at: int | None,
    actions: list[tuple[str, str, str]],
    note: str,
    pace: int = 0,
    key: str,
    on_rest: Callable[[], None],
    on_press: Callable[[], None],
) -> None:
    """Replay the recording `name`, from a view and a position on; with a pace in tokens a second it plays at once.

    `actions`: buttons beside the player, what is pressed, its words and what they mean, of which the first stands out
    where it plays at once; `on_press`: one was pressed, `session_state[key]["press"]`; `on_rest`: what is looked at has
    changed, `["rest"]`.  Raises ValueError where there is no such recording.
    """
    asked = {"view": view, "at": at, "actions": actions, "note": note, "pace": pace}
    component(
        data={"recording": {"url": address_of(name)}, **asked},
        key=key,
        on_rest_change=on_rest,
        on_press_change=on_press,
    )
