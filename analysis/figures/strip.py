"""Text coloured by how surprising each token was."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from ..record import Run
from ..settings import setting
from .base import Figure, Numbers, axes, bar

MOST = 8.0
"""Nats per token that have the darkest colour."""
ACROSS = 78
"""Characters of a line."""


@dataclass(frozen=True)
class Strip(Figure):
    """Some tokens of a run, each on the colour of its NLL in one lane."""

    name: ClassVar[str] = "strip"
    title: ClassVar[str] = "Token strip"
    needs: ClassVar[str] = "run"
    height: ClassVar[float] = 0.4

    lane: int = setting(0, "Which lane of the run.", low=0)
    begin: int = setting(1, "First token.", low=1)
    tokens: int = setting(120, "How many tokens from there on.", low=1, high=600)

    def numbers(self, source: Run) -> Numbers:
        from ..models import load
        from ..texts import pieces

        if self.lane >= len(source.tracks):
            raise ValueError(f"the run has lanes 0 to {len(source.tracks) - 1}, and not {self.lane}: choose one")
        track, begin = source.tracks[self.lane], self.begin
        end = min(begin + self.tokens, len(track.nll) + 1)
        if begin >= end:
            raise ValueError(f"the lane has read {len(track.nll) + 1:,} tokens, so none from {begin:,} on")
        ids = track.token_ids.view()[begin - 1 : end - 1]
        looks = pieces(load(source.spec.model).tokenizer, ids)
        return {"token": np.arange(begin, end), "text": np.array(looks), "nll": track.nll.view()[begin - 1 : end - 1]}

    def draw(self, data: Numbers, *, ax: Axes | None = None) -> Axes:
        return strip(data, ax=ax)


def strip(data: Numbers, *, ax: Axes | None = None) -> Axes:
    """Draw columns `text`, `nll` as lines of text."""
    from matplotlib import colormaps

    ax = axes(ax)
    meaning = ScalarMappable(Normalize(0, MOST, clip=True), colormaps["Oranges"])
    line = column = 0
    for text, nll in zip(data["text"].tolist(), data["nll"].tolist(), strict=True):
        shown = text.replace("\n", "⏎")
        if column + len(shown) > ACROSS:
            line, column = line + 1, 0
        dark = nll > 0.6 * MOST
        ax.text(
            column / ACROSS, -line, shown, family="DejaVu Sans Mono", color="white" if dark else "black", va="top",
            bbox={"facecolor": meaning.to_rgba(nll), "edgecolor": "none", "pad": 0.6}, fontsize="small",
        )  # fmt: skip
        column += len(shown)
        if "\n" in text:
            line, column = line + 1, 0
    ax.set(xlim=(0, 1), ylim=(-line - 1, 0.2))
    ax.axis("off")
    bar(ax, meaning, "NLL (nats)")
    return ax
