"""Text coloured by how surprising each token was, or by the attention that it got."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import Affine2D, ScaledTranslation

from ..maps.atlas import Atlas
from ..runs.folder import Run
from ..settings import setting
from .base import Figure, Numbers, axes, bar, decades, settle, strongest
from .head_map import EVICTED
from .lettering import MONO, families, visible
from .paragraph import lines

MOST = 8.0
"""Nats per token that have the darkest colour."""
PAPER = LinearSegmentedColormap.from_list("paper", colormaps["Oranges"](np.linspace(0, 0.68, 256)))
"""Colours on which black text is read."""
LEADING, HIGH, DEEP = 1.55, 1.08, 0.37
"""Of a line: from one to the next, and above and below its base, in sizes of the text."""


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
        from ..models.loading import load
        from ..texts import pieces

        if self.lane >= len(source.tracks):
            raise ValueError(f"the run has lanes 0 to {len(source.tracks) - 1}, and not {self.lane}: choose one")
        track, begin = source.tracks[self.lane], self.begin
        end = min(begin + self.tokens, len(track.nll) + 1)
        if begin >= end:
            raise ValueError(f"the lane has read {len(track.nll) + 1:,} tokens, so none from {begin:,} on")
        ids = track.token_ids.view()[begin - 1 : end - 1]
        looks = pieces(load(source.spec.model).tokenizer, ids)
        return {"token": np.arange(begin, end), "text": written(looks), "nll": track.nll.view()[begin - 1 : end - 1]}

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
        return {"token": np.arange(begin, end), "text": written(looks), "attention": row}

    def draw(self, data: Numbers, *, ax: Axes | None = None) -> Axes:
        return strip(data, ax=ax)


def written(looks: Sequence[str]) -> np.ndarray:
    """How tokens look, as an array; arrays of text drop the NUL that a text ends with, so it is written out."""
    return np.array([look.replace("\0", "\\x00") for look in looks])


def strip(data: Numbers, *, ax: Axes | None = None) -> Axes:
    """Draw columns `text` and `nll`, or `attention` (NaN: evicted), as lines of text from the top of the axes on.

    Lines are as long as the axes are wide; how many there are depends on the text, so they may reach below the axes.
    """
    ax = axes(ax)
    by_nll = "nll" in data
    values = data["nll"] if by_nll else data["attention"]
    norm = Normalize(0, MOST, clip=True) if by_nll else LogNorm(1e-4, 1, clip=True)
    meaning = ScalarMappable(norm, PAPER)
    ax.axis("off")
    scale = bar(ax, meaning, "NLL (nats)" if by_nll else "Attention weight")
    if not by_nll:
        decades(scale.ax.yaxis)
    settle(ax.figure)
    size = FontProperties(size="small").get_size_in_points()
    texts = data["text"].tolist()
    names = tuple(families(visible("".join(texts)), MONO))
    points = Affine2D().scale(1 / 72) + ax.figure.dpi_scale_trans + ScaledTranslation(0, 1, ax.transAxes)
    boxes, colours = [], []
    width = ax.get_window_extent().width / ax.figure.dpi * 72
    for row, line in enumerate(lines(texts, width, names, size)):
        base = -(row * LEADING + 1) * size
        for run in line:
            # What others wrote is never mathematics.
            ax.text(
                run.left, base, run.text, family=names, fontsize=size, transform=points, va="baseline", color="black",
                parse_math=False, gid=f"{'left' if run.backwards else 'right'}wards-{run.width:.2f}", in_layout=False,
            )  # fmt: skip
            for token, left, right in run.parts:
                low, high = base - DEEP * size, base + HIGH * size
                boxes.append([(left, low), (right, low), (right, high), (left, high)])
                colours.append(EVICTED if np.isnan(values[token]) else meaning.to_rgba(values[token]))
    drawn = PolyCollection(boxes, facecolors=colours, edgecolors="white", linewidths=0.3, transform=points, zorder=0)
    drawn.set(in_layout=False, clip_on=False)
    ax.add_collection(drawn, autolim=False)
    return ax
