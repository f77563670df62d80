"""The atlas: maps of a captured stretch of text, to pan and zoom: a panel of the heads page."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from analysis import texts
from analysis.errors import sentence
from analysis.maps.capture import LONGEST, cut_off
from analysis.maps.region import Region
from analysis.maps.stretch import Stretch
from analysis.policies import parse
from analysis.runs.spec import Spec
from analysis.settings import quoted
from app import address
from app.choices import choice, choose, kept_default, kept_index
from app.components import atlas
from app.controls import LONGEST_NAME, chosen_text, is_new_press
from app.frames.atlas import MANY, AtlasView, called
from app.jobs.capture import CaptureJob
from app.jobs.registry import REGISTRY
from app.panels import slots
from app.panels.job_panel import JobPanel, Maker
from app.plain import plain
from app.view import HEAD

from .heads import HeadsPanel

JOB_PANEL = JobPanel("atlas", CaptureJob, "heads", "capture")

USUAL = {"cells": "weights", "pool": "max", "colour": "logarithmic", "many": "none", "as": "beside"}
SHOWN = {"cells": "Cells", "pool": "Zoomed out", "colour": "Colour", "many": "many", "as": "as"}
"""What of the address widgets choose, and the end of their keys."""
CHUNK = 128
"""Tokens that are read at a time: fewer than is fastest, since a press on Stop is heard between two chunks."""
CELLS, POOLS, COLOURS = ("weights", "logits"), ("max", "mean"), ("logarithmic", "linear")
COMPARED = {"beside": "side by side", "minus": "difference"}


def sidebar() -> None:
    """Where it is kept."""
    asked = st.session_state.heads
    st.caption("Where it is kept")
    asked["folder"] = st.text_input(
        "Folder",
        asked["folder"],
        key=f"atlas-folder-{st.session_state.revision}",
        max_chars=LONGEST_NAME,
        placeholder="in the library",
        help="A new folder keeps what is captured; one that holds a stretch already is opened again",
    ).strip()


def start() -> None:
    """Capture what is set; what was on screen stays, to be compared with."""
    state = st.session_state
    if (run := JOB_PANEL.begin(_prepared, start, keep=True)) is not None:
        if state.captures:
            # What the first one shows an address may have named.
            state.atlas_view.region = state.atlas_view.place = state.atlas_view.cross = None
        kept = (c for c in state.captures if c != run.id and REGISTRY.find(c, CaptureJob) is not None)
        state.captures = [*kept, run.id]


def opened() -> str:
    """Show the capture that was put here, or open that of the library, unless its model would have to be fetched;
    returns what there is to say."""
    state, kept = st.session_state, JOB_PANEL.kept
    if (run := JOB_PANEL.job) is not None:
        state.heads["folder"] = run.folder
        state.captures = list(dict.fromkeys([*state.captures, run.id]))
        return ""
    if kept is None:
        return ""
    try:
        if cut_off(kept.path) is not None:
            return "This capture was killed before its end: press Capture to begin it again."
    except ValueError as e:
        return sentence(e)
    state.heads["folder"] = str(kept.path)
    try:
        address.model(kept.spec.model, REGISTRY.models())
    except ValueError:
        return f"This stretch is kept in the library: press Open again to load its model, {quoted(kept.spec.model)}."
    if (run := JOB_PANEL.begin(_prepared, start, keep=True)) is not None:
        state.captures = list(dict.fromkeys([*state.captures, run.id]))
    return JOB_PANEL.problem


def _prepared() -> Maker[CaptureJob]:
    asked = st.session_state.heads
    folder = os.path.expanduser(asked["folder"])
    if holds_stretch(folder):
        # What it is of, it says itself.
        stretch = Stretch(Path(folder))
        return partial(CaptureJob, stretch.spec, None, folder)
    policy = parse(asked["policy"])
    if not policy.capturable:
        raise ValueError(f"{policy.label}: maps are captured under dense, window, shift or sinks + window")
    text = chosen_text("heads", asked["text"])
    tokens = asked["tokens"]["maps"]
    model = asked["model"].decided()._asdict()
    spec = Spec(text=text.name, policies=(str(policy),), tokens=tokens, chunk=CHUNK, **model)
    return partial(CaptureJob, spec, text, folder)


def holds_stretch(folder: str) -> bool:
    """Whether a folder that a person named holds a captured stretch."""
    return bool(folder) and os.path.exists(os.path.join(os.path.expanduser(folder), "stretch.json"))


def region_wanted() -> None:
    """A region is wanted."""
    value, run = st.session_state.atlas["region"], JOB_PANEL.job
    if run is None or run.atlas is None or not is_new_press("atlas-region", value):
        return
    total, scale = run.atlas.stretch.tokens, max(1, int(value["scale"]))
    rows, columns = ([max(0, min(total, int(n))) for n in value[side]] for side in ("rows", "columns"))
    if rows[0] < rows[1] and columns[0] < columns[1]:
        st.session_state.atlas_view.region = Region((rows[0], rows[1]), (columns[0], columns[1]), scale)
    place = value.get("place")
    st.session_state.atlas_view.place = tuple(max(0, min(total, int(n))) for n in place) if place else None


def picked() -> None:
    """A head, or a token."""
    value, run, view = st.session_state.atlas["pick"], JOB_PANEL.job, st.session_state.atlas_view
    if run is None or run.atlas is None or not is_new_press("atlas-pick", value):
        return
    stretch = run.atlas.stretch
    if "row" in value:
        view.cross = tuple(max(0, min(stretch.tokens - 1, int(value[k]))) for k in ("row", "column"))
        return
    layer, head = value["head"] if isinstance(value.get("head"), list) else (value["layer"], value["head"])
    view.layer, view.head = min(int(layer), stretch.layers - 1), min(int(head), stretch.heads - 1)
    view.picked = True


def _one_of(label: str, options: tuple[str, ...]) -> str:
    chosen = st.segmented_control(label, options, **kept_default(f"atlas-{label}", options[0]), required=True)
    # It begins with a choice, and one is required.
    assert chosen is not None
    return chosen


def controls(view: AtlasView, run: CaptureJob, others: dict[str, CaptureJob]) -> CaptureJob | None:
    """How maps are drawn; what they are compared with."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        view.kind = _one_of("Cells", CELLS)
        view.pool = _one_of("Zoomed out", POOLS)
        view.colour = _one_of("Colour", COLOURS)
        many = {"none": "none", "heads": "heads of this layer", "layers": "layers of this head"}
        view.many = st.selectbox(
            "Small maps", list(many), format_func=many.__getitem__, **kept_index("atlas-many", "none", many), width=190
        )
        if not others:
            return None
        (_, *called_others) = called([run, *others.values()])
        names = {"": "nothing", **dict(zip(others, called_others, strict=True))}
        chosen = st.selectbox(
            "Compare with",
            list(names),
            format_func=names.__getitem__,
            **kept_index("atlas-other", "", names),
            width=320,
        )
        if not chosen:
            return None
        how = st.segmented_control(
            "As", list(COMPARED), format_func=COMPARED.__getitem__, **kept_default("atlas-as", "beside"), required=True
        )
        if how == "minus":
            view.kind = "difference"
        return others[chosen]


def draw() -> None:
    """The panel; again and again while a text is captured or small maps are missing."""
    run, state = JOB_PANEL.job, st.session_state
    with st.container(horizontal=True, vertical_alignment="center"):
        again = holds_stretch(state.heads["folder"])
        JOB_PANEL.buttons("Open again" if again else "Capture", "center_focus_strong", start)
        if run is not None and run.atlas is not None:
            stretch = run.atlas.stretch
            tokens = f"{stretch.tokens:,} tokens of {texts.titled(run.spec.text)} {run.begins}"
            st.caption(plain(" · ".join(filter(None, (stretch.label, tokens, run.text_note)))))
    run = JOB_PANEL.watch()
    if run is None:
        st.markdown(
            "A stretch of text is read once, and what every head asked with and answered to is kept. Then any map of "
            "it can be drawn where you look: from one cell for many tokens down to one cell for each pair."
        )
        return
    if run.atlas is None:
        JOB_PANEL.progress(
            run.read / run.total if run.total else 0.0,
            f"{run.read:,} of {run.total:,} tokens read" if run.total else "Loading the model",
            "Stopped. Nothing was kept; press Capture to begin again.",
        )
        return
    others = {
        c: other for c in state.captures if (other := REGISTRY.find(c, CaptureJob)) and other is not run and other.atlas
    }
    for other in others.values():
        slots.renew_lease(other)
    other = controls(state.atlas_view, run, others)
    stretch, view = run.atlas.stretch, state.atlas_view
    if other is not None and other.opened.stretch.mass.shape != stretch.mass.shape:
        st.warning("The other stretch has other layers and heads, so its maps cannot stand beside these.")
        other = None
    if state.atlas_shown != run.id:
        lost = view.open(stretch)
        # Where another stretch was there before, no address asked.
        state.atlas_wrong = [] if state.atlas_shown else [*state.atlas_wrong, *lost]
        state.atlas_shown = run.id
    if wrong := address.wrong(state.atlas_wrong):
        st.warning(plain(wrong))
    frame = state.atlas_sender.frame(run, other, view)
    atlas.mount(frame, key="atlas", on_region=region_wanted, on_pick=picked)


def busy() -> bool:
    """Whether there will be something new without a press."""
    run = JOB_PANEL.job
    return JOB_PANEL.busy or (run is not None and run.atlas is not None and not st.session_state.atlas_sender.complete)


def now() -> dict[str, Any]:
    """What is on screen, as the address says it."""
    view, other = st.session_state.atlas_view, choice("atlas-other", "")
    shown = {name: choice(f"atlas-{key}", USUAL[name]) for name, key in SHOWN.items()}
    seen = {"head": (view.layer, view.head) if view.picked else None, "place": view.place, "token": view.cross}
    return {**shown, **seen, "other": other or None}


def take(found: dict[str, Any]) -> None:
    """Set what an address asks."""
    for name, key in SHOWN.items():
        choose(f"atlas-{key}", found.get(name, USUAL[name]))
    wanted = found.get("other", "")
    other = REGISTRY.find(wanted, CaptureJob)
    choose("atlas-other", wanted if other is not None else "")
    view = AtlasView(place=found.get("place"), cross=found.get("token"))
    if "head" in found:
        view.layer, view.head, view.picked = *found["head"], True
    lost = [f"no stretch {quoted(wanted)} is in memory to be compared with"] if wanted and other is None else []
    st.session_state.update(atlas_view=view, atlas_shown="", atlas_wrong=lost)
    if other is not None and other.id not in st.session_state.captures:
        st.session_state.captures.append(other.id)


PANEL = HeadsPanel(
    "Maps",
    JOB_PANEL,
    2048,
    LONGEST,
    sidebar,
    draw,
    busy,
    parameters={
        "cells": address.one_of("cells", CELLS),
        "pool": address.one_of("pool", POOLS),
        "colour": address.one_of("colour", COLOURS),
        "many": address.one_of("many", MANY),
        "as": address.one_of("as", COMPARED),
        "head": HEAD,
        "place": address.several("place", 3, LONGEST, "row.column.tokens, such as 512.0.64"),
        "token": address.several("token", 2, LONGEST, "row.column, such as 300.0"),
        "other": address.line("other", 64),
    },
    usual=USUAL,
    now=now,
    take=take,
    opened=opened,
)
