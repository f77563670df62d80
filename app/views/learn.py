"""The lesson: one chapter at a time, text on the left, something to play with on the right."""

from functools import partial

import streamlit as st

from analysis.errors import sentence
from analysis.texts import BOS
from app import address
from app.address_bar import readdress
from app.choices import choose
from app.components import pager
from app.controls import brand
from app.lesson import LANGUAGES, Chapter, lesson, translated
from app.lesson.chapters import PLAYS, stage
from app.libraries import LIBRARIES
from app.panels import slots
from app.panels.job_panel import redraw
from app.plain import plain
from app.projection import project

KNOWN = {"lang": list(LANGUAGES), "bos": list(BOS)}
"""What an address may say, beside its chapter."""
CHOICES = tuple(dict.fromkeys(name for play in PLAYS.values() for name in play.choices))
"""What an address may say of one chapter or another."""
NUMBERED = {f"{i}": name for i, name in enumerate(PLAYS, 1)}


def open_page() -> None:
    """What a tab begins with: the chapter and language that its address names."""
    st.session_state.setdefault("lesson", {})
    state, asked = st.session_state.lesson, st.query_params
    wrong = [name for name, known in KNOWN.items() if asked.get(name, known[0]) not in known]
    if "lang" not in wrong:
        state["language"] = asked.get("lang", state.get("language", "en"))
    if "bos" in asked and "bos" not in wrong:
        state["bos"] = asked["bos"]
    name = asked.get("chapter", state.get("chapter", "row"))
    name = NUMBERED.get(name, name)
    say = lesson(state.setdefault("language", "en"))["page"].say
    notes = [say("gone")] if name not in PLAYS else []
    notes += [say("no-such", name=w, values=", ".join(KNOWN[w])) for w in wrong]
    name = name if name in PLAYS else "row"
    if st.session_state.arrived:
        state["wrong"] = ""
        if st.session_state.returned or any(said in asked for said in ("chapter", "run", *CHOICES)):
            take(name)
    state["note"] = " ".join([*notes, *filter(None, [state["wrong"]])])
    go(name)


def take(name: str) -> None:
    """Set a chapter as the address says; what is wrong with that is said above it."""
    state, asked, play = st.session_state.lesson, st.query_params, PLAYS[name]
    found, problems = address.values(play.parameters, asked)
    play.take(found)
    state["run"] = asked.get("run", "") if play.keeps else ""
    wrong = [plain(translated(address.wrong(problems), state["language"]))]
    if state["run"] and stage.rejoin(state["run"], play.keeps):
        # Nothing else begins.
        state.update(run="", chapter=name, wrong=wrong[0])
        return
    folder = stage.kept_folder(play.keeps) if state["run"] else None
    if folder is None and asked.get("run"):
        state["run"] = ""
        wrong.append(lesson(state["language"])["page"].say("no-run"))
    elif folder is not None:
        try:
            play.open_kept(folder)
            # What else was set stands beside it, as before a reload, and the chapter says that it differs.
            for said, value in found.items():
                choose(play.choices[said].key, value)
        except ValueError as e:
            state["run"] = ""
            wrong.append(plain(translated(sentence(e), state["language"])))
    state["wrong"] = " ".join(filter(None, wrong))


def to_address(name: str) -> None:
    """Let the address say what is chosen in a chapter, beside its name."""
    keeps = PLAYS[name].keeps
    run = st.session_state.lesson.get("run", "") or stage.begun_here(keeps)
    readdress(("run", *CHOICES), PLAYS[name].link() | ({"run": run} if run and keeps else {}))


def go(name: str, again: bool = False) -> None:
    """Turn to a chapter; what plays there begins, and `again` where it does already."""
    state = st.session_state.lesson
    readdress(("chapter",), {"chapter": name})
    if state.get("chapter") == name and not again and (PLAYS[name].start is None or stage.JOB_PANEL.job is not None):
        return
    state["chapter"] = name
    stage.JOB_PANEL.say("")
    stage.JOB_PANEL.end()
    kept = bool(state.get("run")) and stage.kept_folder(PLAYS[name].keeps) is not None
    # What computes begins once the page has been drawn.
    if (start := PLAYS[name].start) is not None and LIBRARIES.ready and not kept:
        start()


def speak() -> None:
    """The language was chosen."""
    readdress(("lang",), {"lang": st.session_state["lesson-language"]})


def begin_with() -> None:
    """Texts begin with BOS, or without it, from now on; what plays begins again."""
    state = st.session_state.lesson
    state["bos"] = st.session_state[f"lesson-bos-{state['language']}"]
    readdress(("bos",), {"bos": state["bos"]})
    # Trainings have a setting of their own.
    go(state["chapter"], again=state["chapter"] != "emergence")


def sidebar(chapters: dict[str, Chapter], page: Chapter) -> None:
    """The language, how texts begin, and the list of chapters."""
    state = st.session_state.lesson
    with st.sidebar:
        brand("learn", state["language"])
        st.segmented_control(
            page.say("language"), list(LANGUAGES), format_func=LANGUAGES.__getitem__, default=state["language"],
            required=True, key="lesson-language", on_change=speak,
        )  # fmt: skip
        # A box of its own in each language: Streamlit knows a choice by the words that it shows.
        st.selectbox(
            page.say("bos"), list(BOS), index=list(BOS).index(state.get("bos", "auto")),
            key=f"lesson-bos-{state['language']}", format_func=lambda how: page.say(f"bos-{how}"),
            help=page.say("bos-help"), on_change=begin_with,
        )  # fmt: skip
        st.caption(page.say("chapters"))
        for name in PLAYS:
            st.button(
                f"{chapters[name].number} · {chapters[name].title}", key=f"lesson-{name}", on_click=go, args=(name,),
                width="stretch", type="primary" if name == state["chapter"] else "secondary",
            )  # fmt: skip


def steps(page: Chapter) -> None:
    """Buttons to the chapter before and the next one."""
    state = st.session_state.lesson
    pager.mount(
        list(PLAYS).index(state["chapter"]), len(PLAYS), (page.say("previous"), page.say("next")),
        seen=state.get("turned", 0), key="lesson-pager", on_turn=turned,
    )  # fmt: skip


def turned() -> None:
    """Another chapter is wanted, by button or arrow key."""
    turn = st.session_state["lesson-pager"]["turn"]
    st.session_state.lesson["turned"] = turn["press"]
    go(list(PLAYS)[max(0, min(len(PLAYS) - 1, int(turn["to"])))])


def body(name: str, chapter: Chapter, page: Chapter) -> None:
    """What is played with; again and again while a job works."""
    if st.session_state.lesson["chapter"] != name:
        # The page has been turned, and this is one of its last drawings.
        return
    try:
        PLAYS[name].draw(chapter, page)
    except ValueError as e:
        stage.say_problem(e)
    if (job := stage.elsewhere()) is not None:
        # It goes on as long as somebody watches.
        slots.renew_lease(job)
    to_address(name)
    stage.follow()


open_page()
state = st.session_state.lesson
chapters = lesson(state["language"])
page, name = chapters["page"], state["chapter"]
chapter = chapters[name]
sidebar(chapters, page)
project(*(page.say(word) for word in ("project", "unproject", "copy-link", "copied")), language=state["language"])
if state["note"]:
    st.info(state["note"])
text, play = st.columns([5, 8], gap="large")
with text:
    st.title(f"{chapter.number} · {chapter.title}", anchor=False)
    st.markdown(chapter.text)
    st.markdown(f"**{page.say('question')}.** {chapter.question}")
    # One for each chapter: an answer that was opened stays so as long as its element does.
    with st.expander(page.say("answer"), key=f"answer-{name}"):
        st.markdown(chapter.answer)
    steps(page)
with play:
    redraw(partial(body, name, chapter, page), lambda: stage.pace(PLAYS[name].every))
