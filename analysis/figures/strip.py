"""Text coloured by how surprising each token was, or by the attention that it got."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from ..atlas import Atlas
from ..record import Run
from ..settings import setting
from .base import Figure, Numbers, axes, bar, strongest

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


@dataclass(frozen=True)
class AttentionStrip(Figure):
    """Tokens of a captured stretch, each on the colour of the attention that one later token gives it in one head."""

    name: ClassVar[str] = "attention-strip"
    title: ClassVar[str] = "Token strip of attention"
    needs: ClassVar[str] = "stretch"
    height: ClassVar[float] = 0.4

    layer: int = setting(-1, "Layer of the head; −1: where the head is that gives most to the first tokens.", low=-1)
    head: int = setting(-1, "The head; −1: the one that gives most to the first tokens.", low=-1)
    query: int = setting(-1, "The token that looks back; −1: the last one.", low=-1)
    tokens: int = setting(120, "How many tokens before it are shown, itself included.", low=1, high=600)

    def on(self, source: Atlas) -> Self:
        layer, head = strongest(source.stretch.mass, self.layer, self.head)
        query = source.stretch.tokens - 1 if self.query < 0 else self.query
        return replace(self, layer=layer, head=head, query=query)

    def numbers(self, source: Atlas) -> Numbers:
        from ..texts import pieces

        stretch, whole = source.stretch, self.on(source)
        if whole.query >= stretch.tokens:
            raise ValueError(
                f"the stretch has {stretch.tokens:,} tokens, so none at {whole.query:,}: choose a smaller one"
            )
        begin, end = max(0, whole.query + 1 - whole.tokens), whole.query + 1
        looks = pieces(source.tokenizer, stretch.token_ids[begin:end])
        row = source.row(whole.layer, whole.head, whole.query)[begin:end]
        return {"token": np.arange(begin, end), "text": np.array(looks), "attention": row}

    def draw(self, data: Numbers, *, ax: Axes | None = None) -> Axes:
        return strip(data, ax=ax)


def strip(data: Numbers, *, ax: Axes | None = None) -> Axes:
    """Draw columns `text` and `nll`, or `attention` (NaN: evicted), as lines of text."""
    from matplotlib import colormaps

    ax = axes(ax)
    by_nll = "nll" in data
    values = data["nll"] if by_nll else data["attention"]
    norm = Normalize(0, MOST, clip=True) if by_nll else LogNorm(1e-4, 1, clip=True)
    meaning = ScalarMappable(norm, colormaps["Oranges"])
    line = column = 0
    for text, value in zip(data["text"].tolist(), values.tolist(), strict=True):
        shown = text.replace("\n", "⏎")
        if column + len(shown) > ACROSS:
            line, column = line + 1, 0
        gone = np.isnan(value)
        dark = not gone and norm(value) > 0.6
        ax.text(
            column / ACROSS, -line, shown, family="DejaVu Sans Mono", va="top", fontsize="small",
            color="#9aa0a6" if gone else "white" if dark else "black",
            bbox={"facecolor": "white" if gone else meaning.to_rgba(value), "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
        column += len(shown)
        if "\n" in text:
            line, column = line + 1, 0
    ax.set(xlim=(0, 1), ylim=(-line - 1, 0.2))
    ax.axis("off")
    bar(ax, meaning, "NLL (nats)" if by_nll else "Attention weight")
    return ax
