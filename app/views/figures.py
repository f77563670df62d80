"""Figures: what goes into the paper, previewed as the file that it will be."""

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import streamlit as st
from PIL import Image

from analysis.errors import sentence
from analysis.figures import FIGURES, AttentionStrip, Figure, HeadMap, Numbers, Perplexity, SinkGrid, Strip
from analysis.figures.export import command, provenance
from analysis.figures.report import page
from analysis.figures.sheet import WIDTHS, Layout, missing, rendered
from analysis.runs import library
from analysis.texts import with_bos
from app import address
from app.address_bar import readdress
from app.choices import choose, kept_index, kept_value
from app.controls import brand, heading, setting_control
from app.downloads import download
from app.jobs.capture import CaptureJob
from app.jobs.reading import ReadingJob
from app.jobs.registry import REGISTRY
from app.panels import figure_layout, figure_source
from app.plain import plain
from app.projection import project

PARAMETERS: address.Parameters = {**figure_source.PARAMETERS, **figure_layout.PARAMETERS}
GONE = (
    "What this address wants a figure of is not here: import its .zip on the page Runs and open the link again, or "
    "choose something else."
)
ADDRESS = ("run", *PARAMETERS)
"""What the address of this page says."""
TYPES = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png", "csv": "text/csv"}
PREVIEW = 760
"""Pixels across."""


def arrive() -> None:
    """Let figures begin with what the page shows that one comes from, or with what the address says."""
    state, asked = st.session_state, st.query_params
    for name, empty in (("figure_begin", {}), ("figure_seen", {}), ("figure_problem", ""), ("figure_folder", False)):
        state.setdefault(name, empty)
    if not state.get("arrived"):
        return
    # Only what has been seen since begins anew; all else stays as it was set here.
    seen = seen_elsewhere()
    anew = {name: figure for name, figure in seen.items() if state.figure_seen.get(name) != figure}
    first = {"read": "perplexity", "heads": "head-map"}.get(state.get("came_from"))
    first = first if first in seen else None
    if first is not None:
        choose(source_key(FIGURES[first].needs), None)
    if any(name in asked for name in ADDRESS):
        found, problems = address.values(PARAMETERS, asked)
        figure_layout.take(found)
        if "figure" in found:
            first = found["figure"].name
            anew[first] = found["figure"]
        linked = asked.get("run", "")
        needs = figure_source.need_of(linked)
        if "figure" not in found and needs:
            first = figure_source.first_figure(needs)
        gone = "" if needs or not linked else GONE
        state.figure_problem = f"{address.wrong(problems)} {gone}".strip()
        if REGISTRY.find(linked, CaptureJob) is not None:
            state.captures = list(dict.fromkeys([*state.get("captures", []), linked]))
        state.update(figure_linked=linked if needs else "", figure_folder="folder" in found, figure_take=True)
    elif not state.returned:
        state.figure_problem = ""
    state.figure_begin |= anew
    state.figure_seen |= seen
    for key in [key for key in state if any(str(key).startswith(f"figure-{name}-") for name in anew)]:
        del state[key]
    if first is not None:
        choose("figure-name", first)


def seen_elsewhere() -> dict[str, Figure]:
    """Figures of the heads, lanes and tokens that the other pages show, by name."""
    state, seen = st.session_state, []
    view, maps, run = state.get("view"), state.get("atlas_view"), REGISTRY.find(state.get("read_run"), ReadingJob)
    head = {}
    if view is not None and run is not None:
        seen += [Perplexity(view.mode, view.reference), SinkGrid(view.chosen), Strip(view.chosen)]
        head = dict(zip(("layer", "head"), view.head, strict=True)) if view.head else {}
    kept = REGISTRY.find(state.get("atlas_run"), CaptureJob)
    if maps is not None and kept is not None and kept.atlas is not None:
        head = {"layer": maps.layer, "head": maps.head}
        begin, end = maps.region.rows if maps.region else (0, HeadMap.tokens)
        shown = {"begin": begin, "tokens": max(2, end - begin), "pool": maps.pool, "colour": maps.colour}
        cells = "logits" if maps.kind == "logits" else "weights"
        seen.append(HeadMap(**head, **shown, cells=cells))
        seen.append(AttentionStrip(**head, query=maps.cross[0] if maps.cross else -1))
    elif head:
        seen += [HeadMap(**head), AttentionStrip(**head)]
    return {figure.name: figure for figure in seen}


def source_key(needs: str) -> str:
    """Of the widget for what figures are made of that need this."""
    return f"figure-source-{needs}"


def sidebar() -> tuple[Figure | None, Layout, str, str, str]:
    """The figure, its layout, its kind of file, and what it is made of."""
    state = st.session_state
    with st.sidebar:
        brand("figures")
        name = st.selectbox(
            "Figure", list(FIGURES), format_func=lambda n: FIGURES[n].title,
            **kept_index("figure-name", next(iter(FIGURES)), FIGURES),
        )  # fmt: skip
        kind = FIGURES[name]
        st.caption(" ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("`", ""))
        names = figure_source.offered(kind.needs)
        labels = {found: label for label, found in names.items()}
        if state.get("figure_take"):
            # Once: then a person may choose another.
            state.figure_take = False
            linked = "" if state.figure_folder else state.figure_linked
            choose(source_key(kind.needs), labels.get(linked) if linked or state.figure_folder else None)
        usual = labels.get(state.get("atlas_run") or "none", next(iter(names)))
        chosen = names[st.selectbox("Made of", list(names), **kept_index(source_key(kind.needs), usual, names))]
        folder = "" if chosen else st.text_input("Folder", **kept_value(f"figure-folder-{kind.needs}", "")).strip()
        folder = os.path.expanduser(folder)
        begin = state.figure_begin.get(name)
        values = {f.name: setting_control(f"figure-{name}", f, begin, kind) for f in kind.settings()}
        layout, file = figure_layout.controls()
        try:
            return kind(**values), layout, file, chosen, folder
        except ValueError as e:
            st.warning(plain(sentence(e)))
            return None, layout, file, chosen, folder


def preview(figure: Figure, data: Numbers, layout: Layout, file: str, made: bytes, about: dict[str, Any]) -> None:
    """The file itself where a browser shows it, and else its twin."""
    grey = figure_layout.grey()
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
    if figure is None:
        return
    st.session_state.figure_begin[figure.name] = figure
    usual = figure_layout.usual(layout.venue)
    said = address.said(PARAMETERS, {"figure": figure, **figure_layout.now()}, {"figure": None, **usual})
    waits = {"folder": figure_source.ELSEWHERE} if st.session_state.figure_folder and not chosen and not folder else {}
    readdress(ADDRESS, said | figure_source.said(chosen, folder) | waits)
    out = Path(f"{figure.name}.{file}")
    try:
        source = figure_source.source_of(type(figure), chosen, folder, st.session_state.figure_folder)
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
        media_type = TYPES.get(file, "application/octet-stream")
        download(f"Download {out}", str(out), lambda: made, media_type, primary=True)
        if file in ("csv", "npz"):
            origin = json.dumps(about, indent=2)
            download("Where it comes from", f"{out}.json", lambda: origin, "application/json", icon=None)
        if figure.needs == "run":
            download(
                "Report of this run", "report.html", lambda: page(source), "text/html", icon=":material/summarize:",
                help="One page that opens without network or Python",
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
    in_library = source.folder.is_relative_to(library.home())
    passing = not in_library and source.folder.is_relative_to(tempfile.gettempdir())
    until = " (as long as the Heads page keeps its stretch: name a folder there)" if passing else ""
    st.caption(f"The same file from a command line{until}:")
    st.code(command(figure, source.folder, out, layout), language="bash", wrap_lines=True)


st.session_state.setdefault("revision", 0)
arrive()
draw()
