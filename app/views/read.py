"""Read: choose a text and policies, press Start, and watch what each policy does to the model."""

from dataclasses import astuple, replace
from functools import partial

import streamlit as st

from analysis import texts
from analysis.experiments.presets import FOUR, PRESETS, Preset
from analysis.models import gemma
from analysis.models.kinds import EMBEDDED, installed
from analysis.policies import parse
from analysis.runs.spec import Spec
from analysis.runs.switches import Switch
from app import address, recordings
from app.address_bar import readdress
from app.components import board
from app.controls import (
    MODEL,
    Chosen,
    brand,
    chosen_text,
    heading,
    is_double,
    is_new_press,
    lane_controls,
    model_controls,
    text_controls,
)
from app.frames.reading import PACES, ReadingSender
from app.jobs.reading import MAX_LANES, ReadingJob
from app.jobs.registry import REGISTRY
from app.panels import slots, steering
from app.panels.asked import unfollowed
from app.panels.job_panel import Maker, carry_out, press, redraw
from app.panels.run_panel import NO_RUN, RunPanel, same_lanes, story_buttons
from app.parameters import READ
from app.projection import project
from app.view import PARAMETERS, View

LOST = (
    "That run is no longer in memory and not in the library here, or belongs to another page: press Start to read "
    "again, or find it on the page Runs, which imports its .zip, too."
)
DELETED = "That run was deleted from the library: press Start to read again."
JOB_PANEL = RunPanel("read", ReadingJob, keeps="reading", lost=LOST, deleted=DELETED)
CHUNK = 128
ADDRESS = ("run", "lane", *READ, *MODEL, *PARAMETERS)
"""What the address of this page says."""
EVERY = 3.0
"""Seconds from one run of the script to the next while there is something to see: frames come without it."""
STORY_PACE = 100
"""Tokens a second at which a story of the gallery plays by itself."""


def open_page() -> None:
    """What a tab begins with: the run or the settings that its address names, or a recording of the first story."""
    state, asked = st.session_state, st.query_params
    if "lanes" in state and not JOB_PANEL.is_linked(ADDRESS):
        # Here already, or back from another page: all is as it was left.
        return
    problems, story = [], PRESETS[recordings.FIRST.removeprefix(recordings.STORY)]
    lanes, text, model, fidelity = list(story.policies), "hamlet", Chosen(dtype=story.dtype), False
    name = asked.get("run") if any(said in asked for said in ADDRESS) else recordings.FIRST
    found, left_out = address.values(READ, asked)
    known = JOB_PANEL.open(name, found.get("at"))
    if known is not None:
        lanes, text, model = list(known.spec.policies), known.spec.text, Chosen.of(known.spec)
        fidelity = known.spec.fidelity
        named = address.named_text(text, known.text_sha256)
        has = {"fidelity": fidelity} | ({"text": named} if named else {})
        problems += filter(None, [unfollowed({name: READ[name] for name in has}, has, model, lanes)])
    elif "run" in asked:
        problems.append(LOST)
    if known is None:
        left_out += [NO_RUN] * ("at" in found and "run" not in asked)
        model, unloaded = model.linked(asked, REGISTRY.models())
        text, fidelity = found.get("text", text), bool(found.get("fidelity"))
        left_out += unloaded
        try:
            lanes = address.lanes(asked.get_all("lane"), MAX_LANES, "read") if "lane" in asked else lanes
        except ValueError as e:
            problems.append(address.wrong([str(e)], "The four policies are set instead."))
    if (name := found.get("story")) is not None and not same_lanes(PRESETS[name].policies, lanes):
        left_out.append(f"story is {name}, whose lanes are others: press {PRESETS[name].title!r} at the left")
        del found["story"]
    played = JOB_PANEL.recording
    of_story = played.id.removeprefix(recordings.STORY) if played is not None and played.story else ""
    view, unseen = View.linked(lanes, asked)
    unseen += JOB_PANEL.without_head(view)
    problems += filter(None, [address.wrong([*left_out, *unseen])])
    state.update(
        lanes=lanes,
        text=text,
        model=model,
        fidelity=fidelity,
        pause=found.get("pause", 0),
        view=view,
        revision=state.get("revision", 0) + 1,
        story=of_story or found.get("story", ""),
        pace=run.pace if (run := JOB_PANEL.job) is not None else 0,
    )
    JOB_PANEL.say(" ".join(problems))


def to_address() -> None:
    """Let the address say what is shown, so that a reload and a second tab show it too."""
    state = st.session_state
    lanes, text, model, sha256, fidelity = state.lanes, state.text, state.model, "", measures()
    if (known := JOB_PANEL.known) is not None:
        lanes, text, model, sha256 = known.spec.policies, known.spec.text, Chosen.of(known.spec), known.text_sha256
        fidelity = known.spec.fidelity
    said: dict[str, str | list[str]] = {**model.link(), **state.view.link(), **JOB_PANEL.link()}
    if not same_lanes(lanes, FOUR):
        said["lane"] = list(lanes)
    if fidelity:
        said["fidelity"] = "on"
    if state.pause:
        said["pause"] = str(state.pause)
    if (JOB_PANEL.recording is None or not JOB_PANEL.recording.story) and switches_of_story():
        said["story"] = state.story
    if (named := address.named_text(text, sha256)) and named != "hamlet":
        said["text"] = named
    readdress(ADDRESS, said)


def take(name: str) -> None:
    """Tell a story: set everything as it has it, and play what the gallery recorded of it with this model and text;
    where there is none, begin to read."""
    story, before, state = PRESETS[name], PRESETS.get(st.session_state.story), st.session_state
    model = story.model or state.model.model
    if before is not None and before.model == model != story.model:
        # It came with the story before, and goes with it; so does a head.
        model = Chosen().model
    head = state.view.head
    if before is not None and head == before.head:
        head = None
    head = head or (story.head if model == EMBEDDED else None)
    state.update(
        lanes=list(story.policies),
        model=state.model._replace(model=model, dtype=story.dtype),
        view=replace(View.of(story.policies), head=head),
        revision=state.revision + 1,
        story=name,
        pause=0,
        told=state.get("told", 0) + 1,
    )
    JOB_PANEL.play(recordings.find(f"{recordings.STORY}{name}", "reading"))
    if JOB_PANEL.recording is not None:
        spec = JOB_PANEL.recording.spec
        if spec.text == state.text and Chosen.of(spec) == state.model._replace(dtype=spec.dtype):
            JOB_PANEL.end()
            JOB_PANEL.say("")
            return
    JOB_PANEL.play(None)
    start()


def told(story: Preset) -> bool:
    """Whether what is set is what a story tells."""
    state = st.session_state
    return same_lanes(story.policies, state.lanes) and story.model in ("", state.model.model)


def missing(story: Preset) -> str:
    """What to do first where the model of a story is not here."""
    return gemma.MISSING if story.model and story.model not in installed() else ""


def switches_of_story() -> tuple[Switch, ...]:
    """What happens in the story that was chosen, as long as its lanes are set: it happens to them only."""
    story = PRESETS.get(st.session_state.story)
    return story.switches if story is not None and same_lanes(story.policies, st.session_state.lanes) else ()


def measures() -> bool:
    """Whether lanes are to be measured against the first one; one alone has none."""
    return st.session_state.fidelity and len(st.session_state.lanes) > 1


def the_text() -> texts.Text:
    """The text that is chosen; raises ValueError with what to do."""
    run, name = JOB_PANEL.job, st.session_state.text
    return run.text if run is not None and name == run.spec.text else chosen_text("live", name)


def start() -> None:
    """Read from the beginning with what is set; the run that was on screen ends."""
    if (run := JOB_PANEL.begin(_prepared, start)) is not None:
        run.set_pace(st.session_state.pace)


def _prepared() -> Maker[ReadingJob]:
    state, text = st.session_state, the_text()
    spec = Spec(
        text=state.text if text.name == state.text else text.name,
        policies=tuple(state.lanes),
        chunk=CHUNK,
        fidelity=measures(),
        **state.model.decided()._asdict(),
    )
    return partial(ReadingJob, spec, text, switches=switches_of_story(), pause=state.pause)


def resume() -> None:
    """Read on where the recording on screen stopped."""
    if (run := JOB_PANEL.begin(_prepared_again, resume)) is not None:
        run.set_pace(st.session_state.pace)


def _prepared_again() -> Maker[ReadingJob]:
    recording = JOB_PANEL.recording
    assert recording is not None, "only a recording is resumed"
    text = chosen_text("live", recording.spec.text)
    return partial(ReadingJob, recording.spec, text, resumes=recording.id, pause=st.session_state.pause)


def sidebar() -> None:
    """Stories, and the settings of the next run."""
    state = st.session_state
    with st.sidebar:
        brand("read")
        story_buttons("read", PRESETS, take, told, missing)
        st.caption("Model and text")
        state.model = model_controls("live", state.model)
        text = text_controls("live", state.text)
        if text != state.text:
            # Both were of the tokens of another text.
            state.pause, state.view.mark = 0, None
        state.text = text
        if state.pause:
            st.caption(f"Reading pauses before token {state.pause:,}, as the link has it.")
        state.fidelity = st.checkbox(
            "Measure fidelity",
            value=state.fidelity,
            key=f"fidelity-{state.revision}",
            help="Measures each lane against the first one: KL divergence, how often both have the same most probable "
            "token, and how far the output of each head is off. Lanes then read every chunk together",
        )
        run = JOB_PANEL.job
        state.switched = switched(run)
        lane_controls("lane", state.lanes, MAX_LANES, trained_length(), state.switched)
        if run is not None and not same_lanes(run.spec.policies, state.lanes):
            st.caption("Press Restart to read with these lanes.")
        elif run is not None and (Chosen.of(run.spec) != state.model or run.spec.fidelity != measures()):
            st.caption("Press Restart to read so.")


def switched(run: ReadingJob | None) -> dict[int, str]:
    """What became of the lanes that were switched while they read."""
    if run is None or list(run.spec.policies) != st.session_state.lanes:
        return {}
    return {e["lane"]: f"{parse(e['policy']).label} from token {e['position']:,} on" for e in run.run.switches}


def trained_length() -> int | None:
    """Tokens that the model was trained on at a time, once that is known."""
    run = JOB_PANEL.job
    return run.facts.trained_length if run is not None and run.facts is not None else None


def pressed() -> None:
    """A button of the board was pressed."""
    what = st.session_state.board["press"]["what"]
    if not is_new_press("press", st.session_state.board["press"]):
        return
    if what == "start":
        press(partial(JOB_PANEL.unless_busy, start))
    elif what == "restart":
        if not is_double(what):
            press(start)
    elif (run := JOB_PANEL.steered) is not None:
        run.request({"pause": "paused", "resume": "running", "stop": "stopped"}[what])


def picked() -> None:
    """A choice of what to look at."""
    view, pick, run = st.session_state.view, st.session_state.board["pick"], JOB_PANEL.job
    if not is_new_press("pick", pick):
        return
    lanes = len(run.spec.policies) if run else len(st.session_state.lanes)
    view.look(pick, lanes)
    if pick.get("pace") in PACES:
        st.session_state.pace = pick["pace"]
        if (steered := JOB_PANEL.steered) is not None:
            steered.set_pace(pick["pace"])


def changed() -> None:
    """A lane is to read on under another policy."""
    view, run = st.session_state.view, JOB_PANEL.job
    policy = JOB_PANEL.switch(st.session_state.board["change"], view)
    if policy is None or run is None:
        return
    said = [run.note, *(f"{note}." for note in policy.cautions(None, trained_length())[:1])]
    if view.reference == view.chosen and view.mode == "relative":
        # A curve cannot be seen to move against itself.
        view.mode = "rolling"
        said.append("Rolling perplexity is shown now, since the lane that all are compared with was switched.")
    run.tell(" ".join(filter(None, said)))


def draw_recording(recording: recordings.Recording) -> None:
    """A run that is kept, as its reading left it."""
    state, words = st.session_state, "Run it live" if recording.story else "Read it live"
    JOB_PANEL.replay(
        board.COMPONENT,
        state.view,
        live=(words, "Load the model, and read the text anew with what is set at the left", start),
        resume=("Resume", "Load the model, and read on where this run stopped", resume),
        note=JOB_PANEL.problem,
        pace=STORY_PACE if recording.story and JOB_PANEL.at is None else 0,
        told=state.get("told", 0),
    )


def draw() -> None:
    """What the board is drawn from, and what stands around it; again and again while there is something to see."""
    carry_out()
    JOB_PANEL.settle()
    run, state = JOB_PANEL.job, st.session_state
    JOB_PANEL.forget_unknown_head(state.view)
    known = JOB_PANEL.known
    state.view.follow(state.lanes if known is None else known.spec.policies)
    to_address()
    if run is None and JOB_PANEL.recording is not None:
        draw_recording(JOB_PANEL.recording)
        return
    if run is not None:
        slots.renew_lease(run)
        steering.say(run, JOB_PANEL.problem)
        view, steers = replace(state.view), steering.mine(run)
        look = (steers, *astuple(view))
        drawn = JOB_PANEL.feed.follow(run, look, lambda job: ReadingSender().frame(job, view, steers))
        if JOB_PANEL.problem and steers:
            run.tell(JOB_PANEL.problem)
            JOB_PANEL.say("")
    else:
        lanes = [parse(p) for p in state.lanes]
        drawn = ReadingSender().empty(lanes, state.view, state.pace, JOB_PANEL.problem, measures()).packed()
    board.mount(drawn, key="board", on_press=pressed, on_pick=picked, on_change=changed)
    if state.switched != switched(run):
        # The list of lanes says so.
        st.rerun()


open_page()
sidebar()
project()
heading("read")
redraw(draw, lambda: JOB_PANEL.pace(EVERY))
