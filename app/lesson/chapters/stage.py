"""What chapters share: the embedded model that they ask, and the one job that plays in front of the student; of both,
what was recorded before."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import streamlit as st

from analysis.errors import error_message, sentence
from analysis.policies import Policy
from analysis.runs import library
from analysis.runs.library import GALLERY
from analysis.runs.reader import load
from analysis.runs.run import Run as RecordedRun
from analysis.runs.run import Track
from analysis.runs.spec import Spec
from app import address
from app.choices import choice, choose, kept_default, kept_value
from app.controls import is_double, problem
from app.feed import paced
from app.jobs.base import Job
from app.jobs.reading import ReadingJob
from app.jobs.registry import REGISTRY
from app.lesson import Chapter, translated
from app.lesson.answers import About, Answer, Answers, Question, recorded
from app.libraries import LIBRARIES
from app.panels import slots
from app.panels.job_panel import JobPanel, Maker, carry_out, press
from app.plain import plain


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
    recorded: tuple[Question, ...] = ()
    """What is asked when the chapter is opened: `make gallery` records the answers."""
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
ANSWERS = Answers(lambda: REGISTRY.model(SPEC, lambda _: None))
"""Of the embedded model."""
PATIENCE, ASK_EVERY = 1.0, 0.3
"""Seconds that a page waits for answers before it says so, and between two questions whether they have come."""
SENTENCE = "The cat sat on the mat because it was tired"
WRITTEN = "lesson-sentence"
"""What is kept of the student's own sentence, which is one in all chapters."""


def bos() -> str:
    """Whether texts of the lesson begin with BOS."""
    return st.session_state.lesson.get("bos", "auto")


def spec(policies: tuple[str, ...], tokens: int, chunk: int = SPEC.chunk) -> Spec:
    """What the embedded model reads in a chapter."""
    return replace(SPEC, policies=policies, tokens=tokens, bos=bos(), chunk=chunk)


OWN = Choice(address.typed("sentence", LONGEST), WRITTEN, SENTENCE)
"""The student's own sentence."""


def awaited() -> str:
    """The hash of the sentence of a link that is too long for an address, until a sentence is written; else empty."""
    return "" if choice(WRITTEN, SENTENCE).strip() else st.session_state.lesson.get("awaited", "")


def turn() -> int:
    """How often an address has set a chapter."""
    return st.session_state.lesson.get("linked", 0)


def written(page: Chapter) -> str:
    """The student's own sentence, as it is written."""
    own = st.text_input(page.say("sentence"), **kept_value(WRITTEN, SENTENCE), max_chars=LONGEST)
    if (wanted := st.session_state.lesson.get("awaited")) and address.hashed(own) != wanted:
        st.info(page.say("other-sentence" if own.strip() else "linked-sentence", hash=wanted))
    return own.strip()


def one_of(
    label: str,
    options: Sequence[Option],
    key: str,
    usual: Option,
    say: Callable[[Any], str] = str,
    place: Any = st,
) -> Option:
    """A widget for one of several, that keeps the choice under its key; returns what the student chose."""
    chosen = place.segmented_control(
        label, options, format_func=say, required=True, **kept_default(key, usual, options)
    )
    # It begins with a choice, and one is required.
    assert chosen is not None
    return chosen


def forget_of(key: str, asked: Question, *names: str) -> None:
    """Forget what was chosen of another sentence than this one."""
    state = st.session_state.lesson
    if state.get(f"{key}-of") not in (None, asked):
        for name in names:
            choose(name, None)
    state[f"{key}-of"] = asked


def head_controls(
    page: Chapter, key: str, asked: Question, shape: tuple[int, int], usual: tuple[int, int], places: Sequence[Any]
) -> tuple[int, int]:
    """Widgets for a layer and a head in these places, which begin with the `usual` one of a sentence, or with what an
    address asked; returns what the student chose."""
    chosen = choice(f"{key}-head", None) or usual
    if any(n >= most for n, most in zip(chosen, shape, strict=True)):
        most = f"layers are 0 to {shape[0] - 1}, heads 0 to {shape[1] - 1}"
        say_problem(f"There is no head {chosen[0]}.{chosen[1]}: {most}.")
        chosen = usual
    layer, head = (
        place.number_input(page.say(name), 0, most - 1, begin, key=f"{key}-{name}-{turn()}-{asked}", width=110)
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


def rejoin(name: str, kind: str) -> bool:
    """Let the job of a name play here, where it is in memory, the library keeps such as this kind, and no other page
    steers it; whether it does."""
    job = REGISTRY.find(name, Job)
    if job is None or job.keeps != kind or not job.steer(slots.this_page()):
        return False
    if job.id != JOB_PANEL.id:
        JOB_PANEL.end()
        JOB_PANEL.put(job.id)
    return True


def elsewhere() -> Job | None:
    """The job that another page steers, where the address named it: what the library keeps of it is shown here."""
    return REGISTRY.find(st.session_state.lesson.get("run", ""), Job)


def pace(every: float) -> float | None:
    """Seconds from one drawing of a chapter to the next, as `JobPanel.pace`, or while a job of another page goes on."""
    job = elsewhere()
    return paced(job, every) if job is not None and job.live else JOB_PANEL.pace(every)


def begun_here(kind: str) -> str:
    """The name of the job that plays, where the library keeps such as this kind; else empty."""
    return job.id if kind and (job := JOB_PANEL.job) is not None and job.keeps == kind else ""


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


def answers(page: Chapter, *questions: Question) -> tuple[Sequence[Answer], About | None] | None:
    """What there is to draw of these questions: live answers, or recorded ones, and of what, until those have come.

    None, and a word of what is waited for, where there is neither.  Raises ValueError where one failed.
    """
    going = [ANSWERS.ask(question) for question in questions] if LIBRARIES.ready else []
    st.session_state.lesson["going"] = going
    before = [recorded(question) for question in questions]
    if not all(before) or any(future.done() for future in going):
        # What stands there stays a moment, since most answers come at once.
        wait(going, PATIENCE)
    if going and all(future.done() for future in going):
        return [ANSWERS.take(question) for question in questions], None
    found = [of for of in before if of is not None]
    if len(found) == len(questions):
        # They were all recorded together.
        return [of.answer for of in found], found[0].about
    st.caption(page.say("reading" if going else "loading"))
    return None


def follow() -> None:
    """Draw the page again when what it waits for has come: the libraries, or answers."""
    going = st.session_state.lesson.pop("going", [])
    if not LIBRARIES.ready or not all(future.done() for future in going):
        st.fragment(_follow, run_every=ASK_EVERY)(going)


def _follow(going: Sequence[Future[Answer]]) -> None:
    if LIBRARIES.problem:
        say_problem(LIBRARIES.problem)
    elif LIBRARIES.ready and all(future.done() for future in going):
        st.rerun()


def source(page: Chapter, about: About | None) -> None:
    """Say in one line of what a recorded result is, or that it is live."""
    st.caption(page.say("live") if about is None else page.say("recorded", what=about))


@cache
def story(name: str) -> RecordedRun | None:
    """A run of the gallery; None where it cannot be read."""
    try:
        return load(GALLERY / name)
    except ValueError:
        return None


def tracks(run: ReadingJob | None, name: str, policies: Sequence[str]) -> tuple[Sequence[Track], About | None]:
    """What there is to draw of lanes: what they have read, or until all of them that can have read something what a
    story of the gallery has of the same ones, and of what."""
    live = () if run is None else run.snapshot.tracks
    if run is not None and live and all(len(t.nll) or lane in run.halted for lane, t in enumerate(live)):
        return live, None
    before = story(name)
    # Known before the lane has read on: a track has the new policy from its next tokens on.
    switched = run is not None and (not run.requests_done or any(e["what"] == "switch" for e in run.run.events))
    if bos() == "auto" and before is not None and before.spec.policies == tuple(policies) and not switched:
        spec, model = before.spec, "" if before.model is None else before.model.name
        what = f"text={spec.text}, tokens={spec.tokens}, chunk={spec.chunk}, bos={spec.bos}"
        return before.tracks, About(model, spec.dtype, what, before.started[:10])
    return live, None


def halted(page: Chapter, run: ReadingJob, names: Sequence[str]) -> set[int]:
    """The lanes that could not read on; of each it is said where it stands, and why."""
    found = dict(run.halted)
    for lane, e in found.items():
        why = translated(error_message(e, f"job {run.id}"), st.session_state.lesson["language"])
        problem(page.say("stands", lane=names[lane], tokens=f"{len(run.run.tracks[lane].nll):,}", why=why))
    return set(found)


def transport(page: Chapter, run: Job | None, again: Callable[[], None]) -> None:
    """Buttons that start again, pause, and resume."""
    carry_out()

    def started() -> None:
        """Start again was pressed."""
        if not is_double("start-again"):
            press(again)

    paused = run is not None and run.status == "paused"
    st.button(page.say("start"), icon=":material/replay:", on_click=started, key="lesson-again")
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
    if run.kept.problem:
        st.caption(plain(translated(run.kept.problem, st.session_state.lesson["language"])))
    return run
