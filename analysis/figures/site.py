"""Recordings as a static site: a page that replays for each of them, and an index, with relative links only.

Any web server can serve it below any address, and it opens from a folder too.
"""

import html
import shutil
from pathlib import Path
from string import Template

from .. import files, resource
from ..models.kinds import named
from ..policies import parse
from ..runs.library import GALLERY, Entry, entries
from .alone import PLOTLY
from .inputs import open_input
from .report import page
from .thumbnails import sink_grid, sparkline

TEMPLATE = resource("assets/site.html")
SCRIPT = "plotly.min.js"
"""The plotting script, once for all pages."""


def site(out: Path, gallery: Path = GALLERY) -> list[Path]:
    """Write the pages of all recordings of a folder, and an index of them; returns the pages.

    Raises ValueError where the folder has no recordings, one is damaged, or a page cannot be written.
    """
    shown = sorted((e for e in entries(gallery) if e.kind in ("reading", "chat")), key=lambda e: e.name)
    if not shown:
        raise ValueError(f"{gallery} has no recordings: put folders of runs into it first")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with files.written(out / SCRIPT) as f, PLOTLY.open("rb") as script:
            shutil.copyfileobj(script, f)
    except OSError as e:
        raise files.unwritten(out, e) from e
    pages = []
    for recording in shown:
        pages.append(place := out / f"{recording.name}.html")
        files.write(place, page(open_input(recording.path, "run"), plots=SCRIPT))
    index = Template(TEMPLATE.read_text(encoding="utf-8"))
    # `make docs` writes them there.
    docs = '<p><a href="docs/index.html">Documentation</a></p>' if (out / "docs" / "index.html").exists() else ""
    files.write(out / "index.html", index.substitute(stories="\n".join(map(_story, shown)), docs=docs))
    return pages


def _story(recording: Entry) -> str:
    """A recording in the index: its pictures, its name, what was read under which policies, and where its page lies."""
    policies = ", ".join(parse(p).label for p in recording.policies)
    preview = recording.preview
    read = max((lane.tokens for lane in preview.lanes), default=0) if preview else 0
    pictures = f"{sparkline(preview)}{sink_grid(preview)}" if preview else ""
    text, model = Path(recording.text).name, named(recording.model)
    facts = " · ".join((text, model, f"{read:,} tokens", recording.arithmetic))
    return (
        f'<li><div class="pictures">{pictures}</div><div><h2><a href="{html.escape(recording.name)}.html">'
        f"{html.escape(recording.title)}</a></h2><p>{html.escape(policies)}</p><p>{html.escape(facts)}</p></div></li>"
    )
