"""Recall: something is said in a text, and asked for later: what does each policy give back?"""

from contextlib import suppress
from functools import partial
from typing import Any

import streamlit as st

from analysis.experiments.recall.asked import Asked
from analysis.settings import quoted
from app import address, recordings
from app.address_bar import is_linked, readdress
from app.choices import choice, choose
from app.controls import MODEL, Chosen, heading, is_new_press
from app.jobs.recall import RecallJob
from app.jobs.registry import REGISTRY
from app.panels import recall_map, recall_settings, whereabouts
from app.panels.job_panel import LOST, JobPanel, Maker, redraw
from app.panels.recall_map import CELL, Found
from app.panels.recall_settings import USUAL
from app.parameters import RECALL
from app.projection import project

JOB_PANEL = JobPanel("recall", RecallJob, keeps="recall")
_CELL = address.reals("cell", 3, 0, 2**31)


def _cell(written: str) -> CELL:
    numbers: tuple[float, ...] = ()
    with suppress(ValueError):
        numbers = _CELL.read(written)
    if len(numbers) != 3 or not all(n.is_integer() for n in numbers[:2]):
        raise ValueError(f"cell must be a lane, a length and a depth, written 1,512,50, not {quoted(written)}")
    return int(numbers[0]), int(numbers[1]), numbers[2]


PARAMETERS: address.Parameters = {
    "measured": RECALL["measured"],
    "cell": address.Parameter(_cell, _CELL.write),
}
"""What the address says of what is looked at."""
ADDRESS = ("run", "lane", *USUAL, *MODEL, *PARAMETERS)
"""What the address of this page says."""


def open_page() -> None:
    """What a tab begins with: what its address names, or a map of the pass key."""
    state, asked = st.session_state, st.query_params
    state.setdefault("revision", 0)
    if "recall" in state and not is_linked(ADDRESS, JOB_PANEL.id):
        # Here already, or back from another page: all is as it was left.
        return
    (now, problems), said = recall_settings.LINKED.linked(), ""
    known = known_as(asked.get("run"))
    if known is not None:
        try:
            now, problems = settings_of(known), []
            said = recall_settings.LINKED.unfollowed(now)
        except ValueError as e:
            problems, known = [str(e)], None
    seen, unseen = address.values(PARAMETERS, asked)
    choose("recall-measured", seen.get("measured", "recalled"))
    cell = seen.get("cell")
    JOB_PANEL.put(known.id if known is not None else "")
    if cell is not None and "run" not in asked:
        unseen.append("cell is one of a map, and no run is named")
        cell = None
    if cell is not None and (found := JOB_PANEL.found(Found)) is not None and whereabouts.cell_of(found, cell) is None:
        unseen.append(f"the map has no cell {quoted(asked['cell'])}")
        cell = None
    lost = LOST if known is None and asked.get("run") else ""
    JOB_PANEL.say(" ".join(filter(None, (said, address.wrong([*problems, *unseen]), lost))))
    state.update(recall=now, recall_cell=cell, revision=state.revision + 1)


def known_as(name: str | None) -> RecallJob | recordings.Result | None:
    """What an address names: a job that is in memory, or what the library keeps of one; None where it has neither."""
    if (job := REGISTRY.find(name, RecallJob)) is not None:
        return job
    kept = recordings.result(name, JOB_PANEL.keeps)
    try:
        for policy in kept.spec.policies if kept is not None else ():
            # It may be from other hands, and no page reads a file that a policy names.
            address.policy(policy)
    except ValueError:
        return None
    return kept


def settings_of(known: RecallJob | recordings.Result) -> dict[str, Any]:
    """What was asked, as widgets have it.  Raises ValueError where a folder does not say it."""
    asked = known.asked if isinstance(known, RecallJob) else Asked.of(known.settings)
    return recall_settings.settings_of(asked) | {"model": Chosen.of(known.spec), "lanes": list(known.spec.policies)}


def to_address() -> None:
    """Let the address say what is shown, so that a reload and a second tab show it too."""
    state, known = st.session_state, JOB_PANEL.job or JOB_PANEL.kept
    now = state.recall
    if known is not None:
        now = settings_of(known)
    said = recall_settings.LINKED.link(now)
    shown = {"measured": choice("recall-measured", "recalled"), "cell": state.recall_cell}
    said |= address.said(PARAMETERS, shown, {"measured": "recalled", "cell": None})
    readdress(ADDRESS, said | ({"run": known.id} if known is not None else {}))


def start() -> None:
    """Begin with what is set; cells of what was on screen are taken over, as far as they are the same."""
    JOB_PANEL.begin(lambda: recall_settings.prepared(JOB_PANEL.id), start)


def resume() -> None:
    """Compute what is missing of what stopped here."""
    JOB_PANEL.resume(_prepared_again)


def _prepared_again(kept: recordings.Result) -> Maker[RecallJob]:
    asked = Asked.of(kept.settings)
    asked.check_file(kept.path)
    return partial(RecallJob, kept.spec, asked, resumes=kept.id)


def picked() -> None:
    """A cell of the map was pressed; a second time: it is no longer looked at."""
    pick, found = st.session_state["recall-map"]["pick"], JOB_PANEL.found(Found)
    if found is None or not is_new_press("recall-pick", pick):
        return
    depths, lengths = sorted(set(found.asked.depths)), sorted(set(found.asked.lengths))
    lane, row, column = (int(pick[name]) for name in ("lane", "row", "column"))
    if lane in range(len(found.spec.policies)) and row in range(len(depths)) and column in range(len(lengths)):
        cell: CELL = lane, lengths[column], depths[row]
        look = None if st.session_state.recall_cell == cell else cell
        st.session_state.recall_cell = look
        if look is not None and (of := whereabouts.cell_of(found, look)) is not None and not JOB_PANEL.busy:
            whereabouts.start(of)


def draw() -> None:
    """What was recalled; again and again while cells come."""
    found = JOB_PANEL.head(Found, "Start", "play_arrow", start, resume)
    if found is None:
        st.markdown(
            "A policy can stay fluent and forget. Here something is said in a text and asked for at its end, again and "
            "again: at several lengths, at several depths, under each policy. An answer counts where the model would "
            "give every token of it. Press Start: dense comes first, since what the model itself cannot do says "
            "nothing of a policy."
        )
    else:
        if (run := JOB_PANEL.job) is not None:
            JOB_PANEL.progress_of_cells(run.snapshot)
        cell = st.session_state.recall_cell
        if cell is not None and whereabouts.cell_of(found, cell) is None:
            # It was one of the map before.
            cell = st.session_state.recall_cell = None
        recall_map.draw(found, cell, picked, partial(whereabouts.draw, found, cell))
    to_address()


open_page()
recall_settings.sidebar(None)
project()
heading("recall")
redraw(draw, lambda: JOB_PANEL.pace(0.5) or whereabouts.JOB_PANEL.pace(0.5))
