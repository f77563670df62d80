"""What four policies cost, measured against the length of the text, and the powers with which it grows."""

from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from analysis import texts
from analysis.experiments.growth import READINGS, SIZES, Cost, Costs, LaneCosts, exponent, growth
from analysis.palette import colours
from analysis.policies import parse
from app import address
from app.components import chart
from app.jobs.costs import CostsJob, recorded
from app.lesson import Chapter, answers
from app.lesson.answers import Answer, Question
from app.panels.charts import LEGEND, MARGIN

from . import stage

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel

SHOWN = ("time", "memory", "window")
WINDOW = 64
POLICIES = (
    "dense",
    f"window:window={WINDOW}",
    f"recompute:window={WINDOW},stride=1",
    f"streaming:sinks=4,window={WINDOW - 4}",
)
THEORY = {"dense": ("T²", 2), "window": ("TL", 1), "recompute": ("TL²", 1), "streaming": ("TL", 1)}
TOKENS = 4096
COLUMNS = ("method", "read", "theory", "attention", "whole", "fixed", "share")
"""Of the table, by their words."""
NARROW = 512
"""Windows up to this size are narrow: attention takes the smaller part of a pass."""


def start() -> None:
    """Measure all policies, from the beginning."""
    spec = stage.spec(POLICIES, TOKENS)
    stage.begin(lambda: partial(CostsJob, spec, texts.read(spec.text)))


def ask(model: "LanguageModel", text: str, tokens: int, bos: str) -> Answer:
    """Costs of all policies to the end of a text's first tokens: `lanes` [chunks of all lanes, 5], which lane it is and
    the fields of a Cost, and `windows` [sizes, 4], such fields."""
    from analysis.experiments.costs import KeptCosts

    ids = texts.tokenize(texts.read(text), model.tokenizer, bos=bos, limit=tokens)
    found = KeptCosts(model, ids, POLICIES)
    for _ in found.steps(lambda write: None):
        pass
    lanes = [(i, *astuple(cost)) for i, lane in enumerate(found.lanes) for cost in lane.costs]
    return {"lanes": np.array(lanes), "windows": np.array([astuple(cost) for cost in found.windows])}


def costs_of(answer: Answer) -> Costs:
    """What was counted, from such an answer."""
    costs = [[_cost(row) for i, *row in answer["lanes"] if i == lane] for lane in range(len(POLICIES))]
    lanes = [LaneCosts(parse(policy), tuple(of)) for policy, of in zip(POLICIES, costs, strict=True)]
    return Costs(tuple(lanes), READINGS, 1.0, tuple(map(_cost, answer["windows"])))


def _cost(row: Sequence[float]) -> Cost:
    tokens, seconds, attention, cached = row
    return Cost(int(tokens), float(seconds), float(attention), int(cached))


KEPT = Question(ask, (stage.SPEC.text, TOKENS, "auto"))


def draw(chapter: Chapter, page: Chapter) -> None:
    """The curves of costs, and the table of exponents."""
    job = stage.playing(CostsJob)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        shown = stage.one_of(chapter.say("show"), SHOWN, "cost-show", SHOWN[0], chapter.say)
        stage.transport(page, job, start)
    job = stage.watch(job)
    of_library = kept_costs() if job is None else None
    run = Costs() if job is None else job.snapshot
    if of_library is None and (job is None or job.live):
        windows = chapter.say("windows", done=len(run.windows), total=len(SIZES))
        lanes_read = chapter.say("progress", reading=run.reading, readings=READINGS)
        begun = windows if run.windows or run.share >= 1 else lanes_read
        st.progress(min(1.0, run.share), begun if run.lanes else page.say("loading"))
    before, about = answers.recorded(KEPT) if stage.bos() == "auto" else None, None
    if of_library is not None:
        run = of_library
    elif before is not None and not (run.lanes and all(map(fitted, run.lanes))):
        run, about = costs_of(before.answer), before.about
    check(run)
    if not run.lanes:
        return
    table = [
        _found(stage.policy_name(page, lane.policy), THEORY[lane.policy.name][0], counted(lane.policy.name, lane.costs))
        for lane in run.lanes
    ]
    if shown == "window":
        if run.windows:
            alt = chapter.say("alt-window", values=_passes_heard(run.windows, chapter))
            chart.mount(passes(run.windows, chapter), key="cost-window", alt=alt, height=290, projected=42)
        else:
            st.info(chapter.say("waiting"))
    elif shown == "memory":
        alt = chapter.say("alt-memory", values=_caches_heard(run, page))
        chart.mount(lanes(run, chapter, page, memory=True), key="cost-memory", alt=alt, height=290, projected=42)
    else:
        alt = chapter.say("alt", values="; ".join(row_told(row, chapter) for row in table))
        chart.mount(lanes(run, chapter, page, memory=False), key="cost-time", alt=alt, height=290, projected=42)
    if run.windows:
        table.append(_passes(chapter.say("in-window"), _columns(run.windows)))
    st.table({chapter.say(n): [row[i] for row in table] for i, n in enumerate(COLUMNS)})
    if len(run.windows) == len(SIZES):
        *_, alone, whole, _, most = table[-1]
        share = _share(_columns([c for c in run.windows if c.tokens <= NARROW]))
        wide = run.windows[-1].tokens
        said = {"narrow": f"{NARROW:,}", "wide": f"{wide:,}", "whole": whole, "alone": alone}
        st.caption(chapter.say("dominates", share=share, most=most, **said))
    if of_library is None:
        stage.source(page, about)


def row_told(row: Sequence[str], chapter: Chapter) -> str:
    """A line of the table for who listens to it: every number with the name of its column."""
    method, *found = row
    return f"{method}: " + ", ".join(f"{chapter.say(n)} {value}" for n, value in zip(COLUMNS[1:], found, strict=True))


def kept_costs() -> Costs | None:
    """What the library keeps of costs, where the address names it."""
    folder = stage.kept_folder("costs")
    return None if folder is None else recorded(folder)


def check(found: Costs) -> None:
    """Raises ValueError where costs are of others than this chapter names, also where those keep another number of
    tokens: its theory is of these windows."""
    if others := [lane.policy.label for lane in found.lanes if lane.policy not in map(parse, POLICIES)]:
        raise ValueError(f"these costs are of {others[0]}, which this chapter does not compare")


Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
NOTHING: Columns = (np.array([]), np.array([]), np.array([]), np.array([]))


def _columns(costs: Sequence[Cost]) -> Columns:
    """Tokens, seconds, seconds in attention, and bytes."""
    tokens, seconds, attention, cached = np.array([(c.tokens, c.seconds, c.attention, c.cache_bytes) for c in costs]).T
    return tokens, seconds, attention, cached


def counted(name: str, costs: Sequence[Cost]) -> Columns:
    """What a lane has cost; where windows are recomputed, from the first one that is."""
    costs = list(costs)
    if name != "recompute":
        return _columns(costs) if costs else NOTHING
    begun = [c for c in costs if c.tokens > WINDOW]
    if len(begun) < 2:
        return NOTHING
    tokens, seconds, attention, cached = _columns(begun)
    return tokens[1:] - tokens[0], seconds[1:] - seconds[0], attention[1:] - attention[0], cached[1:]


def fitted(lane: LaneCosts) -> bool:
    """Whether a lane has read enough to see how its costs grow."""
    tokens, _, attention, _ = counted(lane.policy.name, lane.costs)
    return not np.isnan(growth(tokens, attention).exponent)


def _found(title: str, theory: str, of: Columns) -> tuple[str, ...]:
    """A row of the table: what it is, tokens, theory, exponents of attention and of all, fixed cost, share."""
    tokens, seconds, attention, _ = of
    if len(tokens) < 3:
        return title, "–", theory, "–", "–", "–", "–"
    alone, whole = growth(tokens, attention), growth(tokens, seconds)
    fixed = f"{alone.fixed * 1e3:.2f} ms" if alone.fixed else "–"
    return title, f"{int(tokens[-1]):,}", theory, _said(alone.exponent), _said(whole.exponent), fixed, _share(of)


def _passes(title: str, of: Columns) -> tuple[str, ...]:
    """The row of windows that are encoded from nothing: attention as in wide ones, the whole as in narrow ones."""
    tokens, seconds, attention, _ = of
    wide, narrow = tokens >= tokens[-1] / 4, (tokens > tokens[0]) & (tokens <= NARROW)
    alone, whole = exponent(tokens[wide], attention[wide]), exponent(tokens[narrow], seconds[narrow])
    return title, f"{int(tokens[-1]):,}", "L²", _said(alone), _said(whole), "–", _share(of)


def _share(of: Columns) -> str:
    """The share of attention at the last of these tokens."""
    _, seconds, attention, _ = of
    return f"{100 * attention[-1] / seconds[-1]:.0f} %"


def _said(power: float) -> str:
    return "–" if np.isnan(power) else f"{power:.2f}"


def lanes(run: Costs, chapter: Chapter, page: Chapter, *, memory: bool) -> go.Figure:
    """Seconds in attention, or MB of the cache, against tokens, for each lane."""
    figure = go.Figure()
    styles = colours([lane.policy for lane in run.lanes])
    for lane, (colour, dash) in zip(run.lanes, styles, strict=True):
        tokens, _, attention, cached = counted(lane.policy.name, lane.costs)
        y = cached / 1e6 if memory else attention
        figure.add_scatter(
            x=tokens, y=y, name=stage.policy_name(page, lane.policy), mode="lines+markers", marker={"size": 4},
            line={"color": colour, "dash": dash, "width": 2}, hovertemplate="%{x:,.0f}: %{y:.3~g}",
        )  # fmt: skip
        if len(tokens) > 2 and not memory:
            # A line of the theory's slope through the newest point.
            ends = np.array([tokens[-1] / 16, tokens[-1] * 1.4])
            figure.add_scatter(
                x=ends, y=y[-1] * (ends / tokens[-1]) ** THEORY[lane.policy.name][1], mode="lines", showlegend=False,
                line={"color": colour, "dash": "dot", "width": 1}, hoverinfo="skip",
            )  # fmt: skip
    _logarithmic(figure, page.say("tokens"), chapter.say("megabytes" if memory else "seconds"))
    return figure


def passes(costs: Sequence[Cost], chapter: Chapter) -> go.Figure:
    """Seconds of one forward pass against the size of its window."""
    tokens, seconds, attention, _ = _columns(costs)
    figure = go.Figure()
    for name, y, colour, dash, power in (
        ("pass-whole", seconds, "#767676", "dash", 1),
        ("pass-attention", attention, "#0072B2", "solid", 2),
    ):
        figure.add_scatter(
            x=tokens, y=y, name=chapter.say(name), mode="lines+markers", line={"color": colour, "dash": dash},
            hovertemplate="%{x:,.0f}: %{y:.3~g}",
        )  # fmt: skip
        ends = np.array([tokens[-1] / 16, tokens[-1]])
        figure.add_scatter(
            x=ends, y=y[-1] * (ends / tokens[-1]) ** power, mode="lines", showlegend=False, hoverinfo="skip",
            line={"color": colour, "dash": "dot", "width": 1},
        )  # fmt: skip
    _logarithmic(figure, chapter.say("tokens-window"), chapter.say("pass"))
    return figure


def _caches_heard(run: Costs, page: Chapter) -> str:
    """What the caches of lanes take at last, for who cannot see the curves."""
    drawn = [(stage.policy_name(page, lane.policy), counted(lane.policy.name, lane.costs)) for lane in run.lanes]
    return "; ".join(
        f"{name} {int(tokens[-1]):,}: {cached[-1] / 1e6:.1f} MB" for name, (tokens, *_, cached) in drawn if len(tokens)
    )


def _passes_heard(costs: Sequence[Cost], chapter: Chapter) -> str:
    """What a pass over each window takes, for who cannot see the curves."""
    whole, alone = chapter.say("pass-whole"), chapter.say("pass-attention")
    return "; ".join(f"{c.tokens:,}: {whole} {c.seconds:.2g} s, {alone} {c.attention:.2g} s" for c in costs)


def _logarithmic(figure: go.Figure, x: str, y: str) -> None:
    figure.update_layout(margin={**MARGIN, "t": 34}, legend=LEGEND)
    figure.update_xaxes(title=x, type="log", dtick=1)
    figure.update_yaxes(title=y, type="log", dtick=1)


# Drawing would be measured as a cost.
PLAY = stage.Play(
    draw,
    start,
    recorded=(KEPT,),
    every=2.0,
    choices={"show": stage.Choice(address.one_of("show", SHOWN), "cost-show", SHOWN[0])},
    keeps="costs",
)
