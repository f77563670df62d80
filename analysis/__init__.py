"""The library.  What a notebook needs most can be imported from here; nothing is loaded before it is asked for.

Also what differs between a checkout and an installed package: what commands are called, and how one gets what is
missing.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

INSTALLED = __name__.startswith("sinkscope.")
"""Whether this is in the package that the wheel installs (hatch_build.py), and not a checkout."""
COMMAND = "sinkscope" if INSTALLED else f"python -m {__name__}"
"""What every command begins with."""
APP = "sinkscope app" if INSTALLED else "make app"
"""What opens the pages."""
SETUP = "sinkscope setup" if INSTALLED else "make setup"
"""What installs the embedded model and the plays."""
GEMMA = "sinkscope setup --gemma" if INSTALLED else "make gemma"
"""What installs the optional model, after its terms were accepted."""
CLUSTER = "pip install 'sinkscope[cluster]'" if INSTALLED else "pip install -r requirements-cluster.txt"
"""What installs the backends of `reproduce`."""


def resource(path: str) -> Path:
    """A file or folder of the project itself, from `analysis/`, `app/` or `assets/` on, separated by slashes."""
    return Path(__file__).resolve().parents[1] / path


def lazy(package: str, homes: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that gives out names of its modules, `homes`, and imports them only
    when they are asked for."""

    def get(name: str) -> Any:
        """What has this name, from the module that it lives in."""
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
        "Spec": ".runs.spec",
        "run_of": ".runs.reading",
        "map_of": ".maps.atlas",
        "show": ".figures.notebook",
        "FIGURES": ".figures",
        "head_map": ".figures",
        "perplexity": ".figures",
        "sink_grid": ".figures",
    },
)
