"""A run or a map in a notebook: the board of the pages, or its map, drawn by the same script in a frame of its own.

All of it stands in the notebook's file and asks no address for anything, so it is there without network, without this
library, and in a copy that was exported.  The frame shares no style, script or storage with the notebook around it.
"""

import html
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import resource
from ..policies import parse
from ..runs.about import about_of
from ..runs.codec import LEVELS, assemble, levels_of
from ..runs.library import named
from ..runs.player import ONE_MAP
from ..runs.reader import load
from ..runs.recording import recorded_in
from ..runs.run import Run
from ..runs.screen import SINK_TOKENS
from ..settings import quoted
from .alone import packed, replayed, standing_alone

TEMPLATE = resource("assets/frame.html")
SHOWN = "show takes a run (a Run, its folder, or its name in the library), or what map_of returns"
OF_MAP = {"map", "tokens", "head", "policy"}
"""What of a map is shown."""
LONGEST = 1024
"""Tokens of a map that is shown: it takes 1.4 MB in the notebook's file."""
LEAST = 1e-3
"""A weight that no row of a map lacks by rounding."""
STYLE = (
    "<style>.sinkscope-untrusted { display: none } .sinkscope { color-scheme: light } :is([data-jp-theme-light=false], "
    "[theme=dark], .vscode-dark, .vscode-high-contrast:not(.vscode-high-contrast-light)) .sinkscope "
    "{ color-scheme: dark }</style>"
)
"""How JupyterLab, Colab and VS Code say that they are dark: a page in a frame prefers what its frame has."""


@dataclass(frozen=True, repr=False)
class Shown:
    """What a notebook displays where a cell ends with it."""

    words: str
    """What it is, in one line."""
    page: str
    """The page in the frame, HTML that stands alone."""
    style: str
    """The size of the frame, as CSS."""

    def __repr__(self) -> str:
        return self.words

    def _repr_html_(self) -> str:
        """The frame: it may run scripts, which reach nothing outside it.

        A notebook that is not trusted has neither frame nor style, and says in words what would be there.
        """
        words = html.escape(self.words)
        return (
            f'{STYLE}<p class="sinkscope-untrusted">{words}. Trust this notebook, or run it, to see it here.</p>'
            f'<iframe class="sinkscope" sandbox="allow-scripts" title="{words}" '
            f'style="{self.style}; border: 0" srcdoc="{html.escape(self.page)}"></iframe>'
        )


def show(what: "Run | str | os.PathLike | Mapping[str, NDArray]") -> Shown:
    """A run or a map of a head, as a notebook displays it where a cell ends with it.

    `what`: a run in memory, its folder, the name of one in the library, or what `map_of` returns.  Raises ValueError,
    in one sentence, where it is nothing of these, has read nothing, or is damaged.
    """
    if isinstance(what, Run):
        return _board(what, recorded_in(None, what, {}))
    if isinstance(what, str | os.PathLike):
        folder = named(Path(what))
        if not os.path.exists(folder / "run.json"):
            raise ValueError(f"{quoted(str(what))} is no folder of a run, and no run of the library: {SHOWN}")
        if (kind := about_of(folder).get("kind")) not in (None, "", "reading", "chat"):
            raise ValueError(f"{quoted(str(what))} is of another kind ({kind}): {SHOWN}, a reading or a conversation")
        return _board(run := load(folder), recorded_in(folder, run, about_of(folder)))
    if isinstance(what, Mapping) and what.keys() >= OF_MAP:
        return _map(what)
    raise ValueError(f"{SHOWN}, and not {type(what).__name__}")


def _board(run: Run, recording: bytes) -> Shown:
    component, name, data = replayed(run, recording)
    read, title = max(len(track.nll) for track in run.tracks) + 1, html.escape(name)
    heading = f"<h1>{title}</h1>"
    page = standing_alone(TEMPLATE, component, data, plots="", title=title, heading=heading)
    lanes = f"{len(run.tracks)} lane{'s' * (len(run.tracks) > 1)}"
    return Shown(f"{name}: {read:,} tokens, {lanes}", page, "width: 100%; height: 1080px")


def _map(of: Mapping[str, NDArray]) -> Shown:
    weights, tokens = np.asarray(of["map"], np.float32), [str(token) for token in of["tokens"]]
    if weights.shape != (len(tokens), len(tokens)):
        raise ValueError(f"a map has a row and a column for each of its {len(tokens)} tokens, not {weights.shape}")
    if len(tokens) > LONGEST:
        raise ValueError(
            f"a notebook takes a map of at most {LONGEST:,} tokens, not {len(tokens):,}: draw it by head_map, which "
            "makes a picture, or take fewer words"
        )
    layer, head = (int(number) for number in of["head"])
    policy = parse(str(of["policy"])).label
    # Weights sum to 1: what a row lacks went to a sink without a token, which a family learned or a policy added.
    rest = 1 - np.nansum(weights, 1)
    arrays = {"map": levels_of(weights), "map_sinks": levels_of(weights[:, :SINK_TOKENS])}
    if (rest > LEAST).any():
        arrays["map_extra"] = levels_of(rest[:, None])
    frame: dict[str, Any] = {
        "run": "",
        "chosen": 0,
        "head": [layer, head],
        "constants": {"levels": LEVELS},
        "map": {
            "layer": layer,
            "head": head,
            "first": 0,
            "note": policy,
            "tokens": tokens,
            "sink_tokens": tokens[:SINK_TOKENS],
        },
    }
    name = f"Attention map of layer {layer}, head {head}, {policy}"
    data = {"map": {"packed": packed(assemble(frame, arrays))}, "view": {}}
    page = standing_alone(TEMPLATE, ONE_MAP, data, title=html.escape(name), heading="")
    return Shown(f"{name}: {len(tokens):,} tokens", page, "width: 100%; max-width: 560px; height: 540px")
