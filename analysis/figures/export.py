"""The only place that writes figures: PDF, SVG, PNG, and CSV or NPZ of exactly the numbers that were drawn.

Every file says where it comes from: the model and the text with their hashes, the Spec, versions, and the command that
makes the same file again, byte by byte.
"""

import hashlib
import json
import os
import shlex
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import COMMAND, files
from ..runs.run import Run
from .base import Figure
from .citations import bibtex, caption
from .inputs import FigureInput, open_input
from .sheet import KINDS, Layout, missing, rendered


def command(figure: Figure, folder: Path, out: Path, layout: Layout) -> str:
    """The command line that makes this file."""
    words = [*COMMAND.split(), "figure", str(figure), "--run", str(folder), "--out", str(out)]
    words += ["--venue", layout.venue, "--points", f"{layout.text_size:g}", "--dpi", str(layout.dpi)]
    return shlex.join(words)


def provenance(figure: Figure, source: FigureInput, out: Path, layout: Layout) -> dict[str, Any]:
    """What a file says of itself."""
    spec, lane = source.about.get("spec", {}), getattr(figure, "lane", None)
    policies = source.policies(lane)
    # A comparison has read other texts for a task than for perplexity.
    text, tokens = (figure.task, None) if figure.task else (source.text, source.tokens(lane))
    known = spec | {"text": figure.task or source.title, "trained": source.trained(figure)}
    return {
        "figure": str(figure),
        "caption": caption(figure, known, policies, tokens, figure.marked(source.data)),
        "bibtex": bibtex(figure, spec, policies),
        "command": command(figure, source.folder, out, layout),
        "model": spec.get("model"),
        "weights_sha256": source.about.get("weights_sha256"),
        "text": text,
        "text_sha256": None if figure.task else source.about.get("text_sha256"),
        "begins": source.about.get("begins"),
        "spec": spec,
        "run": source.command,
        # No command line makes them.
        "switches": source.data.switches if isinstance(source.data, Run) else [],
        "versions": {p: version(p) for p in ("torch", "transformers", "matplotlib", "seaborn", "numpy")},
    }


def export(figure: Figure, folder: Path, out: Path, layout: Layout | None = None) -> dict[str, Any]:
    """Make a figure of what lies in a folder and write it; the ending of `out` says as what.

    Provenance of CSV and NPZ, which have no room for it, stands in a .json file beside them.  A figure that was made
    here before is made anew.  Raises ValueError with what to do, and where another file of that name is there.
    Returns what the file says of itself, and in `missing` what no font of this machine has.
    """
    layout, out = layout or Layout(), Path(out)
    if (kind := out.suffix.lstrip(".").lower()) not in KINDS:
        raise ValueError(f"{out.name} ends in none of: {', '.join(KINDS)}; choose one of these endings for --out")
    beside = out.with_suffix(out.suffix + ".json") if kind in ("csv", "npz") else None
    check_own(out)
    if beside is not None and os.path.exists(beside) and _digest(beside) is None:
        raise ValueError(f"{beside} is there already, and what {out.name} is of belongs there: choose another --out")
    source = open_input(folder, figure.needs)
    figure = figure.resolved(source.data)
    about = provenance(figure, source, out, layout)
    numbers = figure.numbers(source.data)
    data = rendered(figure, numbers, kind, layout, about)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise files.unwritten(out, e) from e
    with files.written(out) as f:
        f.write(data)
        if beside is not None:
            # Both or neither take their names, so the numbers have their room first.
            f.flush()
            about["sha256"] = hashlib.sha256(data).hexdigest()
            files.write(beside, json.dumps(about, indent=2) + "\n")
    return about | {"missing": missing(numbers)}


MARKS = {
    ".pdf": b"/Creator (Sinkscope)",
    ".svg": b"<dc:title>Sinkscope</dc:title>",
    ".png": b"Software\0Sinkscope",
    ".html": b'<meta name="generator" content="Sinkscope">',
}
"""What stands in every file of its kind that is written here."""


def check_own(out: Path) -> None:
    """Raises ValueError where there is a file that was not written here: it would be lost."""
    if not os.path.exists(out):
        return
    kind, own = out.suffix.lower(), False
    with suppress(ValueError, OSError):
        data = files.contents(out, files.MAX_NUMBERS)
        if kind in (".csv", ".npz"):
            own = _digest(out.with_suffix(out.suffix + ".json")) == hashlib.sha256(data).hexdigest()
        else:
            own = MARKS.get(kind, MARKS[".html"]) in data
    if not own:
        raise ValueError(f"{out} is there already and was not made by Sinkscope: choose another file for --out")


def _digest(beside: Path) -> str | None:
    """Of the numbers that a .json file stands beside; None where it is not of our making."""
    try:
        about = files.record(beside, dict[str, Any], "")
    except ValueError:
        return None
    return about.get("sha256") if "figure" in about else None
