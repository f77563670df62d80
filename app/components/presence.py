"""Says on every page when the server has gone: nothing else would move any more, and nobody would know why."""

from streamlit.components import v2

from .parts import HERE

_component = v2.component(
    "presence",
    html='<div class="sk-away" role="alert"></div>\n',
    css=(HERE / "presence" / "presence.css").read_text(encoding="utf-8"),
    js=(HERE / "presence" / "main.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def mount(words: str) -> None:
    """Watch the connection; `words`: what to say while there is none."""
    _component(data=words, key="presence")
