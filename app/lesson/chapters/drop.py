"""Four policies over one stream, and sinks that are taken away in the middle of it."""

import math
from functools import partial

import streamlit as st

from analysis import texts
from analysis.experiments.presets import FOUR
from analysis.policies import Streaming, parse
from app.components import chart
from app.jobs.reading import ReadingJob
from app.lesson import Chapter

from . import stage
from .reading import curves, newest, numbers, rolling, styles

TOKENS = 4096
WITHOUT = "window:window=128"


def start() -> None:
    """Read with all policies, from the beginning."""
    spec = stage.spec(FOUR, TOKENS, chunk=64)
    # Whoever turns the pages of the lesson reads this again each time: it would push runs out of a full library.
    stage.begin(lambda: partial(ReadingJob, spec, texts.read(spec.text), keep=False))


def draw(chapter: Chapter, page: Chapter) -> None:
    """Rolling perplexity of each lane, and the button that takes the sinks away."""
    run = stage.playing(ReadingJob)
    policies = (
        [t.policies[-1][1] if t.policies else p for t, p in zip(run.snapshot.tracks, FOUR, strict=True)]
        if run
        else FOUR
    )
    dropped = parse(policies[-1]).name != Streaming.name
    with st.container(horizontal=True, vertical_alignment="center"):
        stage.transport(page, run, start)
        st.button(
            chapter.say("restore" if dropped else "drop"),
            icon=":material/undo:" if dropped else ":material/content_cut:",
            type="primary",
            on_click=switch,
            args=(not dropped,),
            disabled=run is None or not run.live,
            key="drop-switch",
        )
    tracks, about = stage.tracks(stage.watch(run), "four", FOUR)
    if not tracks:
        st.caption(page.say("loading"))
        return
    names = [stage.policy_name(page, parse(policy)) for policy in policies]
    still = stage.halted(page, run, names) if about is None and run is not None else set()
    (read, perplexities), lines, items = newest(tracks, still), [], []
    for lane, (begun, policy) in enumerate((parse(b), parse(p)) for b, p in zip(FOUR, policies, strict=True)):
        tokens, values = rolling(tracks, lane)
        title = names[lane] if policy == begun else f"→ {names[lane]}"
        lines.append((title, tokens, values))
        # Where the perplexities are, too: the lane itself may be further.
        cache_tokens = tracks[lane].cache_tokens.view()[:read]
        cached = f"{int(cache_tokens[-1]):,}" if len(cache_tokens) else "–"
        number = "–" if math.isnan(perplexities[lane]) else f"{perplexities[lane]:.1f}"
        items.append((title, number, chapter.say("keeps", tokens=cached)))
    numbers(items)
    st.caption(chapter.say("shared", tokens=f"{read:,}"))
    alt = chapter.say("alt", values="; ".join(f"{name}: {number}" for name, number, _ in items))
    figure = curves(lines, styles(FOUR), page.say("tokens"), chapter.say("rolling"), 60)
    for track, (colour, _) in zip(tracks, styles(FOUR), strict=True):
        for at, _ in track.policies[1:]:
            figure.add_vline(x=at, line={"color": colour, "width": 1, "dash": "dot"})
    figure.add_vline(x=128, line={"color": "#767676", "width": 1, "dash": "dot"})
    chart.mount(figure, key="drop-chart", alt=alt, height=370, projected=64)
    stage.source(page, about)


def switch(drop: bool) -> None:
    """The last lane loses its sinks, or has them back, as the text began."""
    if (run := stage.playing(ReadingJob)) is not None:
        run.switch(len(FOUR) - 1, parse(WITHOUT if drop else FOUR[-1]), pin=not drop)


PLAY = stage.Play(draw, start)
