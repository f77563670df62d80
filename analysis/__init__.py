"""The library.  What a notebook needs most can be imported from here; nothing is loaded before it is asked for."""

from importlib import import_module
from typing import Any

_HOMES = {
    "load": "models",
    "read": "texts",
    "tokenize": "texts",
    "parse": "policies",
    "map_of": "atlas",
    "FIGURES": "figures",
    "head_map": "figures",
    "perplexity": "figures",
    "sink_grid": "figures",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"analysis has no {name!r}; from here come: {', '.join(_HOMES)}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
