"""Figures: what goes into the paper, previewed as the file that it will be."""

import io
import json
import tempfile
from pathlib import Path

import streamlit as st
from PIL import Image

from analysis.errors import sentence
from analysis.export import Source, command, open_source, provenance
from analysis.figures import FIGURES, Figure
from analysis.figures.sheet import KINDS, WIDTHS, Layout, rendered
from analysis.record import save
from analysis.report import page
from analysis.texts import with_bos
from app import slots
from app.capturer import Capturing
from app.controls import brand, heading, setting_control
from app.plain import plain
from app.projection import project
from app.reader import LiveRun
from app.runner import REGISTRY

NEEDS = {"run": "a run", "stretch": "a captured stretch", "grid": "a grid of runs", "trainings": "trainings"}
PAGES = {"stretch": "Heads", "trainings": "Learn"}
"""Where they are made; all others on the Read page."""
TYPES = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png", "csv": "text/csv"}
FOLDER = "A folder …"
PREVIEW = 760
"""Pixels across."""


def offered(needs: str) -> dict[str, str]:
    """What there is to draw from, by the name that a person sees: folders, and what lies in memory."""
    state, found = st.session_state, {}
    run = REGISTRY.get(state.get("live_run"))
    if needs == "run" and isinstance(run, LiveRun) and any(len(t.nll) for t in run.run.tracks):
        found["The run of the Read page"] = run.id
    for capture in state.get("captures", []):
        kept = REGISTRY.get(capture)
        if needs == "stretch" and isinstance(kept, Capturing) and kept.atlas is not None:
            slots.look(kept)
            found[f"The stretch of the Heads page: {kept.label}"] = kept.id
    return {**found, FOLDER: ""}


def source_of(figure: type[Figure], chosen: str, folder: str) -> Source:
    """What the figure is made of.  Raises ValueError with what to do."""
    run = REGISTRY.get(chosen)
    if isinstance(run, Capturing) and run.atlas is not None:
        return Source(run.atlas.stretch.path, run.atlas, run.atlas.stretch.about)
    if isinstance(run, LiveRun):
        # On disk, so that the command under the figure finds it again.
        place = Path("runs") / f"page-{run.id}"
        save(run.run, place, text_sha256=run.text.sha256, weights_sha256=run.model.sha256)
        return open_source(place, figure.needs)
    if not folder:
        raise ValueError(
            f"this figure is made of {NEEDS[figure.needs]}: name its folder, or make one on the "
            f"{PAGES.get(figure.needs, 'Read')} page"
        )
    return _opened(folder, figure.needs)


@st.cache_resource(max_entries=2, show_spinner="Opening …")
def _opened(folder: str, needs: str) -> Source:
    return open_source(Path(folder), needs)


def sidebar() -> tuple[Figure | None, Layout | None, str, str, str]:
    """The figure, its layout, its kind of file, and what it is made of."""
    with st.sidebar:
        brand("What goes into the paper")
        name = st.selectbox("Figure", list(FIGURES), format_func=lambda n: FIGURES[n].title, key="figure-name")
        kind = FIGURES[name]
        st.caption(" ".join(kind.__doc__.split("\n\n")[0].split()).replace("`", ""))
        names = offered(kind.needs)
        chosen = names[st.selectbox("Made of", list(names), key=f"figure-source-{kind.needs}")]
        folder = "" if chosen else st.text_input("Folder", key=f"figure-folder-{kind.needs}").strip()
        values = {f.name: setting_control(f"figure-{name}", f, None, kind) for f in kind.settings()}
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


def preview(figure: Figure, data, layout: Layout, file: str, made: bytes, about) -> None:
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
    figure, layout, file, chosen, folder = sidebar()
    project()
    heading("Figures for a paper")
    if figure is None:
        return
    out = Path(f"{figure.name}.{file}")
    try:
        source = source_of(type(figure), chosen, folder)
        with st.spinner("Drawing …"):
            figure = figure.on(source.what)
            data = figure.numbers(source.what)
            about = provenance(figure, source, out, layout)
            made = rendered(figure, data, file, layout, about)
    except ValueError as e:
        st.info(plain(sentence(e)))
        return
    width, height = layout.size(figure)
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
        st.caption(f"{width:.2f} × {height:.2f} in · {len(made) / 1000:,.0f} kB")
    preview(figure, data, layout, file, made, about)
    if about["text"] and about["begins"] is not None:
        st.caption(plain(f"Of {about['model']} on {about['text']}, which begins {with_bos(about['begins'])}."))
    passing = source.place.is_relative_to(tempfile.gettempdir())
    until = " (as long as the Heads page keeps its stretch: name a folder there)" if passing else ""
    st.caption(f"The same file from a command line{until}:")
    st.code(command(figure, source.place, out, layout), language="bash", wrap_lines=True)


st.session_state.setdefault("revision", 0)
draw()
