"""The only place that writes figures: PDF, SVG, PNG, and CSV or NPZ of exactly the numbers that were drawn.

Every file says where it comes from: the model and the text with their hashes, the Spec, versions, and the command that
makes the same file again, byte by byte.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import files
from ..runs.folder import Run, about_of
from ..runs.folder import load as load_run
from . import Figure
from .sheet import KINDS, Layout, missing, rendered
from .sources import bibtex, caption


@dataclass(frozen=True, eq=False)
class Source:
    """What a figure is made of, and what is known of where it came from."""

    place: Path
    what: Any
    about: Mapping[str, Any]


def open_source(place: Path, needs: str) -> Source:
    """A run, a stretch, a grid or trainings in a folder.  Raises ValueError where there is none of the kind."""
    place = Path(place)
    if needs == "grid":
        first = next(iter(sorted(place.glob("*/run.json"))), None)
        return Source(place, place, about_of(first.parent) if first else {})
    if needs == "run":
        return Source(place, load_run(place), about_of(place))
    if needs == "trainings":
        from ..lab.folder import read

        trained = read(place)
        # A recipe says all of a model that was trained by it.
        return Source(place, trained, {"spec": {"model": [str(t.recipe) for t in trained]}})
    from ..maps.atlas import Atlas
    from ..maps.capture import Stretch
    from ..models.loading import load

    stretch = Stretch(place)
    spec = stretch.spec
    model = load(spec.model, dtype=spec.dtype, device=spec.device, weights=spec.weights, kv_heads=spec.kv_heads)
    return Source(place, Atlas(stretch, model), stretch.about)


def command(figure: Figure, place: Path, out: Path, layout: Layout) -> str:
    """The command line that makes this file."""
    words = ["python", "-m", "analysis", "figure", str(figure), "--run", str(place), "--out", str(out)]
    words += ["--venue", layout.venue, "--points", f"{layout.points:g}", "--dpi", str(layout.dpi)]
    return shlex.join(words)


def provenance(figure: Figure, source: Source, out: Path, layout: Layout) -> dict[str, Any]:
    """What a file says of itself."""
    spec = source.about.get("spec", {})
    policies = _policies(source)
    return {
        "figure": str(figure),
        "caption": caption(figure, spec, policies),
        "bibtex": bibtex(figure, spec, policies),
        "command": command(figure, source.place, out, layout),
        "model": spec.get("model"),
        "weights_sha256": source.about.get("weights_sha256"),
        "text": spec.get("text"),
        "text_sha256": source.about.get("text_sha256"),
        "begins": source.about.get("begins"),
        "spec": spec,
        "run": source.what.spec.command() if isinstance(source.what, Run) else None,
        "versions": {p: version(p) for p in ("torch", "transformers", "matplotlib", "seaborn", "numpy")},
    }


def _policies(source: Source) -> list[str]:
    """Of all lanes, with those that a lane was switched to; of a grid those of its runs."""
    if isinstance(source.what, Path):
        runs = [about_of(path.parent).get("spec", {}) for path in sorted(source.what.glob("*/run.json"))]
        return list(dict.fromkeys(policy for spec in runs for policy in spec.get("policies", ())))
    switched = [e["policy"] for e in getattr(source.what, "events", ()) if e["what"] == "switch"]
    return list(dict.fromkeys([*source.about.get("spec", {}).get("policies", ()), *switched]))


def export(figure: Figure, place: Path, out: Path, layout: Layout | None = None) -> dict[str, Any]:
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
    source = open_source(place, figure.needs)
    figure = figure.on(source.what)
    about = provenance(figure, source, out, layout)
    numbers = figure.numbers(source.what)
    data = rendered(figure, numbers, kind, layout, about)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise files.unwritten(out, e) from e
    if beside is not None:
        about["sha256"] = hashlib.sha256(data).hexdigest()
        files.write(beside, json.dumps(about, indent=2) + "\n")
    with files.written(out) as f:
        f.write(data)
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
        data = files.contents(out, files.MOST_NUMBERS)
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
