"""What is compared on the verdict page: its widgets, what an address says of it, and the job that they begin."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import streamlit as st

from analysis import texts
from analysis.experiments.recall import TASKS
from analysis.experiments.verdict import Plan, listed
from analysis.experiments.verdict.plan import DENSE, READING
from analysis.policies import parse
from analysis.runs.spec import Spec
from app import address, parameters
from app.controls import Chosen, brand, lane_controls, model_controls, whole_control
from app.jobs.verdict import VerdictJob
from app.panels import recall_controls
from app.panels.asked import AskedOfLanes
from app.panels.job_panel import Maker
from app.parameters import LONGEST_RECALL, RECALL

ASKED = tuple(name for name, task in TASKS.items() if not hasattr(task, "file"))
"""Tasks that a page compares by: those that need no file."""
MOST_BUDGETS, MOST_LANES, MOST_CELLS = 12, 8, 2000
CHUNK = 128
"""Tokens that are read at a time: fewer than is fastest, since a press on Stop is heard between two chunks."""
LANES = tuple(str(parse(policy)) for policy in ("window", "streaming", "snapkv:interval=16"))


def _tasks(written: str) -> tuple[str, ...]:
    found = [parameters.task(name) for name in listed([written])]
    for task in found:
        texts.checked("task", task.name, ASKED)
    return tuple(dict.fromkeys(task.short for task in found))


def _texts(written: str) -> list[str]:
    return list(dict.fromkeys(address.text(name) for name in written.split(",") if name))


PLAN: address.Parameters = {
    "budgets": address.wholes("budgets", MOST_BUDGETS, 2, LONGEST_RECALL),
    "kl": address.switch("kl"),
    "tasks": address.Parameter(_tasks, ",".join),
    "texts": address.Parameter(_texts, ",".join),
    "tokens": address.whole("tokens", 2, LONGEST_RECALL),
    **{name: RECALL[name] for name in ("lengths", "depths", "repeats", "seed", "question")},
}
"""What addresses say of what is compared."""
USUAL: Mapping[str, Any] = {
    "budgets": (64, 128, 256),
    "kl": 1,
    "tasks": ("passkey",),
    "texts": ["hamlet"],
    "tokens": 1024,
    "lengths": (256, 512),
    "depths": (5.0, 50.0, 95.0),
    "repeats": 1,
    "seed": 0,
    "question": "aware",
}
"""What is compared unless a person asks for something else: two cores take some two minutes for it."""
LINKED = AskedOfLanes(PLAN, USUAL, LANES, MOST_LANES, "are compared")


def settings_of(plan: Plan) -> dict[str, Any]:
    """What is compared, by the names that addresses have for it; only what a page may ask for."""
    return {
        "budgets": tuple(plan.budgets),
        "kl": int("kl" in plan.tasks),
        "tasks": tuple(task for task in plan.recalled if TASKS.parse(task).name in ASKED),
        "texts": [name for name in dict.fromkeys(plan.texts) if name in texts.plays()],
        "tokens": plan.base.tokens or USUAL["tokens"],
        **{name: getattr(plan, name) for name in ("lengths", "depths", "repeats", "seed")},
        "question": plan.asking,
        "model": Chosen.of(plan.base),
        "lanes": [str(parse(policy)) for policy in plan.policies],
    }


def plan_now() -> Plan:
    """What the widgets ask for.  Raises ValueError where it does not go together."""
    now = st.session_state.verdict
    if not now["texts"]:
        raise ValueError("choose at least one text")
    base = Spec(
        text=now["texts"][0], policies=(DENSE,), tokens=now["tokens"], chunk=CHUNK, **now["model"].decided()._asdict()
    )
    return Plan(
        base,
        policies=tuple(now["lanes"]),
        budgets=tuple(now["budgets"]),
        tasks=(*READING[: 1 + now["kl"]], *now["tasks"]),
        texts=tuple(now["texts"]),
        asking=now["question"],
        **{name: now[name] for name in ("lengths", "depths", "repeats", "seed")},
    )


def prepared(like: str = "") -> Maker[VerdictJob]:
    """A job for what is set; `like`: the result whose cells are taken over.  Raises ValueError where it cannot be."""
    plan = plan_now()
    places = len(plan.lengths) * max(1, len(plan.depths)) * plan.repeats
    if (cells := len(plan.members) * (len(plan.texts) + len(plan.recalled) * places)) > MOST_CELLS:
        raise ValueError(
            f"these are {cells:,} cells, and a page compares by {MOST_CELLS:,} at most: choose fewer lanes, budgets, "
            "texts, tasks, lengths or depths, or use the command line"
        )
    return partial(VerdictJob, plan, like=like)


def sidebar(trained_length: int | None) -> None:
    """The widgets."""
    now = st.session_state.verdict
    with st.sidebar:
        brand("verdict")
        lane_controls("verdict-lane", now["lanes"], MOST_LANES, trained_length)
        st.caption("How much each lane keeps is decided by the budgets. Dense is always there.")
        what = "Tokens that a cache holds, at most, with commas between them"
        recall_controls.numbers("verdict", "budgets", PLAN["budgets"], "Budgets, in tokens", what)
        st.caption("What is read")
        _read_controls(now)
        st.caption("What is asked")
        _recall_controls(now)
        st.caption("Model")
        now["model"] = model_controls("verdict", now["model"])


def _read_controls(now: dict[str, Any]) -> None:
    revision = st.session_state.revision
    now["texts"] = st.multiselect(
        "Texts", texts.plays(), now["texts"], format_func=texts.title, key=f"verdict-texts-{revision}",
        help="Of more texts there is more to tell policies apart by",
    )  # fmt: skip
    now["tokens"] = whole_control(
        "Tokens of each", 2, LONGEST_RECALL, now["tokens"], key=f"verdict-tokens-{revision}",
    )  # fmt: skip
    kl = st.toggle(
        "KL divergence", bool(now["kl"]), key=f"verdict-kl-{revision}",
        help="How far each policy's distribution is from dense's, and how often both have the same most probable token",
    )  # fmt: skip
    now["kl"] = int(kl)


def _recall_controls(now: dict[str, Any]) -> None:
    tasks = st.multiselect(
        "Tasks", [*dict.fromkeys([*ASKED, *now["tasks"]])], now["tasks"],
        key=f"verdict-tasks-{st.session_state.revision}",
        format_func=lambda name: TASKS[name].title if name in TASKS else name,
        help="Facts that stand in texts, and are asked for at their end",
    )  # fmt: skip
    now["tasks"] = tuple(tasks)
    recall_controls.asked("verdict")
