"""One page on a run: curves, sink masses, the text, chosen maps, settings and where it all comes from.

It opens without network or Python, for students and for what goes beside a paper.
"""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np
import plotly.graph_objects as go

from .. import files
from ..palette import colours
from ..policies import parse
from ..runs.run import Run
from ..runs.summary import mean_sink_mass, summarize
from ..texts import said_as_text, with_bos
from .base import Numbers
from .export import check_own, provenance
from .head_map import HeadMap
from .inputs import FigureInput, open_input
from .memory import Memory
from .perplexity import Perplexity
from .sheet import Layout, rendered

SHADES = 9
"""Colours of the text, from the most expected token to the least."""
DARKEST = 8.0
"""Nats of the last of them."""
DASHES = {"solid": "solid", "dash": "dash", "dot": "dot", "dashdot": "dashdot"}

TEMPLATE = Path(__file__).parents[2] / "assets" / "report.html"


def report(folder: Path, out: Path, *, lane: int = 0, stretch: Path | None = None, heads: Sequence[str] = ()) -> Path:
    """Write the report of a run; `lane`: whose text is shown; `heads`: layer.head of maps of a captured stretch.

    Raises ValueError where there is no run, lane, stretch or head.
    """
    check_own(out)
    source = open_input(folder, "run")
    maps = []
    if heads and stretch is None:
        raise ValueError("maps are drawn from a captured stretch: name its folder with --stretch")
    if stretch is not None:
        atlas = open_input(stretch, "stretch")
        maps = [_map(atlas, *_head(name)) for name in heads] or [_map(atlas)]
    made = page(source, lane=lane, maps=maps)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise files.unwritten(out, e) from e
    files.write(out, made)
    return out


def page(source: FigureInput, *, lane: int = 0, maps: Sequence[str] = ()) -> str:
    """The report as HTML."""
    run: Run = source.data
    if lane >= len(run.tracks):
        raise ValueError(f"the run has lanes 0 to {len(run.tracks) - 1}, and not {lane}: choose one of these")
    if not any(len(t.nll) for t in run.tracks):
        raise ValueError("the run has read nothing yet, so there is nothing to tell")
    spec, first = run.spec, True
    parts = []
    for heading, figure in _charts(run):
        drawn = figure.to_html(full_html=False, include_plotlyjs=first, config={"displaylogo": False})
        parts.append(f"<h2>{heading}</h2>{drawn}")
        first = False
    parts.append(_text(run, lane))
    if maps:
        parts.append("<h2>Attention maps</h2>" + "".join(maps))
    read = max(len(t.nll) for t in run.tracks) + 1
    switched = [e for e in run.events if e["what"] == "switch"]
    note = f"\n# Here it had read {read:,} tokens."
    note += "\n# Then, while it read: " + json.dumps(switched) if switched else ""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{spec.text}, read by {spec.model}"),
        subtitle=" · ".join(
            (
                f"{read:,} tokens{'' if run.begins is None else html.escape(f' {with_bos(run.begins)}')}",
                *([html.escape(said_as_text(run.as_text, "in the text"))] if run.as_text else []),
                html.escape(spec.arithmetic),
                f"{len(run.tracks)} lanes",
                "made with Sinkscope",
            )
        ),
        summary=_summary(run),
        shades=" ".join(f".n{i} {{ background: {_shade(i)}; }}" for i in range(SHADES)),
        parts="\n".join(parts),
        command=html.escape(spec.command() + note),
        about=html.escape(json.dumps({k: v for k, v in source.about.items() if k != "heads"}, indent=2)),
    )


def _summary(run: Run) -> str:
    header = ("Lane", "Tokens", "Perplexity", "Excess NLL", "Kept", "Cache")
    rows = ["".join(f"<th>{name}</th>" for name in header)]
    for lane in summarize(run):
        if lane.tokens:
            cells = (
                html.escape(lane.policy.label), f"{lane.tokens:,}", f"{lane.perplexity:.3f}", lane.excess_text,
                f"{lane.cache_tokens:,}", f"{lane.cache_bytes / 1e6:,.1f} MB",
            )  # fmt: skip
            rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    return "".join(f"<tr>{row}</tr>" for row in rows)


def _charts(run: Run) -> list[tuple[str, go.Figure]]:
    modes = {
        "relative": "times that of the first lane, last 256 tokens",
        "rolling": "last 256 tokens",
        "cumulative": "from the start",
    }
    charts = []
    for mode, words in modes.items():
        data = Perplexity(mode=mode).numbers(run)
        charts.append((f"Perplexity, {words}", _lines(run, data, "perplexity", log=True)))
    charts.append(("Cache memory, MB", _lines(run, Memory().numbers(run), "megabytes")))
    for lane, policy in enumerate(run.spec.policies):
        if run.tracks[lane].spans:
            mass = mean_sink_mass(run, lane)
            heat = go.Heatmap(z=mass.T, zmin=0, zmax=1, colorscale="Viridis", xgap=1, ygap=1)
            heat.hovertemplate = "layer %{x}, head %{y}<br>%{z:.3f}<extra></extra>"
            figure = _laid_out(go.Figure(heat), "layer", "head", 300)
            charts.append((f"Sink mass, {html.escape(parse(policy).label)}", figure))
    return charts


def _lines(run: Run, data: Numbers, name: str, *, log: bool = False) -> go.Figure:
    figure, policies = go.Figure(), [parse(p) for p in run.spec.policies]
    marks = data.get("mark", np.full(len(data["lane"]), ""))
    for lane, (policy, (colour, dash)) in enumerate(zip(policies, colours(policies), strict=True)):
        of = (data["lane"] == lane) & (marks == "")
        line = {"color": colour, "dash": DASHES.get(dash, "dash"), "width": 1.6}
        figure.add_scatter(
            x=data["token"][of], y=data[name][of], name=html.escape(policy.label), line=line, mode="lines"
        )
        for i in np.flatnonzero((data["lane"] == lane) & (marks != "")):
            words = "cache full" if marks[i] == "full" else parse(marks[i]).label
            figure.add_vline(
                x=int(data["token"][i]),
                line={"color": colour, "dash": "dot", "width": 1},
                annotation_text=html.escape(words),
            )
    figure = _laid_out(figure, "tokens read", "", 380)
    figure.update_yaxes(type="log" if log else "linear", rangemode="normal" if log else "tozero")
    return figure


def _laid_out(figure: go.Figure, x: str, y: str, height: int) -> go.Figure:
    figure.update_layout(height=height, margin={"l": 56, "r": 12, "t": 24, "b": 44}, template="simple_white")
    figure.update_layout(legend={"orientation": "h", "y": 1.14})
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


def _text(run: Run, lane: int) -> str:
    """The text of a lane, every token on the colour of what it cost."""
    from ..models.loading import load
    from ..texts import token_texts

    track = run.tracks[lane]
    texts = token_texts(load(run.spec.model).tokenizer, track.token_ids.view())
    steps = np.clip(track.nll.view() / DARKEST * SHADES, 0, SHADES - 1).astype(int)
    spans = "".join(f'<b class="n{step}">{html.escape(text)}</b>' for text, step in zip(texts, steps, strict=True))
    key = "".join(f'<i class="n{i}"></i>' for i in range(SHADES))
    return (
        f"<h2>The text, as {html.escape(parse(run.spec.policies[lane]).label)} read it</h2>"
        f'<p class="muted key">{key} 0 to {DARKEST:g} nats and more: the darker, the less expected</p>'
        f'<div class="text">{spans.replace("<b ", "<span ").replace("</b>", "</span>")}</div>'
    )


def _shade(step: int) -> str:
    share = step / (SHADES - 1)
    return "#" + "".join(f"{round(255 + (end - 255) * share):02x}" for end in (230, 130, 40))


def _head(name: str) -> tuple[int, int]:
    layer, dot, head = name.partition(".")
    if not dot or not (layer + head).isdigit():
        raise ValueError(f"a head is written layer.head, such as 1.3, and not {name!r}")
    return int(layer), int(head)


def _map(atlas: FigureInput, layer: int = -1, head: int = -1) -> str:
    """One attention map, as a picture in the page; without a head, that of the one with the largest sink mass."""
    figure, layout = HeadMap(layer=layer, head=head).resolved(atlas.data), Layout(dpi=160)
    about = provenance(figure, atlas, Path(f"{figure.layer}.{figure.head}.png"), layout)
    picture = base64.b64encode(rendered(figure, figure.numbers(atlas.data), "png", layout, about)).decode()
    label = parse(atlas.data.stretch.spec.policies[0]).label
    words = html.escape(f"Layer {figure.layer}, head {figure.head}, {label}")
    return f'<figure><img alt="{words}" src="data:image/png;base64,{picture}"><figcaption>{words}</figcaption></figure>'
