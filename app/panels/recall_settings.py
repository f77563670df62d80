"""What is asked on the recall page: its widgets, what an address says of it, and the job that they begin."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import streamlit as st

from analysis.errors import sentence
from analysis.experiments.recall import TASKS
from analysis.experiments.recall.asked import Asked
from analysis.experiments.recall.own import lines_in
from analysis.runs.spec import Spec
from app import parameters
from app.controls import AROUND, brand, lane_controls, model_controls, setting_control
from app.jobs.recall import RecallJob
from app.panels import recall_controls
from app.panels.asked import AskedOfLanes
from app.panels.job_panel import Maker
from app.parameters import RECALL
from app.plain import plain

USUAL: Mapping[str, Any] = {
    "task": "passkey",
    "lengths": (128, 256, 384, 512, 768, 1024),
    "depths": (5.0, 25.0, 50.0, 75.0, 95.0),
    "repeats": 1,
    "seed": 0,
    "question": "aware",
}
"""What is asked unless a person asks for something else."""
LANES = ("dense", "window:window=256", "streaming:sinks=4,window=252,positions=cache")
MAX_LANES = 6
CHUNK = 128
"""Tokens that are read at a time: fewer than is fastest, since a press on Stop is heard between two chunks."""
MOST_CELLS = 4000
LINKED = AskedOfLanes({name: RECALL[name] for name in USUAL}, USUAL, LANES, MAX_LANES, "read")
"""What the address says of what is asked."""
OWN = "jsonl"


def settings_of(asked: Asked) -> dict[str, Any]:
    """What is asked, by the names that addresses have for it."""
    task = OWN if asked.task.startswith(f"{OWN}:") else asked.task
    # A file has lengths and depths of its own; whoever chooses another task next finds the usual ones.
    said = {name: getattr(asked, name) or USUAL[name] for name in ("lengths", "depths", "repeats", "seed")}
    return {"task": task, **said, "question": asked.asking}


def asked_now() -> Asked:
    """What the widgets ask."""
    now = st.session_state.recall
    return Asked(now["task"], now["lengths"], now["depths"], now["repeats"], now["seed"], now["question"])


def spec_now(asked: Asked) -> Spec:
    """By which model, and under which policies."""
    now = st.session_state.recall
    return Spec(text=asked.task, policies=tuple(now["lanes"]), chunk=CHUNK, **now["model"].decided()._asdict())


def prepared(like: str = "") -> Maker[RecallJob]:
    """A job for what is set; `like`: the result whose cells are taken over.  Raises ValueError where it cannot be."""
    asked, questions = asked_now(), b""
    if asked.task == OWN:
        upload = st.session_state.get("recall-upload")
        if upload is None:
            raise ValueError("upload a file with your questions first, or choose another task")
        questions, count = upload.getvalue(), len(lines_in(upload.getvalue(), upload.name))
        asked = replace(asked, lengths=(), depths=(), repeats=1)
    else:
        count = len(list(asked.of_task.places(asked.lengths, asked.depths, asked.repeats)))
    spec = spec_now(asked)
    if (cells := count * len(spec.policies)) > MOST_CELLS:
        raise ValueError(
            f"these are {cells:,} cells, and a page asks for {MOST_CELLS:,} at most: choose fewer lengths, depths, "
            "texts or lanes, or use the command line"
        )
    return partial(RecallJob, spec, asked, questions=questions, like=like)


def sidebar(trained_length: int | None) -> None:
    """The widgets."""
    now = st.session_state.recall
    with st.sidebar:
        brand("recall")
        st.html(AROUND.with_name("recall.css"))
        st.caption("What is asked")
        now["task"] = task_controls(now["task"])
        task = TASKS.parse(now["task"])
        recall_controls.asked("recall", sized=task.name != OWN, placed=task.placed)
        lane_controls("recall-lane", now["lanes"], MAX_LANES, trained_length)
        st.caption("Model")
        now["model"] = model_controls("recall", now["model"])


def task_controls(written: str) -> str:
    """Widgets for a task and its settings, as they stand now; returns what the person chose."""
    state, before = st.session_state, TASKS.parse(written)
    key = f"recall-{state.revision}-task"
    name = st.selectbox(
        "Task", list(TASKS), index=list(TASKS).index(before.name), format_func=lambda n: TASKS[n].title, key=key
    )
    kind = TASKS[name]
    st.caption(plain(" ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("`", "")))
    if name == OWN:
        st.file_uploader(
            "Questions (.jsonl)", type=["jsonl", "json", "txt"], key="recall-upload", max_upload_size=8,
            help="A JSON object in each line, with context, question and answer",
        )  # fmt: skip
        return OWN
    values: dict[str, Any] = {f.name: setting_control(f"{key}-{name}", f, before, kind) for f in kind.settings()}
    try:
        return parameters.task(str(kind(**values))).short
    except ValueError as e:
        # What was set before stays until it can be.
        st.warning(plain(sentence(e)))
        return written if before.name == name else name
