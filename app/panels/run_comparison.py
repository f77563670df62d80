"""Runs laid over one another: curves, a table, and sink grids side by side and as a difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import streamlit as st

from analysis.errors import sentence
from analysis.metrics import MODES
from analysis.palette import overlaid
from analysis.policies import parse
from analysis.runs.comparison import Comparison, compare, grid_difference
from analysis.runs.library import Entry
from analysis.runs.reader import load
from analysis.runs.run import Run
from analysis.runs.summary import briefs_of, mean_sink_mass
from analysis.settings import quoted
from analysis.tables import as_csv, as_text, ungrouped
from app import address
from app.address_bar import readdress
from app.choices import choice, choose, kept_default, kept_index
from app.components import chart
from app.controls import problem
from app.downloads import download
from app.plain import plain

from . import charts
from .run_list import COMPARED, MOST_COMPARED, importer, news, said, titled

HEADER = (
    "Lane", "Model", "Tokens", "Perplexity", "Shared tokens", "Excess NLL", "± standard error", "Cached", "Cache, MB",
)  # fmt: skip


@st.cache_resource(max_entries=2 * MOST_COMPARED, show_spinner="Opening …")
def _loaded(path: str, version: int) -> Run:
    """The run of a folder; `version`, of its files, lets one that has grown be read again."""
    return load(Path(path))


ADDRESS = ("mode", "lanes")
"""What the address says of a comparison, beside its runs: the curves, and the lane of each run whose grid is shown."""
MOST_LANES = 1000
"""Of a run that an address names and that is not here."""


@dataclass(frozen=True)
class Named:
    """The runs that an address names, in its order, and those of them that are here to be compared."""

    names: tuple[str, ...]
    entries: tuple[Entry, ...]
    absent: tuple[str, ...]
    """Those that the library does not have."""

    @classmethod
    def of(cls, names: Sequence[str], found: Sequence[Entry]) -> "Named":
        """`found`: all runs that there are."""
        names = tuple(dict.fromkeys(names))[:MOST_COMPARED]
        known = {e.name: e for e in found}
        here = tuple(known[name] for name in names if name in known and known[name].kind in COMPARED)
        return cls(names, here, tuple(name for name in names if name not in known))

    @property
    def here(self) -> tuple[str, ...]:
        """The names of those that are compared."""
        return tuple(e.name for e in self.entries)

    @property
    def wanting(self) -> str:
        """What is to be done about those that are not compared, as a sentence; empty where all are."""
        few = "fewer than two of these runs are readings or conversations of the library" if len(self.here) < 2 else ""
        if self.absent:
            it = "it" if len(self.absent) == 1 else "them"
            lack = f"has no {' and no '.join(map(quoted, self.absent))}"
            lack = f"{few}, which {lack}" if few else f"the library here {lack}"
            return f"{lack}: export {it} where the link comes from (More, Export as .zip), and import {it} here"
        if few:
            return f"{few}: mark others in the list"
        left = len(self.names) - len(self.entries)
        neither = f"{left} of the runs that the address names are neither readings nor conversations"
        return f"{neither}: the others are compared" if left else ""


def arrive() -> None:
    """Let the comparison begin with what the address says; what of that can be, its runs say."""
    st.session_state.runs_taken = None


def parameters(named: Named, comparison: Comparison) -> address.Parameters:
    """What an address may say of these runs."""
    of = dict(zip(named.here, comparison.runs, strict=True))
    counts = [len(of[name].tracks) if name in of else MOST_LANES for name in named.names]
    lanes = address.several("lanes", len(counts), max(counts) - 1, f"{'.'.join('0' * len(counts))}, a lane of each run")

    def read(asked: str) -> tuple[int, ...]:
        """One lane of each run, in the order of the runs.  Raises ValueError for a lane that its run does not have."""
        chosen = lanes.read(asked)
        if any(lane >= count for lane, count in zip(chosen, counts, strict=True)):
            raise ValueError(f"lanes {asked} are not all there: the runs have {', '.join(map(str, counts))}, from 0 on")
        return chosen

    return {"mode": address.one_of("mode", modes(comparison)), "lanes": address.Parameter(read, lanes.write)}


def modes(comparison: Comparison) -> tuple[str, ...]:
    """Curves that these runs can be shown by."""
    return tuple(mode for mode in MODES if mode != "relative" or comparison.mode == mode)


def take(named: Named, comparison: Comparison) -> None:
    """Set what the address asks, once when one came here, and again when another of its runs has come."""
    state = st.session_state
    if state.runs_taken == named.here:
        return
    state.runs_taken = named.here
    found, problems = address.values(parameters(named, comparison), st.query_params)
    lanes = dict(zip(named.names, found.get("lanes", (0,) * len(named.names)), strict=True))
    choose(mode_key(comparison), found.get("mode", comparison.mode))
    for i, (name, run) in enumerate(zip(named.here, comparison.runs, strict=True)):
        choose(grid_key(i, len(run.tracks)), lanes[name])
    state.runs_lanes = lanes
    said(problem=address.wrong(problems))


def to_address(named: Named, comparison: Comparison) -> None:
    """Let the address say what is shown of these runs, and what it said of those that are not here."""
    chosen = [choice(grid_key(i, len(run.tracks)), 0) for i, run in enumerate(comparison.runs)]
    of = {**st.session_state.runs_lanes, **dict(zip(named.here, chosen, strict=True))}
    lanes = tuple(of[name] for name in named.names)
    now = {"mode": choice(mode_key(comparison), comparison.mode), "lanes": lanes}
    usual = {"mode": comparison.mode, "lanes": (0,) * len(lanes)}
    readdress(ADDRESS, address.said(parameters(named, comparison), now, usual))


def mode_key(comparison: Comparison) -> str:
    """Of the widget for curves: other runs can be shown by others."""
    return f"runs-mode-{comparison.mode}"


def grid_key(index: int, lanes: int) -> str:
    """Of the widget for the lane of a run whose grid is shown."""
    return f"runs-grid-{index}-{lanes}"


def draw(found: list[Entry], names: list[str]) -> None:
    """The comparison of the named runs, of all that there are."""
    st.button("All runs", icon=":material/arrow_back:", on_click=leave, key="runs-back", type="tertiary")
    named = Named.of(names, found)
    if named.wanting:
        st.info(plain(sentence(named.wanting)))
    if named.absent:
        importer()
    if not named.entries:
        news()
        return
    try:
        runs = [_loaded(str(e.path), e.version) for e in named.entries]
        titles = numbered([titled(e) for e in named.entries])
        comparison = compare(runs, titles)
    except ValueError as e:
        problem(e)
        return
    take(named, comparison)
    news()
    labels = lane_labels(comparison, titles)
    draw_curves(comparison, labels)
    draw_table(comparison, labels, named.entries)
    draw_grids(comparison, titles)
    to_address(named, comparison)


def leave() -> None:
    """Back to the list."""
    said(problem="", note="")
    readdress(("compare", *ADDRESS), {})


def numbered(titles: list[str]) -> list[str]:
    """Titles, no two alike: those that come again have a number."""
    return [f"{t} ({titles[: i + 1].count(t)})" if titles.count(t) > 1 else t for i, t in enumerate(titles)]


def lane_labels(comparison: Comparison, titles: list[str]) -> list[str]:
    """A name for each lane, with the title of its run."""
    names = [briefs_of(run) for run in comparison.runs]
    return [f"{titles[lane.run]}: {names[lane.run][lane.lane]}" for lane in comparison.lanes]


def draw_curves(comparison: Comparison, labels: list[str]) -> None:
    """All lanes in one picture, and why it shows what it shows."""
    options = modes(comparison)
    mode = st.segmented_control(
        "Perplexity", options, format_func=str.capitalize, required=True,
        **kept_default(mode_key(comparison), comparison.mode, options),
    )  # fmt: skip
    # It begins with a choice, and one is required.
    assert mode is not None
    why, comparison = comparison.why if mode == comparison.mode else "", replace(comparison, mode=mode)
    looks = overlaid([[parse(p) for p in run.spec.policies] for run in comparison.runs])
    curves = [
        (label, *looks[lane.run][lane.lane], *comparison.curve(lane))
        for label, lane in zip(labels, comparison.lanes, strict=True)
    ]
    if why:
        st.markdown(plain(why))
    ends = [f"{name} ends at {math.exp(min(nll[-1], 50)):.4g}" for name, _, _, _, nll in curves if len(nll)]
    figure = charts.overlay(curves, mode)
    alt = f"{comparison.mode} perplexity: {'; '.join(ends)}"
    # The names of the lanes stand above the curves.
    chart.mount(figure, key="runs-curves", height=330 + 16 * len(curves), projected=52, alt=alt)


def rows(comparison: Comparison, labels: list[str], entries: Sequence[Entry]) -> list[list[str]]:
    """The numbers of each lane, under HEADER."""
    made = []
    for i, (label, lane) in enumerate(zip(labels, comparison.lanes, strict=True)):
        of, entry = lane.summary, entries[lane.run]
        excess = "–" if math.isnan(lane.excess) else f"{lane.excess:+z.4f}"
        error = "–" if math.isnan(lane.error) else f"{lane.error:.4f}"
        made.append([
            label, f"{Path(entry.model).name}, {entry.arithmetic}", f"{of.tokens:,}",
            f"{of.perplexity:,.4f}" if of.tokens else "–", f"{lane.shared:,}",
            excess if i else "reference", error if i else "", of.cached_text, f"{of.cache_bytes / 1e6:,.1f}",
        ])  # fmt: skip
    return made


def draw_table(comparison: Comparison, labels: list[str], entries: Sequence[Entry]) -> None:
    """Perplexity, excess NLL and cache of each lane."""
    found = rows(comparison, labels, entries)
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in HEADER)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in found)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    st.html(f'<div class="sk-runs-table" tabindex="0" role="region" aria-label="Numbers of all lanes">{table}</div>')
    st.caption(
        "Excess NLL: nats/token above the first lane of the first run, over the tokens from the beginning that both "
        "have read; its standard error is over blocks of 256 tokens."
    )
    download("As CSV", "comparison.csv", lambda: written(found))


def written(rows: list[list[str]]) -> str:
    """The table as CSV, with texts as texts, and numbers as programs read them."""
    return as_csv(HEADER, [[*map(as_text, row[:2]), *(ungrouped(cell) for cell in row[2:])] for row in rows])


def draw_grids(comparison: Comparison, titles: list[str]) -> None:
    """Sink mass of each layer and head of one lane of each run, and what it differs by from the first."""
    st.subheader("Sink mass of layers and heads", anchor=False)
    chosen = []
    for i, (run, title) in enumerate(zip(comparison.runs, titles, strict=True)):
        names = briefs_of(run)
        left, right = st.columns(2)
        with left:
            lane = st.selectbox(
                plain(title), range(len(names)), format_func=names.__getitem__,
                **kept_index(grid_key(i, len(names)), 0, range(len(names))),
            )  # fmt: skip
        chosen.append(lane)
        try:
            mass = mean_sink_mass(run, lane)
            with left:
                # Of one scale: otherwise what is hardly looked at is as bright as a sink.
                grid = charts.cells(mass, "", top=1)
                chart.mount(grid, key=f"runs-mass-{i}", alt=f"Sink mass, mean {mass.mean():.3f}")
            if i:
                apart = grid_difference(run, lane, comparison.runs[0], chosen[0])
                alt = f"Sink mass less that of the first run, {apart.min():+.3f} to {apart.max():+.3f}"
                with right:
                    st.caption(plain(f"Less that of {titles[0]}: red is more, blue is less"))
                    chart.mount(charts.difference(apart), key=f"runs-apart-{i}", alt=alt)
        except ValueError as e:
            (right if i else left).info(plain(sentence(e)))
