"""What a figure is made of: runs and stretches in memory, those of the library that an address names, and folders."""

from contextlib import suppress
from pathlib import Path

import streamlit as st

from analysis.figures import FIGURES, Figure, parse
from analysis.figures.inputs import FigureInput, open_input
from analysis.maps.stretch import Stretch
from analysis.models.kinds import installed
from analysis.runs import held, library
from analysis.settings import quoted
from app import address
from app.frames.atlas import called
from app.jobs.capture import CaptureJob
from app.jobs.reading import ReadingJob
from app.jobs.registry import REGISTRY
from app.pages import PAGES
from app.panels import slots

from .run_list import titled

NEEDS = {
    "run": "a run", "stretch": "a captured stretch", "grid": "a grid of runs", "trainings": "trainings",
    "recall": "a table of recall", "verdict": "a verdict",
}  # fmt: skip
MADE_ON = {"stretch": "heads", "trainings": "learn", "recall": "recall", "verdict": "verdict"}
"""The pages on which they are made; all others on the first one."""
HOLDS = {
    "reading": "run", "chat": "run", "capture": "stretch", "grid": "grid", "training": "trainings", "recall": "recall",
    "verdict": "verdict",
}  # fmt: skip
"""Which of them a run of the library is, by its kind."""
FOLDER = "A folder …"
ELSEWHERE = "elsewhere"
"""What an address says of a folder outside of the library: its path is nobody else's concern."""

PARAMETERS: address.Parameters = {
    "figure": address.Parameter(parse),
    "folder": address.one_of("folder", [ELSEWHERE]),
}
"""What addresses say of a figure, with all of its settings, and of the folder that it is made of."""


def need_of(name: str) -> str:
    """What the run or stretch of this name is that lies in memory or in the library; empty where there is none."""
    # All others lie in the library, from which one may have been deleted that is in memory still.
    if (capture := REGISTRY.find(name, CaptureJob)) is not None:
        return capture.figures_need
    with suppress(ValueError):
        return HOLDS.get(library.entry(name).kind, "")
    return ""


def first_figure(needs: str) -> str | None:
    """The first figure that is made of such a thing; None where there is none."""
    return next((name for name, figure in FIGURES.items() if figure.needs == needs), None)


def offered(needs: str) -> dict[str, str]:
    """What there is to draw from, by the name that a person sees: what lies in memory or was linked to, and folders."""
    state, found = st.session_state, dict[str, str]()
    read = REGISTRY.find(state.get("read_run"), ReadingJob)
    if needs == "run" and read is not None and any(len(t.nll) for t in read.run.tracks):
        found["The run of the Read page"] = read.id
    captures = [REGISTRY.find(capture, CaptureJob) for capture in state.get("captures", [])]
    kept = [run for run in captures if run is not None and run.atlas is not None]
    for run, name in zip(kept, called(kept), strict=True) if needs == "stretch" else ():
        slots.renew_lease(run)
        found[f"The stretch of the Heads page: {name}"] = run.id
    linked = state.get("figure_linked", "")
    if linked and linked not in found.values() and need_of(linked) == needs:
        with suppress(ValueError):
            found[f"In the library: {titled(library.entry(linked))}"] = linked
    return {**found, FOLDER: ""}


def source_of(figure: type[Figure], chosen: str, folder: str, linked_folder: bool) -> FigureInput:
    """What the figure is made of: `chosen` of those that are offered, or a folder; `linked_folder`: a link is of one.

    Raises ValueError with what to do.
    """
    run = REGISTRY.get(chosen)
    if run is not None and run.figures_need == figure.needs:
        return run.figure_input()
    if chosen:
        return _of_library(library.entry(chosen), figure.needs)
    if not folder and linked_folder:
        raise ValueError(
            "this link is of a figure that is made of a folder outside of the library, and an address names no folder: "
            "write its path under Folder"
        )
    if not folder:
        raise ValueError(
            f"this figure is made of {NEEDS[figure.needs]}: name its folder, or make one on the "
            f"{PAGES[MADE_ON.get(figure.needs, 'read')].title()} page"
        )
    return _opened(folder, figure.needs, held.version(held.files_of(Path(folder))))


def _of_library(found: library.Entry, needs: str) -> FigureInput:
    if needs == "stretch" and (model := Stretch(found.path).spec.model) not in installed() | REGISTRY.models():
        raise ValueError(
            f"this stretch is of the model {quoted(model)}, which is not in use here, and an address fetches none: "
            f"open the stretch on the {PAGES['heads'].title()} page first"
        )
    return _opened(str(found.path), needs, found.version)


@st.cache_resource(max_entries=2, show_spinner="Opening …")
def _opened(folder: str, needs: str, version: int) -> FigureInput:
    # `version` lets a run that has grown, or another of its name, be read again.
    return open_input(Path(folder), needs)


def said(chosen: str, folder: str) -> dict[str, str]:
    """What an address says of what a figure is made of."""
    if chosen or not folder:
        return {"run": chosen} if chosen else {}
    with suppress(OSError, ValueError):
        place = Path(folder)
        if place.parent.resolve() == library.home().resolve():
            return {"run": library.find(place.name).name}
    return {"folder": ELSEWHERE}
