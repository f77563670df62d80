"""What chapters share: the embedded model that they ask, and the one job that plays in front of the student."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypeVar

import numpy as np
import streamlit as st

from analysis import texts
from analysis.errors import sentence
from analysis.maps.attention_row import Passage
from analysis.models.language_model import LanguageModel
from analysis.policies import Policy
from analysis.runs.library import GALLERY
from analysis.runs.reader import load
from analysis.runs.run import Run as RecordedRun
from analysis.runs.run import Track
from analysis.runs.spec import Spec
from app.controls import problem
from app.jobs.base import Job
from app.jobs.reading import ReadingJob
from app.jobs.registry import REGISTRY
from app.lesson import Chapter, translated
from app.panels import slots
from app.panels.job_panel import JobPanel, Maker


@dataclass(frozen=True)
class Play:
    """What is played with in a chapter."""

    draw: Callable[[Chapter, Chapter], None]
    """Draws it, given the words of the chapter and those of the page."""
    start: Callable[[], None] | None = None
    """Begins a job when the chapter is opened."""
    every: float = 0.5
    """Seconds between two drawings while a job works."""


SPEC = Spec("embedded", "hamlet", ("dense",), 4096)
Run = TypeVar("Run", bound=Job)
JOB_PANEL = JobPanel("lesson", Job)
"""The one job that plays in front of the student."""
LONGEST = 1000
"""Characters of a sentence of the student's own."""
SENTENCE = "The cat sat on the mat because it was tired"


def model() -> LanguageModel:
    """The embedded model.  Raises ValueError with what to do."""
    return REGISTRY.model(SPEC, lambda _: None)


@st.cache_resource(max_entries=16, show_spinner=False)
def passage(ids: tuple[int, ...]) -> Passage:
    """A short text, read whole."""
    return Passage(model(), np.array(ids, np.int32))


def bos() -> str:
    """Whether texts of the lesson begin with BOS."""
    return st.session_state.lesson.get("bos", "auto")


def spec(policies: tuple[str, ...], tokens: int, chunk: int = SPEC.chunk) -> Spec:
    """What the embedded model reads in a chapter."""
    return replace(SPEC, policies=policies, tokens=tokens, bos=bos(), chunk=chunk)


@st.cache_resource(max_entries=6, show_spinner=False)
def hamlet(tokens: int, bos: str) -> np.ndarray:
    """The first tokens of Hamlet, [tokens]."""
    return texts.tokenize(texts.read(SPEC.text), model().tokenizer, bos=bos, limit=tokens)


def ids_of(text: str, most: int | None, bos: str = "off") -> tuple[int, ...]:
    """Token ids of a sentence, at most so many."""
    tokenizer = model().tokenizer
    ids = texts.begun(texts.opening(tokenizer, bos), texts.encode(text, tokenizer)[0])
    return tuple(ids[:most].tolist())


def token_texts(ids: tuple[int, ...]) -> list[str]:
    """The texts of tokens, each a different string, and a newline as its mark."""
    found: list[str] = []
    for piece in texts.token_texts(model().tokenizer, np.array(ids, np.int32)):
        shown = piece.strip(" ").replace("\n", "⏎") or "␣"
        # Zero-width spaces tell two equal words apart on an axis, and nowhere else.
        while shown in found:
            shown += "\u200b"
        found.append(shown)
    return found


def written(page: Chapter, most: int, key: str, bos: str) -> tuple[int, ...] | None:
    """The student's own sentence as tokens; None, with a word of advice, where it is too short."""
    state = st.session_state.lesson
    state["sentence"] = st.text_input(
        page.say("sentence"), state["sentence"], key=f"lesson-{key}-sentence", max_chars=LONGEST
    )
    ids = ids_of(state["sentence"].strip(), None, bos)
    if len(ids) < 2:
        st.info(page.say("short"))
        return None
    st.caption(page.say("cut" if len(ids) > most else "kept", most=most, count=len(ids)))
    return ids[:most]


def playing(kind: type[Run]) -> Run | None:
    """The job that plays, where it is of this kind: a chapter may be drawn once more after it was left."""
    return REGISTRY.find(JOB_PANEL.id, kind)


def begin(prepare: Callable[[], Maker[Job]]) -> None:
    """Play a new job; the one before ends.  `prepare` raises ValueError where settings do not go together."""
    JOB_PANEL.begin(prepare, partial(begin, prepare))


def say_problem(e: Exception | str) -> None:
    """Say what is wrong, if anything is, in the language of the lesson."""
    said = sentence(e) if isinstance(e, Exception) else e
    problem(translated(said, st.session_state.lesson["language"]))


def policy_name(page: Chapter, policy: Policy) -> str:
    """What a policy is called in the language of the lesson."""
    return page.say(f"policy-{policy.name}")


@cache
def recorded(story: str) -> RecordedRun | None:
    """A run of the gallery; None where it cannot be read."""
    try:
        return load(GALLERY / story)
    except ValueError:
        return None


def tracks(run: ReadingJob | None, story: str, policies: Sequence[str]) -> tuple[Sequence[Track], bool]:
    """What there is to draw of lanes: what they have read, or what the gallery has of the same ones until all of them
    have read something; and whether it is that."""
    live = () if run is None else run.snapshot.tracks
    if live and all(len(track.nll) for track in live):
        return live, False
    kept = recorded(story)
    if bos() == "auto" and kept is not None and kept.spec.policies == tuple(policies):
        return kept.tracks, True
    return live, False


def transport(page: Chapter, run: Job | None, again: Callable[[], None]) -> None:
    """Buttons that start again, pause, and resume."""
    paused = run is not None and run.status == "paused"
    st.button(page.say("start"), icon=":material/replay:", on_click=again, key="lesson-again")
    st.button(
        page.say("resume" if paused else "pause"),
        icon=":material/play_arrow:" if paused else ":material/pause:",
        on_click=None if run is None else partial(run.request, "running" if paused else "paused"),
        disabled=run is None or not run.live,
        key="lesson-pause",
    )


def watch(run: Run | None) -> Run | None:
    """Renew the lease of a job, and say what is wrong; the job, if there is one to show."""
    say_problem(JOB_PANEL.problem)
    if run is None:
        return None
    slots.renew_lease(run)
    if run.status == "failed":
        say_problem(run.note)
    return run
