"""A button that copies the address of the page, by which somebody else sees the same."""

from streamlit.components import v2

from .parts import HERE

_component = v2.component(
    "link",
    html='<button type="button" class="sk-link"></button><span class="sk-unseen" role="status"></span>\n',
    css=(HERE / "link" / "link.css").read_text(encoding="utf-8"),
    js=(HERE / "link" / "main.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def mount(words: str, copied: str) -> None:
    """`words`: what the button says, and `copied`: what it says when it has been pressed."""
    _component(data={"words": words, "copied": copied}, key="link")
