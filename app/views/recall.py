"""Recall: something is said in a text, and asked for later: what does each policy give back?"""

from functools import partial

import streamlit as st

from analysis.experiments.recall.asked import Asked
from app import address, recordings
from app.controls import MODEL, Chosen, choice, choose, heading, is_linked, is_new_press, readdress
from app.frames.recall import ordered
from app.jobs.recall import RecallJob
from app.jobs.registry import REGISTRY
from app.panels import recall_map, recall_settings, whereabouts
from app.panels.job_panel import JobPanel, Maker, redraw
from app.panels.recall_map import CELL, Found
from app.panels.recall_settings import USUAL
from app.parameters import RECALL
from app.plain import plain
from app.projection import project

JOB_PANEL = JobPanel("recall", RecallJob, keeps="recall")
PARAMETERS: address.Parameters = {"measured": RECALL["measured"], "cell": address.reals("cell", 3, 0, 2**31)}
"""What the address says of what is looked at."""
ADDRESS = ("run", "lane", *USUAL, *MODEL, *PARAMETERS)
"""What the address of this page says."""
LOST = "What that address names is no longer in memory, and not in the library: begin again."


def open_page() -> None:
    """What a tab begins with: what its address names, or a map of the pass key."""
    state, asked = st.session_state, st.query_params
    state.setdefault("revision", 0)
    if "recall" in state and not is_linked(ADDRESS, JOB_PANEL.id):
        # Here already, or back from another page: all is as it was left.
        return
    now, problems = recall_settings.linked(asked, asked.get_all("lane"), REGISTRY.models())
    known = known_as(asked.get("run"))
    if known is not None:
        try:
            of = known.asked if isinstance(known, RecallJob) else Asked.of(known.settings)
            now = recall_settings.settings_of(of) | {"model": Chosen.of(known.spec), "lanes": list(known.spec.policies)}
            problems = []
        except ValueError as e:
            problems, known = [str(e)], None
    seen, unseen = address.values(PARAMETERS, asked)
    choose("recall-measured", seen.get("measured", "recalled"))
    cell = seen.get("cell", ())
    lost = LOST if known is None and asked.get("run") else ""
    JOB_PANEL.say(" ".join(filter(None, (address.wrong([*problems, *unseen]), lost))))
    JOB_PANEL.put(known.id if known is not None else "")
    state.update(
        recall=now,
        recall_cell=(int(cell[0]), int(cell[1]), cell[2]) if len(cell) == 3 else None,
        revision=state.revision + 1,
    )


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


def to_address() -> None:
    """Let the address say what is shown, so that a reload and a second tab show it too."""
    state, known = st.session_state, JOB_PANEL.job or JOB_PANEL.kept
    now = state.recall
    if known is not None:
        of = known.asked if isinstance(known, RecallJob) else Asked.of(known.settings)
        now = recall_settings.settings_of(of) | {"model": Chosen.of(known.spec), "lanes": list(known.spec.policies)}
    said = recall_settings.link(now)
    shown = {"measured": choice("recall-measured", "recalled"), "cell": state.recall_cell}
    said |= address.said(PARAMETERS, shown, {"measured": "recalled", "cell": None})
    readdress(ADDRESS, said | ({"run": known.id} if known is not None else {}))


def start() -> None:
    """Begin with what is set; cells of what was on screen are taken over, as far as they are the same."""
    JOB_PANEL.begin(lambda: recall_settings.prepared(JOB_PANEL.id), start)


def resume() -> None:
    """Compute what is missing of what stopped here."""
    JOB_PANEL.begin(_prepared_again, resume)


def _prepared_again() -> Maker[RecallJob]:
    if (kept := JOB_PANEL.stopped) is None:
        raise ValueError("that run is no longer in the library, or goes on: start again")
    asked = Asked.of(kept.settings)
    asked.check_file(kept.path)
    return partial(RecallJob, kept.spec, asked, resumes=kept.id)


def picked() -> None:
    """A cell of the map was pressed; a second time: it is no longer looked at."""
    pick, found = st.session_state["recall-map"]["pick"], found_now()
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


def found_now() -> Found | None:
    """What is on screen.  None where there is nothing, or it is damaged: then the page says so."""
    job = JOB_PANEL.job
    try:
        kept = None if job is not None else JOB_PANEL.kept
        return Found.of_job(job) if job is not None else Found.of_result(kept) if kept is not None else None
    except ValueError as e:
        JOB_PANEL.say(e)
        return None


def progress(run: RecallJob) -> None:
    """How far the job is, or why it ended."""
    found, words = run.snapshot, "Loading the model"
    if run.status != "loading":
        left = found.seconds_left or 0
        soon = f", about {left:.0f} s left" if left < 90 else f", about {left / 60:.0f} min left"
        words = f"{found.done} of {found.total} cells{soon if left else ''}"
    JOB_PANEL.progress(found.share, words, f"Stopped after {found.done} of {found.total} cells. They are kept.")


def draw() -> None:
    """What was recalled; again and again while cells come."""
    found = found_now()
    with st.container(horizontal=True, vertical_alignment="center"):
        JOB_PANEL.buttons("Start" if found is None else "Start again", "play_arrow", start, resume)
        if found is not None:
            st.caption(plain(about(found)))
    run = JOB_PANEL.watch()
    if found is None:
        st.markdown(
            "A policy can stay fluent and forget. Here something is said in a text and asked for at its end, again and "
            "again: at several lengths, at several depths, under each policy. An answer counts where the model would "
            "give every token of it. Press Start: dense comes first, since what the model itself cannot do says "
            "nothing of a policy."
        )
    else:
        if run is not None:
            progress(run)
        cell = st.session_state.recall_cell
        recall_map.draw(found, cell, picked, partial(whereabouts.draw, found, cell))
    to_address()


def about(found: Found) -> str:
    """What is asked, in a few words."""
    how = {"aware": "", "blind": "the question unseen"}[found.asked.asking]
    texts = f"{found.asked.repeats} for each cell" if found.asked.repeats > 1 else ""
    policies = len(ordered(found.spec.policies))
    lanes = f"{policies} lane{'s' * (policies != 1)}"
    return " · ".join(filter(None, (found.asked.of_task.title, lanes, texts, f"seed {found.asked.seed}", how)))


open_page()
recall_settings.sidebar(None)
project()
heading("recall")
redraw(draw, lambda: JOB_PANEL.pace(0.5) or whereabouts.JOB_PANEL.pace(0.5))
