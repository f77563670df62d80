"""The library.  What a notebook needs most can be imported from here; nothing is loaded before it is asked for."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy(package: str, homes: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that gives out names of its modules, `homes`, and imports them only
    when they are asked for."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"{package} has no {name!r}; from here come: {', '.join(homes)}")
        return getattr(import_module(homes[name], package), name)

    return get, lambda: sorted(homes)


__getattr__, __dir__ = lazy(
    __name__,
    {
        "load": ".models.loading",
        "read": ".texts",
        "tokenize": ".texts",
        "parse": ".policies",
        "map_of": ".maps.atlas",
        "FIGURES": ".figures",
        "head_map": ".figures",
        "perplexity": ".figures",
        "sink_grid": ".figures",
    },
)
