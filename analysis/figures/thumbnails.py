"""Small pictures of a run for HTML: its curves as SVG, and its sink grid as PNG.

Numbers alone go into them, never a text of the run.
"""

import base64
import io
import math

import numpy as np
from PIL import Image

from ..metrics import FIRST
from ..palette import colours
from ..policies import parse
from ..runs.preview import Preview

WIDTH, HEIGHT, EDGE = 120, 44, 3
STROKES = {
    "solid": "", "dash": "5 3", "dot": "1 2.5", "dashdot": "5 2 1 2", "longdash": "9 3", "longdashdot": "9 2 1 2",
}  # fmt: skip
"""Dashes of SVG lines."""
INK = ".ink{stroke:#000}@media(prefers-color-scheme:dark){.ink{stroke:#fff}}"
"""What is black on a light page is white on a dark one: an image takes the scheme of the page that it stands on."""
VIRIDIS = (
    (68, 1, 84), (72, 26, 108), (71, 47, 125), (65, 68, 135), (57, 86, 140), (49, 104, 142), (42, 120, 142),
    (35, 136, 142), (31, 152, 139), (34, 168, 132), (53, 183, 121), (84, 197, 104), (122, 209, 81), (165, 219, 54),
    (210, 226, 27), (253, 231, 37),
)  # fmt: skip


def sparkline(preview: Preview) -> str:
    """Curves of all lanes over tokens read, as an image, the lowest NLL at the bottom; empty before there are any."""
    curves = [np.array([math.nan if y is None else y for y in lane.curve]) for lane in preview.lanes]
    known = np.concatenate(curves) if curves else np.empty(0)
    if not np.isfinite(known).any():
        return ""
    low, high = np.nanmin(known), np.nanmax(known)
    # A curve has points from its first token on to its last.
    longest = max(1, *(lane.tokens - 1 - FIRST for lane in preview.lanes))
    styles, lines = colours([parse(lane.policy) for lane in preview.lanes]), []
    for lane, curve, (colour, dash) in zip(preview.lanes, curves, styles, strict=True):
        x = EDGE + np.linspace(0, max(0, lane.tokens - 1 - FIRST), len(curve)) * (WIDTH - 2 * EDGE) / longest
        y = EDGE + (high - curve) * (HEIGHT - 2 * EDGE) / max(high - low, 1e-9)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if math.isfinite(b))
        look = 'class="ink"' if colour == "#000000" else f'stroke="{colour}"'
        lines.append(f'<polyline points="{points}" {look} stroke-dasharray="{STROKES[dash]}"/>')
    size = f'width="{WIDTH}" height="{HEIGHT}" fill="none" stroke-width="1.6"'
    drawn = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{INK}</style>{"".join(lines)}</svg>'
    return _image("sk-run-curve", "svg+xml", drawn.encode(), "NLL of each lane")


def _image(style: str, kind: str, data: bytes, alt: str) -> str:
    return f'<img class="{style}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{alt}">'


def sink_grid(preview: Preview) -> str:
    """Sink mass of all heads as an HTML image, layers across and heads up; empty before there is any."""
    if not preview.grid:
        return ""
    levels = np.frombuffer(preview.grid, np.uint8).reshape(preview.layers, preview.heads).T[::-1]
    stops = np.linspace(0, 255, len(VIRIDIS))
    table = np.stack([np.interp(np.arange(256), stops, channel) for channel in zip(*VIRIDIS, strict=True)], 1)
    file = io.BytesIO()
    Image.fromarray(table.round().astype(np.uint8)[levels]).save(file, "PNG")
    alt = f"Sink mass of {preview.layers} layers of {preview.heads} heads"
    return _image("sk-run-grid", "png", file.getvalue(), alt)
