"""The figure of the documentation: ratios against peers, each beside what was asked.

`python -m tests.bench.figure FILE.json OUT.{pdf,svg,png}` draws what `python -m tests.bench --json FILE.json` wrote.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from analysis.figures.base import Figure, Numbers
from analysis.figures.drawing import axes, sheet_of
from analysis.figures.sheet import Layout, rendered

from .report import Measured, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REACHED, MISSED = "#0072B2", "#D55E00"
"""Of Okabe and Ito's colours; what is missed is hatched, too."""
INCHES = 0.17
"""From one bar to the next."""


@dataclass(frozen=True)
class Ratios(Figure):
    """How many times as fast as each peer, on a logarithmic scale, and the least that was asked."""

    name: ClassVar[str] = "ratios"
    title: ClassVar[str] = "Ratios against peers"
    needs: ClassVar[str] = "benchmark"

    def numbers(self, source: Measured) -> Numbers:
        """Columns `peer`, `name`, `ratio`, `asked`, peer after peer.  Raises ValueError where nothing was asked."""
        if source.toy:
            raise ValueError("sizes of a toy say nothing: measure without --toy")
        found = [row for row in source.rows if row.asked is not None]
        if not found:
            raise ValueError("nothing stands beside a peer with a ratio that was asked: measure engine, ranked or chat")
        peers = list(dict.fromkeys(row.peer for row in found))
        found.sort(key=lambda row: peers.index(row.peer))
        columns = {"peer": "peer", "name": "name", "ratio": "value", "asked": "asked"}
        return {column: np.array([getattr(row, of) for row in found]) for column, of in columns.items()}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """A bar for each ratio, under the name of its peer; the page is as high as they need."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        ax = axes(ax)
        at, heads, peer = [], dict[int, str](), ""
        for found in data["peer"].tolist():
            if found != peer:
                peer = found
                heads[len(at) + len(heads)] = f"Against {peer}"
            at.append(len(at) + len(heads))
        rows = len(at) + len(heads)
        sheet = sheet_of(ax)
        sheet.set_size_inches(sheet.get_size_inches()[0], INCHES * rows + 0.8)
        reached = data["ratio"] >= data["asked"]
        for these, colour, hatch in ((reached, REACHED, ""), (~reached, MISSED, "////")):
            where, ratios = np.array(at)[these], data["ratio"][these]
            ax.barh(where, ratios - 1, left=1, height=0.7, color=colour, hatch=hatch, edgecolor="white", lw=0)
        for y, ratio, asked in zip(at, data["ratio"], data["asked"], strict=True):
            ax.plot([asked, asked], [y - 0.48, y + 0.48], color="black", lw=1.6, solid_capstyle="butt")
            ax.annotate(f"{ratio:.2f}", (max(ratio, asked, 1), y), (4, 0), textcoords="offset points", va="center")
        ax.axvline(1, color="black", lw=0.6)
        named = dict(zip(at, data["name"].tolist(), strict=True)) | heads
        ax.set_yticks(range(rows), [named[y] for y in range(rows)])
        for y in heads:
            ax.get_yticklabels()[y].set_fontweight("bold")
        ax.set(xscale="log", xlabel="Times as fast as the peer", ylim=(rows - 0.4, -0.6))
        ax.set_xlim(right=1.6 * max(data["ratio"].max(), data["asked"].max()))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")
        ax.tick_params(axis="y", length=0)
        marks = [
            Patch(facecolor=REACHED, label="As asked"),
            Patch(facecolor=MISSED, hatch="////", edgecolor="white", lw=0, label="Less than asked"),
            Line2D([], [], color="black", lw=1.6, label="Asked"),
        ]
        ax.legend(handles=marks, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        return ax


def main() -> None:
    """Draw a file of figures."""
    asked = argparse.ArgumentParser(prog="python -m tests.bench.figure", description=__doc__.split("\n")[0])
    asked.add_argument("file", type=Path, help="what python -m tests.bench --json wrote")
    asked.add_argument("out", type=Path, help="a .pdf, .svg or .png file")
    chosen = asked.parse_args()
    figure, measured = Ratios(), read(chosen.file)
    about = {"machine": asdict(measured.machine), "began": measured.began, "commit": measured.commit}
    drawn = rendered(figure, figure.numbers(measured), chosen.out.suffix[1:], Layout(dpi=200), about)
    chosen.out.write_bytes(drawn)


if __name__ == "__main__":
    main()
