"""Verdict: policies at several budgets, and the smallest cache that will do."""

from functools import partial

import streamlit as st

from analysis.experiments.verdict import Plan
from analysis.settings import quoted
from app import address, parameters, recordings
from app.address_bar import is_linked, readdress
from app.choices import choice, choose
from app.controls import MODEL, heading
from app.jobs.verdict import VerdictJob
from app.panels import verdict_results, verdict_settings
from app.panels.job_panel import LOST, JobPanel, Maker, redraw
from app.panels.verdict_results import FIRST, PICTURE, Found, qualities
from app.projection import project

JOB_PANEL = JobPanel("verdict", VerdictJob, keeps="verdict")
ADDRESS = ("run", "lane", *verdict_settings.PLAN, *MODEL, *PICTURE)
"""What the address of this page says."""


def open_page() -> None:
    """What a tab begins with: what its address names, or a small comparison."""
    state, asked = st.session_state, st.query_params
    state.setdefault("revision", 0)
    if "verdict" in state and not is_linked(ADDRESS, JOB_PANEL.id):
        # Here already, or back from another page: all is as it was left.
        return
    (now, problems), said = verdict_settings.LINKED.linked(), ""
    known = JOB_PANEL.find(asked.get("run"))
    if known is not None:
        try:
            now, problems = verdict_settings.settings_of(plan_of(known)), []
            said = verdict_settings.LINKED.unfollowed(now)
        except ValueError as e:
            problems, known = [str(e)], None
    seen, unseen = address.values(PICTURE, asked)
    if known is not None and "quality" in seen and seen["quality"] not in qualities(plan_of(known)):
        unseen.append(f"the comparison does not measure {quoted(seen.pop('quality'))}")
    for name, first in FIRST.items():
        choose(f"verdict-{name}", seen.get(name, first))
    lost = LOST if known is None and asked.get("run") else ""
    JOB_PANEL.say(" ".join(filter(None, (said, address.wrong([*problems, *unseen]), lost))))
    JOB_PANEL.put(known.id if known is not None else "")
    state.update(verdict=now, revision=state.revision + 1)


def plan_of(known: VerdictJob | recordings.Result) -> Plan:
    """What was compared.  Raises ValueError where a folder does not say it."""
    return known.plan if isinstance(known, VerdictJob) else Plan.of(known.spec, known.settings)


def to_address() -> None:
    """Let the address say what is shown, so that a reload and a second tab show it too."""
    known, now = JOB_PANEL.job or JOB_PANEL.kept, st.session_state.verdict
    if known is not None:
        now = verdict_settings.settings_of(plan_of(known))
    shown = {name: choice(f"verdict-{name}", first) for name, first in FIRST.items()}
    said = verdict_settings.LINKED.link(now) | address.said(PICTURE, shown, FIRST)
    readdress(ADDRESS, said | ({"run": known.id} if known is not None else {}))


def start() -> None:
    """Begin with what is set; cells of what was on screen are taken over, as far as they are the same."""
    JOB_PANEL.begin(lambda: verdict_settings.prepared(JOB_PANEL.id), start)


def resume() -> None:
    """Compute what is missing of what stopped here."""
    JOB_PANEL.resume(_prepared_again)


def _prepared_again(kept: recordings.Result) -> Maker[VerdictJob]:
    plan = plan_of(kept)
    parameters.check_plan(plan)
    return partial(VerdictJob, plan, resumes=kept.id)


def draw() -> None:
    """What was found; again and again while cells come."""
    found = JOB_PANEL.head(Found, "Start", "play_arrow", start, resume)
    if found is None:
        st.markdown(
            "Which cache is good enough? Here policies read the same texts and answer the same questions at several "
            "budgets: the tokens that a cache holds, at most. Each is set against dense, which keeps everything, by "
            "what it predicts, what it recalls, and what it takes. Press Start: the table fills cell by cell, and a "
            "sentence names the smallest cache within 2 % of dense, and what it forgets."
        )
    else:
        if (run := JOB_PANEL.job) is not None:
            JOB_PANEL.progress_of_cells(run.snapshot)
        verdict_results.draw(found)
    to_address()


open_page()
verdict_settings.sidebar(None)
project()
heading("verdict")
redraw(draw, lambda: JOB_PANEL.pace(0.5))
