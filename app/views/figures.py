"""Figures: what goes into the paper, previewed as the file that it will be."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import streamlit as st
from PIL import Image

from analysis.errors import sentence
from analysis.figures import FIGURES, AttentionStrip, Figure, HeadMap, Numbers, Perplexity, SinkGrid, Strip, parse
from analysis.figures.export import command, provenance
from analysis.figures.inputs import FigureInput, open_input
from analysis.figures.report import page
from analysis.figures.sheet import KINDS, WIDTHS, Layout, missing, rendered
from analysis.runs import library
from analysis.texts import with_bos
from app.controls import brand, heading, setting_control
from app.frames.atlas import called
from app.jobs.capture import CaptureJob
from app.jobs.reading import ReadingJob
from app.jobs.registry import REGISTRY
from app.pages import PAGES
from app.panels import slots
from app.plain import plain
from app.projection import project

NEEDS = {"run": "a run", "stretch": "a captured stretch", "grid": "a grid of runs", "trainings": "trainings"}
MADE_ON = {"stretch": "heads", "trainings": "learn"}
"""The pages on which they are made; all others on the first one."""
TYPES = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png", "csv": "text/csv"}
FOLDER = "A folder …"
PREVIEW = 760
"""Pixels across."""


def offered(needs: str) -> dict[str, str]:
    """What there is to draw from, by the name that a person sees: folders, and what lies in memory."""
    state, found = st.session_state, {}
    read = REGISTRY.find(state.get("read_run"), ReadingJob)
    if needs == "run" and read is not None and any(len(t.nll) for t in read.run.tracks):
        found["The run of the Read page"] = read.id
    captures = [REGISTRY.find(capture, CaptureJob) for capture in state.get("captures", [])]
    kept = [run for run in captures if run is not None and run.atlas is not None]
    for run, name in zip(kept, called(kept), strict=True) if needs == "stretch" else ():
        slots.renew_lease(run)
        found[f"The stretch of the Heads page: {name}"] = run.id
    return {**found, FOLDER: ""}


def arrive() -> None:
    """Let figures begin with what the page shows that one comes from, or with what the address says."""
    state, asked = st.session_state, st.query_params
    state.setdefault("figure_begin", {})
    state.setdefault("figure_problem", "")
    if not state.get("arrived"):
        return
    seen = seen_elsewhere()
    first = {"read": "perplexity", "heads": "head-map"}.get(state.get("came_from"))
    try:
        named = parse(asked["figure"]) if "figure" in asked else None
        state.figure_problem = ""
    except ValueError as e:
        named, state.figure_problem = None, f"The address of this page asks for what cannot be: {sentence(e)}"
    if named is not None:
        seen, first = {**seen, named.name: named}, named.name
        run = REGISTRY.get(asked.get("run"))
        if isinstance(run, ReadingJob):
            state.setdefault("read_run", run.id)
        elif isinstance(run, CaptureJob):
            state.captures = list(dict.fromkeys([*state.get("captures", []), run.id]))
            state.setdefault("atlas_run", run.id)
    # Only what has been seen since begins anew; all else stays as it was set here.
    changed = {name for name, figure in seen.items() if state.figure_begin.get(name) != figure}
    state.figure_begin |= seen
    for key in [key for key in state if any(key.startswith(f"figure-{name}-") for name in changed)]:
        del state[key]
    if first in seen:
        state["figure-name"] = first
        state.pop(f"figure-source-{FIGURES[first].needs}", None)


def seen_elsewhere() -> dict[str, Figure]:
    """Figures of the heads, lanes and tokens that the other pages show, by name."""
    state, seen = st.session_state, []
    view, maps, run = state.get("view"), state.get("atlas_view"), REGISTRY.get(state.get("read_run"))
    head = {}
    if view is not None and isinstance(run, ReadingJob):
        seen += [Perplexity(view.mode, view.reference), SinkGrid(view.chosen), Strip(view.chosen)]
        head = dict(zip(("layer", "head"), view.head, strict=True)) if view.head else {}
    kept = REGISTRY.get(state.get("atlas_run"))
    if maps is not None and isinstance(kept, CaptureJob) and kept.atlas is not None:
        head = {"layer": maps.layer, "head": maps.head}
        begin, end = maps.region.rows if maps.region else (0, HeadMap.tokens)
        shown = {"begin": begin, "tokens": max(2, end - begin), "pool": maps.pool, "colour": maps.colour}
        cells = "logits" if maps.kind == "logits" else "weights"
        seen.append(HeadMap(**head, **shown, cells=cells))
        seen.append(AttentionStrip(**head, query=maps.cross[0] if maps.cross else -1))
    elif head:
        seen += [HeadMap(**head), AttentionStrip(**head)]
    return {figure.name: figure for figure in seen}


def source_of(figure: type[Figure], chosen: str, folder: str) -> FigureInput:
    """What the figure is made of.  Raises ValueError with what to do."""
    run = REGISTRY.get(chosen)
    if isinstance(run, CaptureJob) and run.atlas is not None:
        return FigureInput(run.atlas.stretch.path, run.atlas, run.atlas.stretch.about)
    if isinstance(run, ReadingJob):
        if run.kept.problem:
            raise ValueError(f"{run.kept.problem} A figure is made of a run folder: make room, and read once more")
        # Where the command under the figure finds it, too.
        return open_input(library.home() / run.id, figure.needs)
    if not folder:
        raise ValueError(
            f"this figure is made of {NEEDS[figure.needs]}: name its folder, or make one on the "
            f"{PAGES[MADE_ON.get(figure.needs, 'read')].title()} page"
        )
    return _opened(folder, figure.needs)


@st.cache_resource(max_entries=2, show_spinner="Opening …")
def _opened(folder: str, needs: str) -> FigureInput:
    return open_input(Path(folder), needs)


def sidebar() -> tuple[Figure | None, Layout | None, str, str, str]:
    """The figure, its layout, its kind of file, and what it is made of."""
    with st.sidebar:
        brand("figures")
        name = st.selectbox("Figure", list(FIGURES), format_func=lambda n: FIGURES[n].title, key="figure-name")
        kind = FIGURES[name]
        st.caption(" ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("`", ""))
        names = offered(kind.needs)
        shown = [label for label, found in names.items() if found and found == st.session_state.get("atlas_run")]
        first = list(names).index(shown[0]) if shown else 0
        chosen = names[st.selectbox("Made of", list(names), first, key=f"figure-source-{kind.needs}")]
        folder = "" if chosen else st.text_input("Folder", key=f"figure-folder-{kind.needs}").strip()
        begin = st.session_state.figure_begin.get(name)
        values = {f.name: setting_control(f"figure-{name}", f, begin, kind) for f in kind.settings()}
        st.caption("The page that it stands on")
        left, right = st.columns(2)
        venue = left.selectbox("Venue", list(WIDTHS), key="figure-venue", help="How wide it is")
        points = right.number_input("Points", 4.0, 40.0, 8.0, 0.5, key="figure-points", help="Size of the text")
        file = left.selectbox("File", KINDS, key="figure-kind")
        dpi = right.number_input("Dots per inch", 50, 1200, 300, 50, key="figure-dpi")
        try:
            return kind(**values), Layout(venue, points, dpi), file, chosen, folder
        except ValueError as e:
            st.warning(plain(sentence(e)))
            return None, None, file, chosen, folder


def preview(figure: Figure, data: Numbers, layout: Layout, file: str, made: bytes, about: dict[str, Any]) -> None:
    """The file itself where a browser shows it, and else its twin."""
    grey = st.toggle("As a black-and-white printer has it", key="figure-grey")
    if file == "svg" and not grey:
        st.image(made.decode(), width=PREVIEW)
        return
    shown = made if file == "png" else rendered(figure, data, "png", layout, about)
    with Image.open(io.BytesIO(shown)) as picture:
        st.image(picture.convert("L") if grey else picture.copy(), width=PREVIEW)
    if file not in ("png", "svg"):
        has = "the same drawing" if file == "pdf" else "its numbers"
        st.caption(f"Shown as PNG; the {file.upper()} file has {has}.")


def draw() -> None:
    """The figure with what is set, its file, and where it comes from."""
    figure, layout, file, chosen, folder = sidebar()
    project()
    heading("figures")
    if st.session_state.figure_problem:
        st.error(plain(st.session_state.figure_problem))
    if figure is None or layout is None:
        return
    st.query_params.update({"figure": str(figure)} | ({"run": chosen} if chosen else {}))
    out = Path(f"{figure.name}.{file}")
    try:
        source = source_of(type(figure), chosen, folder)
        with st.spinner("Drawing …"):
            figure = figure.resolved(source.data)
            data = figure.numbers(source.data)
            about = provenance(figure, source, out, layout)
            made = rendered(figure, data, file, layout, about)
    except ValueError as e:
        st.info(plain(sentence(e)))
        return
    if note := missing(data):
        st.warning(plain(note))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            f"Download {out}", made, str(out), TYPES.get(file, "application/octet-stream"), type="primary",
            icon=":material/download:", on_click="ignore",
        )  # fmt: skip
        if file in ("csv", "npz"):
            st.download_button(
                "Where it comes from", json.dumps(about, indent=2), f"{out}.json", "application/json", on_click="ignore"
            )
        if figure.needs == "run":
            st.download_button(
                "Report of this run", lambda: page(source).encode(), "report.html", "text/html",
                icon=":material/summarize:", on_click="ignore", help="One page that opens without network or Python",
            )  # fmt: skip
        st.caption(f"{WIDTHS[layout.venue]:.2f} in wide · {len(made) / 1000:,.0f} kB")
    preview(figure, data, layout, file, made, about)
    st.caption("What a paper says beside it:")
    st.code(about["caption"], language=None, wrap_lines=True)
    if about["bibtex"]:
        with st.expander("Sources as BibTeX"):
            st.code(about["bibtex"], language="bibtex")
    if about["text"] and about["begins"] is not None:
        st.caption(plain(f"Of {about['model']} on {about['text']}, which begins {with_bos(about['begins'])}."))
    kept = source.folder.is_relative_to(library.home())
    passing = not kept and source.folder.is_relative_to(tempfile.gettempdir())
    until = " (as long as the Heads page keeps its stretch: name a folder there)" if passing else ""
    st.caption(f"The same file from a command line{until}:")
    st.code(command(figure, source.folder, out, layout), language="bash", wrap_lines=True)


st.session_state.setdefault("revision", 0)
arrive()
draw()
