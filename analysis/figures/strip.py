"""Text coloured by how surprising each token was."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..runs.run import Run
from ..settings import setting
from .base import Figure, Numbers
from .drawing import DIMMEST, axes, colour_bar, decades, lay_out, sheet_of
from .fonts import MONO, families, visible
from .head_map import EVICTED
from .paragraph import lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DARKEST = 8.0
"""Nats per token that have the darkest colour."""
LIGHT = 0.68
"""How far the colours of tokens go towards the darkest orange: black text is read on all of them."""
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

    def resolved(self, source: Run) -> Self:
        """With as many tokens as the lane has read."""
        read = max((len(track.nll) + 1 for track in source.tracks[self.lane :][:1]), default=0)
        return replace(self, tokens=max(1, min(self.tokens, read - self.begin)))

    def numbers(self, source: Run) -> Numbers:
        """Columns `token`, `text` and `nll` [tokens].  Raises ValueError where there is no such lane or token."""
        from ..runs.recording import piece_lists

        if self.lane >= len(source.tracks):
            raise ValueError(f"the run has lanes 0 to {len(source.tracks) - 1}, and not {self.lane}: choose one")
        track, begin = source.tracks[self.lane], self.begin
        end = min(begin + self.tokens, len(track.nll) + 1)
        if begin >= end:
            raise ValueError(f"the lane has read {len(track.nll) + 1:,} tokens, so none from {begin:,} on")
        texts = written_out(piece_lists(source)[self.lane][begin:end])
        return {"token": np.arange(begin, end), "text": texts, "nll": track.nll.view()[begin - 1 : end - 1]}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """Lines of text, darker where a token was less expected."""
        return strip(data, ax=ax)


def written_out(texts: Sequence[str]) -> NDArray[np.str_]:
    """Texts of tokens as an array, [tokens]; it would drop a NUL at the end of a text, so that is written out."""
    return np.array([text.replace("\0", "\\x00") for text in texts])


def strip(data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
    """Draw columns `text` and `nll`, or `attention` (NaN: evicted), as lines of text from the top of the axes on.

    Lines are as long as the axes are wide; how many there are depends on the text, so they may reach below the axes.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
    from matplotlib.font_manager import FontProperties
    from matplotlib.transforms import Affine2D, ScaledTranslation

    ax = axes(ax)
    by_nll = "nll" in data
    values = data["nll"] if by_nll else data["attention"]
    norm = Normalize(0, DARKEST, clip=True) if by_nll else LogNorm(DIMMEST, 1, clip=True)
    paper = LinearSegmentedColormap.from_list("paper", colormaps["Oranges"](np.linspace(0, LIGHT, 256)))
    meaning = ScalarMappable(norm, paper)
    ax.axis("off")
    bar = colour_bar(ax, meaning, "NLL (nats)" if by_nll else "Attention weight")
    if by_nll:
        ends = np.arange(0, DARKEST + 1, 2).tolist()
        bar.set_ticks(ends, labels=[f"{end:g}" if end < DARKEST else f"≥ {end:g}" for end in ends])
    else:
        decades(bar.ax.yaxis, least=DIMMEST)
    sheet = sheet_of(ax)
    lay_out(sheet)
    size = FontProperties(size="small").get_size_in_points()
    texts = data["text"].tolist()
    names = tuple(families(visible("".join(texts)), MONO))
    below_top = ScaledTranslation(0, 1, ax.transAxes)  # ty: ignore[invalid-argument-type]
    points = Affine2D().scale(1 / 72) + sheet.dpi_scale_trans + below_top
    boxes, colours = [], []
    width = ax.get_window_extent().width / sheet.dpi * 72
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
