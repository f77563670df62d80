"""What chapters share: the embedded model that they ask, and the one job that plays in front of the student."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import streamlit as st

from analysis import texts
from analysis.errors import sentence
from analysis.maps.attention_row import Passage
from analysis.models.language_model import LanguageModel
from analysis.policies import Policy
from analysis.runs import library
from analysis.runs.library import GALLERY
from analysis.runs.reader import load
from analysis.runs.run import Run as RecordedRun
from analysis.runs.run import Track
from analysis.runs.spec import Spec
from app import address
from app.controls import choice, choose, kept, problem
from app.jobs.base import Job
from app.jobs.reading import ReadingJob
from app.jobs.registry import REGISTRY
from app.lesson import Chapter, translated
from app.panels import slots
from app.panels.job_panel import JobPanel, Maker


@dataclass(frozen=True)
class Choice:
    """Something that a student chooses in a chapter, and that an address says."""

    parameter: address.Parameter
    key: str
    """Of the widget that keeps it, or of what is kept for several."""
    usual: Any = None


@dataclass(frozen=True)
class Play:
    """What is played with in a chapter."""

    draw: Callable[[Chapter, Chapter], None]
    """Draws it, given the words of the chapter and those of the page."""
    start: Callable[[], None] | None = None
    """Begins a job when the chapter is opened."""
    every: float = 0.5
    """Seconds between two drawings while a job works."""
    choices: Mapping[str, Choice] = field(default_factory=dict)
    """What its address says, by the names that it has there."""
    keeps: str = ""
    """The kind of what the library keeps of its job, where it shows that again."""
    open_kept: Callable[[Path], None] = lambda folder: None
    """Lets the chapter be set as what lies in this folder was."""

    @property
    def parameters(self) -> address.Parameters:
        """What its address may say."""
        return {name: chosen.parameter for name, chosen in self.choices.items()}

    def link(self) -> dict[str, str]:
        """What its address says now."""
        usual = {name: chosen.usual for name, chosen in self.choices.items()}
        now = {name: choice(chosen.key, chosen.usual) for name, chosen in self.choices.items()}
        said = address.said(self.parameters, now, usual)
        return said | {"sentence": awaited()} if "sentence" in now and awaited() else said

    def take(self, found: Mapping[str, Any]) -> None:
        """Set what an address asks, and all else as usual."""
        state = st.session_state.lesson
        for name, chosen in self.choices.items():
            choose(chosen.key, found.get(name, chosen.usual))
        # Widgets that stand for something of the sentence begin anew.
        state["linked"] = turn() + 1
        for key in [key for key in state if key.endswith("-of")]:
            del state[key]
        if "sentence" in self.choices:
            state["awaited"] = found["sentence"] if address.HASH.fullmatch(found.get("sentence", "")) else ""
            if state["awaited"]:
                choose(WRITTEN, "")


SPEC = Spec("embedded", "hamlet", ("dense",), 4096)
Run = TypeVar("Run", bound=Job)
Option = TypeVar("Option")
JOB_PANEL = JobPanel("lesson", Job)
"""The one job that plays in front of the student."""
LONGEST = 1000
"""Characters of a sentence of the student's own."""
SENTENCE = "The cat sat on the mat because it was tired"
WRITTEN = "lesson-sentence"
"""Of the widget for the student's own sentence, which is one in all chapters."""


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


OWN = Choice(address.typed("sentence", LONGEST), WRITTEN, SENTENCE)
"""The student's own sentence."""


def awaited() -> str:
    """The hash of the sentence of a link that is too long for an address, until a sentence is written; else empty."""
    return "" if choice(WRITTEN, SENTENCE).strip() else st.session_state.lesson.get("awaited", "")


def turn() -> int:
    """How often an address has set a chapter."""
    return st.session_state.lesson.get("linked", 0)


def sentence_kept() -> str:
    """The student's own sentence."""
    return choice(WRITTEN, SENTENCE)


def written(page: Chapter, most: int, bos: str) -> tuple[int, ...] | None:
    """The student's own sentence as tokens; None, with a word of advice, where it is too short."""
    own = st.text_input(page.say("sentence"), key=kept(WRITTEN, SENTENCE), max_chars=LONGEST)
    if (wanted := st.session_state.lesson.get("awaited")) and address.hashed(own) != wanted:
        st.info(page.say("other-sentence" if own.strip() else "linked-sentence", hash=wanted))
    ids = ids_of(own.strip(), None, bos)
    if len(ids) < 2:
        if not awaited():
            st.info(page.say("short"))
        return None
    st.caption(page.say("cut" if len(ids) > most else "kept", most=most, count=len(ids)))
    return ids[:most]


def one_of(
    label: str,
    options: Sequence[Option],
    key: str,
    usual: Option,
    say: Callable[[Any], str] = str,
    place: Any = st,
) -> Option:
    """A widget for one of several, that keeps the choice under its key; returns what the student chose."""
    chosen = place.segmented_control(label, options, format_func=say, required=True, key=kept(key, usual, options))
    # The session gave it a value, and one is required.
    assert chosen is not None
    return chosen


def forget_of(key: str, ids: tuple[int, ...], *names: str) -> None:
    """Forget what was chosen of another sentence than this one."""
    state = st.session_state.lesson
    if state.get(f"{key}-of") not in (None, ids):
        for name in names:
            choose(name, None)
    state[f"{key}-of"] = ids


def head_controls(
    page: Chapter, key: str, ids: tuple[int, ...], shape: tuple[int, int], usual: tuple[int, int], places: Sequence[Any]
) -> tuple[int, int]:
    """Widgets for a layer and a head in these places, which begin with the `usual` one of a sentence, or with what an
    address asked; returns what the student chose."""
    chosen = choice(f"{key}-head", None) or usual
    if any(n >= most for n, most in zip(chosen, shape, strict=True)):
        most = f"layers are 0 to {shape[0] - 1}, heads 0 to {shape[1] - 1}"
        say_problem(f"There is no head {chosen[0]}.{chosen[1]}: {most}.")
        chosen = usual
    layer, head = (
        place.number_input(page.say(name), 0, most - 1, begin, key=f"{key}-{name}-{turn()}-{ids}", width=110)
        for place, name, most, begin in zip(places, ("layer", "head"), shape, chosen, strict=True)
    )
    choose(f"{key}-head", None if (layer, head) == usual else (layer, head))
    return layer, head


def kept_folder(kind: str) -> Path | None:
    """The folder of what the library keeps of a job of this kind, where the address named it and it is still there."""
    with suppress(ValueError):
        found = library.entry(st.session_state.lesson.get("run", ""))
        return found.path if found.kind == kind and not found.problem else None
    return None


def playing(kind: type[Run]) -> Run | None:
    """The job that plays, where it is of this kind: a chapter may be drawn once more after it was left."""
    return REGISTRY.find(JOB_PANEL.id, kind)


def begin(prepare: Callable[[], Maker[Job]]) -> None:
    """Play a new job; the one before ends.  `prepare` raises ValueError where settings do not go together."""
    st.session_state.lesson["run"] = ""
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
