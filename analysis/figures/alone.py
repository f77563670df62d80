"""A page that stands alone: a component of the app, its data, and the plotting script, all in one file of HTML.

It opens without network or Python.  What else stands on it, a template says (assets/).
"""

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from .. import resource
from ..runs.player import ALONE, BOARD, CONVERSATION, script, style
from ..runs.run import Run

PLOTLY = resource("app/static/plotly.min.js")
"""The plotting script: plotly.js with the kinds of plots that the components draw, a quarter of the whole."""
POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline' blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:\">\n"
)
"""A page that stands alone takes nothing from anywhere, whatever stands in its text."""


def standing_alone(
    template: Path, component: Sequence[str], data: Mapping[str, Any], *, plots: str | None = None, **words: str
) -> str:
    """The page of a component, by its pieces (runs/player.py), that opens with these data.

    `plots`: address of the plotting script; empty: it stands in the page itself; None: nothing is plotted.  `words`:
    what else the template asks for, as HTML.
    """
    plotly = f'<script src="{html.escape(plots)}"></script>' if plots else "" if plots is None else _plotly()
    # No text can end the script that it stands in.
    written = json.dumps(data).replace("<", "\\u003c")
    return Template(template.read_text(encoding="utf-8")).substitute(
        words,
        policy="" if plots else POLICY,
        style=style(*component, ALONE),
        player=f'{plotly}\n<script type="application/json" id="data">{written}</script>\n'
        f'<script type="module">\n{script(*component, ALONE)}\n</script>',
    )


def replayed(run: Run, recording: bytes, lane: int = 0) -> tuple[Sequence[str], str, dict[str, Any]]:
    """The component that replays a run from its recording, what the run is called, and the data of that component;
    `lane`: which one is looked at first."""
    model, text = run.model.name if run.model else run.spec.model, Path(run.spec.text).name
    data = {"recording": {"packed": packed(recording)}}
    if run.kind == "chat":
        view = {"chosen": lane, "head": None, "token": None, "paint": False}
        return CONVERSATION, f"{text}, a conversation with {model}", data | {"view": view}
    view = {"mode": "relative", "paint": "nll", "reference": 0, "chosen": lane, "head": None}
    return BOARD, f"{text}, read by {model}", data | {"view": view}


def packed(data: bytes) -> str:
    """Bytes as text of a page: base64 of gzip, always the same."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def _plotly() -> str:
    """The plotting script, compressed, as an element of a page."""
    return f'<script type="text/plain" id="plotly">{packed(PLOTLY.read_bytes())}</script>'
