"""The scripts and styles that draw runs in a browser: pieces of the app's components, put together as one module.

The app declares its components from these, and a page that plays a recording without the app has the same ones.
"""

import re

from .. import resource

COMPONENTS = resource("app/components")
SHARED = ("frame", "colour", "sample", "switch", "grid", "card", "plotly", "mount")
REPLAY = ("shared/recording", "shared/player", "shared/replay")
BOARD = (
    *REPLAY,
    *("board/toolbar", "board/cards", "board/curves", "board/map", "board/ranges", "board/strip", "board/replay"),
    "board/main",
)
"""The board of the read page, in this order."""
CONVERSATION = (
    *REPLAY,
    *(f"conversation/{name}" for name in ("lanes", "composer", "meters", "recorded", "replay", "main")),
)
"""The lanes of the chat page, in this order."""
ONE_MAP = "shared/recording", "board/map", "board/one_map"
"""The attention map of the board by itself."""
ALONE = "shared/alone"
"""What opens any of them on a page without a server."""

COMMENTS = re.compile(r"^[ \t]*//.*\n", re.MULTILINE)


def script(*parts: str) -> str:
    """The shared pieces and these as one module, in this order: a component's script can import nothing of its own.

    Lines of comments are left out: a page that stands alone would be a tenth larger.
    """
    whole = "\n".join(_contents(f"{part}.js") for part in (*(f"shared/{name}" for name in SHARED), *parts))
    return COMMENTS.sub("", whole)


def style(*parts: str) -> str:
    """The shared style, and those that stand beside these pieces."""
    folders = dict.fromkeys(part.split("/")[0] for part in parts if not part.startswith("shared/"))
    beside = [*(f"{part}.css" for part in parts), *(f"{folder}/{folder}.css" for folder in folders)]
    return "\n".join(map(_contents, ["shared/page.css", *(name for name in beside if (COMPONENTS / name).exists())]))


def _contents(name: str) -> str:
    return (COMPONENTS / name).read_text(encoding="utf-8")
