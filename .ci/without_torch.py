"""Tries what needs no torch of the installed wheel: modules, commands, figures of a real run, the first page."""

import compileall
import importlib
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import sinkscope
from sinkscope.analysis.figures import parse
from sinkscope.analysis.figures.inputs import open_input
from sinkscope.analysis.figures.sheet import Layout, rendered
from streamlit.logger import set_log_level
from streamlit.testing.v1 import AppTest

ABSENT = {"torch", "transformers", "accelerate"}
HOME = Path(sinkscope.__file__).parent
COMMAND = Path(sys.executable).with_name("sinkscope")


def modules() -> list[str]:
    """The names of all that can be imported; a page's script is run, and not imported."""
    files = (path.relative_to(HOME.parent).with_suffix("").parts for path in HOME.rglob("*.py"))
    names = {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in files}
    scripts = ("sinkscope.app.main", "sinkscope.app.views.")
    return sorted(n for n in names if not n.endswith("__main__") and not n.startswith(scripts))


def imported(name: str) -> bool:
    """Whether a module is imported; those that are not ask for a package that is not there."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name.partition(".")[0] in ABSENT:
            return False
        raise
    return True


def carried_out(*words: str | Path) -> None:
    """Carries out a command, which has to end well."""
    subprocess.run([COMMAND, *words], check=True, stdout=subprocess.DEVNULL)


def quiet(failure: threading.ExceptHookArgs) -> None:
    """Says nothing of the page's background thread, which loads what is absent."""
    if getattr(failure.exc_value, "name", None) not in ABSENT:
        threading.__excepthook__(failure)


# Modules of the page are imported where no page is.
set_log_level("error")
warnings.simplefilter("error", SyntaxWarning)
assert compileall.compile_dir(HOME, quiet=1, force=True)
names = modules()
print(sum(map(imported, names)), "of", len(names), "modules are imported")

run = HOME / "assets" / "gallery" / "drop"
with tempfile.TemporaryDirectory() as place:
    for words in ("policies", "figures", "models", "texts", "runs list"):
        carried_out(*words.split())
    # The command writes torch's version into a figure, so it cannot do without.
    for name in ("perplexity", "memory", "sink-grid", "sink-depth"):
        figure = parse(name)
        assert rendered(figure, figure.numbers(open_input(run, figure.needs).data), "pdf", Layout(), {})

threading.excepthook = quiet
page = AppTest.from_file(str(HOME / "app" / "main.py"), default_timeout=120).run()
assert not page.exception, page.exception
assert len(page.main), "the first page is empty"
