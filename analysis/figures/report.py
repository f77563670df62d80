"""One page on a run: it replays, in the component that the app has for it, beside its text, settings and origin.

It opens without network or Python, for students and for what goes beside a paper.
"""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import files, resource
from ..runs.facts import head_of
from ..runs.recording import piece_lists, recorded_in
from ..runs.run import Run
from ..runs.summary import label_of, summarize
from ..texts import said_as_text, with_bos
from .alone import replayed, standing_alone
from .export import check_own, provenance
from .head_map import HeadMap
from .inputs import FigureInput, open_input
from .sheet import Layout, rendered

SHADES = 9
"""Colours of the text, from the most expected token to the least."""
DARKEST = 8.0
"""Nats of the last of them."""
TEMPLATE = resource("assets/report.html")


def report(folder: Path, out: Path, *, lane: int = 0, stretch: Path | None = None, heads: Sequence[str] = ()) -> Path:
    """Write the report of a run; `lane`: whose text is shown; `heads`: layer.head of maps of a captured stretch.

    Raises ValueError where there is no run, lane, stretch or head, and where `out` is not named as a page.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"a report is a page: name it {out.stem}.html, and not {out.name}")
    check_own(out)
    source = open_input(folder, "run")
    maps = []
    if heads and stretch is None:
        raise ValueError("maps are drawn from a captured stretch: name its folder with --stretch")
    if stretch is not None:
        atlas = open_input(stretch, "stretch")
        maps = [_map(atlas, *head_of(name)) for name in heads] or [_map(atlas)]
    made = page(source, lane=lane, maps=maps)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise files.unwritten(out, e) from e
    files.write(out, made)
    return out


def page(source: FigureInput, *, lane: int = 0, maps: Sequence[str] = (), plots: str = "") -> str:
    """The report as HTML; `plots`: address of the plotting script, which otherwise stands in the page itself."""
    run: Run = source.data
    if not 0 <= lane < len(run.tracks):
        raise ValueError(f"lane must be one of the run, 0 to {len(run.tracks) - 1}, not {lane}")
    if not any(len(t.nll) for t in run.tracks):
        raise ValueError("the run has read nothing yet, so there is nothing to tell")
    spec, about = run.spec, {k: v for k, v in source.about.items() if k not in ("heads", "model")}
    component, name, data = replayed(run, recorded_in(source.folder, run, source.about), lane)
    read = max(len(t.nll) for t in run.tracks) + 1
    switched = [e for e in run.events if e["what"] == "switch"]
    note = f"\n# Here it had read {read:,} tokens."
    note += "\n# Then, while it read: " + json.dumps(switched) if switched else ""
    return standing_alone(
        TEMPLATE,
        component,
        data | {"whole": run.kind != "chat"},
        plots=plots,
        title=html.escape(name),
        subtitle=" · ".join(
            (
                f"{read:,} tokens{'' if run.begins is None else html.escape(f' {with_bos(run.begins)}')}",
                *([html.escape(said_as_text(run.as_text, "in the text"))] if run.as_text else []),
                html.escape(spec.arithmetic),
                f"{len(run.tracks)} lane{'s' * (len(run.tracks) != 1)}",
                "made with Sinkscope",
            )
        ),
        summary=_summary(run),
        shades=" ".join(f".n{i} {{ --share: {i / (SHADES - 1):.0%}; }}" for i in range(SHADES)),
        parts="\n".join((_text(run, lane), *(["<h2>Attention maps</h2>", *maps] if maps else []))),
        command=html.escape(spec.command() + note),
        about=html.escape(json.dumps(about, indent=2)),
    )


def _summary(run: Run) -> str:
    header = ("Lane", "Tokens", "Perplexity", "Excess NLL", "Kept", "Cache")
    rows = ["".join(f"<th>{name}</th>" for name in header)]
    for lane in summarize(run):
        if lane.tokens:
            cells = (
                html.escape(lane.label), f"{lane.tokens:,}", f"{lane.perplexity:.3f}", lane.excess_text,
                lane.cached_text, f"{lane.cache_bytes / 1e6:,.1f} MB",
            )  # fmt: skip
            rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    return "".join(f"<tr>{row}</tr>" for row in rows)


def _text(run: Run, lane: int) -> str:
    """The text of a lane, every token on the colour of what it cost."""
    track = run.tracks[lane]
    count = len(track.nll)
    # The first token is predicted by none.
    pieces = piece_lists(run)[lane][1 : count + 1]
    steps = np.clip(track.nll.view()[:count] / DARKEST * SHADES, 0, SHADES - 1).astype(int)
    spans = "".join(
        f'<span class="n{step}">{html.escape(text)}</span>' for text, step in zip(pieces, steps, strict=True)
    )
    key = "".join(f'<i class="n{i}"></i>' for i in range(SHADES))
    return (
        f"<h2>The whole text, as {html.escape(label_of(run, lane))} read it</h2>"
        f'<p class="muted key">{key} 0 to {DARKEST:g} nats and more: the stronger the colour, the less expected</p>'
        f'<div class="text" tabindex="0" aria-label="The whole text">{spans}</div>'
    )


def _map(atlas: FigureInput, layer: int = -1, head: int = -1) -> str:
    """One attention map, as a picture in the page; without a head, that of the one with the largest sink mass."""
    figure, layout = HeadMap(layer=layer, head=head).resolved(atlas.data), Layout(dpi=160)
    about = provenance(figure, atlas, Path(f"{figure.layer}.{figure.head}.png"), layout)
    picture = base64.b64encode(rendered(figure, figure.numbers(atlas.data), "png", layout, about)).decode()
    words = html.escape(f"Layer {figure.layer}, head {figure.head}, {atlas.data.stretch.label}")
    # A stretch may be of another model or text than the run beside it: the caption says of which it is.
    caption = html.escape(about["caption"])
    picture = f'<img alt="{words}" src="data:image/png;base64,{picture}">'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
