"""What is played with in the chapters of the lesson: the chapter NAME has `NAME.py` here and a text in `assets/lesson`.

The English texts say which chapters there are, and their order.
"""

from importlib import import_module

from .. import lesson
from .stage import Play

PLAYS: dict[str, Play] = {name: import_module(f"{__name__}.{name}").PLAY for name in lesson("en") if name != "page"}
"""By the name of the chapter."""
