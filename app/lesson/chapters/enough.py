"""Caches of one size with 0, 1, 2, 4 and 8 sinks."""

from functools import partial

import streamlit as st

from analysis import texts
from app import address
from app.choices import choice
from app.components import chart
from app.jobs.reading import ReadingJob
from app.lesson import Chapter

from . import stage
from .reading import curves, numbers, rolling, styles

TOKENS = 4096
SINKS = (0, 1, 2, 4, 8)
SIZES = (64, 128, 256)
SIZE = 128
"""The one that the gallery has recorded."""
REFERENCE = 3


def start() -> None:
    """Read with caches of the chosen size, from the beginning."""
    size = choice("enough-size", SIZE)
    spec = stage.spec(policies(size), TOKENS, chunk=64)
    # Whoever turns the pages of the lesson reads this again each time: it would push runs out of a full library.
    stage.begin(lambda: partial(ReadingJob, spec, texts.read(spec.text), keep=False))


def policies(size: int) -> tuple[str, ...]:
    """A policy for each number of sinks, all with caches of one size."""
    return tuple(f"streaming:sinks={s},window={size - s}" for s in SINKS)


def draw(chapter: Chapter, page: Chapter) -> None:
    """Perplexity of each lane, times that of the one with four sinks."""
    run = stage.playing(ReadingJob)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        size = stage.one_of(chapter.say("cache"), SIZES, "enough-size", SIZE)
        if run is not None and run.spec.policies != policies(size):
            start()
            run = stage.playing(ReadingJob)
        stage.transport(page, run, start)
    found, about = stage.tracks(run := stage.watch(run), "enough", policies(size))
    if not found:
        st.caption(page.say("loading"))
        return
    names = [chapter.say("sinks-n", n=s) if s > 1 else chapter.say(f"sinks-{s}") for s in SINKS]
    if about is None and run is not None:
        stage.halted(page, run, names)
    lines = [(name, *rolling(found, lane, REFERENCE)) for lane, name in enumerate(names)]
    items = [(name, f"{v[-1]:.2f} ×" if len(v) else "–", "") for name, _, v in lines]
    numbers(items)
    alt = chapter.say("alt", values="; ".join(f"{name}: {value}" for name, value, _ in items))
    figure = curves(lines, styles(policies(size)), page.say("tokens"), chapter.say("relative"), 3)
    chart.mount(figure, key="enough-chart", alt=alt, height=370, projected=70)
    stage.source(page, about)


PLAY = stage.Play(draw, start, choices={"size": stage.Choice(address.one_of("size", SIZES), "enough-size", SIZE)})
