"""The live lab: choose what is read and how, press Start, watch the policies part ways."""

import gc
from dataclasses import replace
from functools import partial

import streamlit as st

from analysis import texts
from analysis.policies import parse
from analysis.record import Spec
from app.components import board
from app.controls import READING, Chosen, brand, chosen_text, fresh, lane_controls, model_controls, text_controls
from app.frames import MODES, PAINTS, Sender, View, empty
from app.presets import PRESETS
from app.reader import MOST_LANES, LiveRun
from app.runner import REGISTRY, sentence

PACES = (0, 5, 20, 100)
CHUNK = 128


@st.cache_resource
def freeze() -> None:
    """After the heavy imports: what they left behind is never collected again, which would stop every stream."""
    gc.collect()
    gc.freeze()


def named() -> list[str]:
    """What an address asks for that names lanes."""
    asked = st.query_params
    lanes = asked.get_all("lane")
    return [*lanes, *(f"{key}={asked[key]}" for key in ("model", "text", *READING) if key in asked)] if lanes else []


def open_page() -> None:
    """What a tab begins with: the run or the settings that its address names, or the first story."""
    if "lanes" in st.session_state and named() in ([], st.session_state.named):
        # Back from another page, whose address names no run of this one.
        if "run" not in st.query_params and st.session_state.get("live_run"):
            st.query_params["run"] = st.session_state.live_run
        return
    asked, problem = st.query_params, ""
    story = PRESETS["four"]
    lanes, text, model, reference = list(story.policies), "hamlet", Chosen(dtype=story.dtype), story.reference
    run = current()
    if run is not None:
        lanes, text, model = list(run.spec.policies), run.spec.text, Chosen.of(run.spec)
        reference = min(reference, len(lanes) - 1)
    elif "run" in asked:
        problem = "That run is no longer in memory: press Start to read again."
        del asked["run"]
    try:
        if run is None and "lane" in asked:
            lanes = [str(parse(p)) for p in asked.get_all("lane")]
            reference = 0
            if len(lanes) > MOST_LANES:
                raise ValueError(f"at most {MOST_LANES} lanes read at a time, not {len(lanes)}")
        if run is None and "text" in asked:
            if asked["text"] not in texts.plays():
                raise ValueError(f"there is no bundled text {asked['text']!r}")
            text = asked["text"]
        if run is None and "model" in asked:
            model = model._replace(model=asked["model"])
        if run is None:
            model = model.linked()
    except ValueError as e:
        problem = f"The address of this page asks for something that cannot be: {e}. The four policies are set instead."
        lanes, reference = list(story.policies), story.reference
    view = View(reference=reference, chosen=reference)
    st.session_state.update(
        lanes=lanes,
        text=text,
        model=model,
        view=view,
        revision=st.session_state.get("revision", 0) + 1,
        problem=problem,
        sender=Sender(),
        pace=0,
        named=named(),
        live_run=run.id if run else "",
    )


def take(name: str) -> None:
    """Tell a story: set everything as it has it, and begin."""
    story = PRESETS[name]
    st.session_state.update(
        lanes=list(story.policies),
        model=st.session_state.model._replace(dtype=story.dtype),
        view=View(reference=story.reference, chosen=story.reference, head=st.session_state.view.head),
        revision=st.session_state.revision + 1,
        story=name,
    )
    if "lane" in st.query_params:
        del st.query_params["lane"]
    start()


def the_text() -> texts.Text:
    """The text that is chosen; raises ValueError with what to do."""
    run, name = current(), st.session_state.text
    return run.text if run is not None and name == run.spec.text else chosen_text("live", name)


def current() -> LiveRun | None:
    run = REGISTRY.get(st.query_params.get("run"))
    return run if isinstance(run, LiveRun) else None


def start() -> None:
    """Read from the beginning with what is set; the run that was on screen ends."""
    state = st.session_state
    old = current()
    try:
        text = the_text()
        if old is not None:
            REGISTRY.free(old.id)
        spec = Spec(
            text=state.text if text.name == state.text else text.name,
            policies=tuple(state.lanes),
            chunk=CHUNK,
            **state.model.decided()._asdict(),
        )
        run = REGISTRY.start(partial(LiveRun, spec, text))
    except ValueError as e:
        state.problem = sentence(e)
        return
    run.set_pace(state.pace)
    state.problem = ""
    lanes = len(state.lanes)
    state.view.reference, state.view.chosen = min(state.view.reference, lanes - 1), min(state.view.chosen, lanes - 1)
    st.query_params["run"] = state.live_run = run.id
    state.model.to_address()
    state.named = named()


def sidebar() -> None:
    state = st.session_state
    with st.sidebar:
        brand("Watch a model forget how to read")
        st.caption("Start from")
        for name, story in PRESETS.items():
            chosen = [str(parse(p)) for p in story.policies] == [str(parse(p)) for p in state.lanes]
            st.button(
                f"**{story.title}**  \n{story.point}",
                key=f"story-{name}",
                on_click=take,
                args=(name,),
                width="stretch",
                type="primary" if chosen else "secondary",
            )
        st.caption("Model and text")
        state.model = model_controls("live", state.model)
        state.text = text_controls("live", state.text)
        lane_controls("lane", state.lanes, MOST_LANES, trained_length())
        run = current()
        if run is not None and [parse(p) for p in run.spec.policies] != [parse(p) for p in state.lanes]:
            st.caption("Press Restart to read with these lanes.")
        elif run is not None and Chosen.of(run.spec) != state.model:
            st.caption("Press Restart to read so.")


def trained_length() -> int | None:
    run = current()
    return run.model.trained_length if run is not None and run.model is not None else None


def pressed() -> None:
    what, run = st.session_state.board["press"]["what"], current()
    if not fresh("press", st.session_state.board["press"]):
        return
    if what in ("start", "restart"):
        start()
    elif run is not None:
        run.wish({"pause": "paused", "resume": "running", "stop": "stopped"}[what])


def picked() -> None:
    """A choice of what to look at."""
    view, pick, run = st.session_state.view, st.session_state.board["pick"], current()
    if not fresh("pick", pick):
        return
    lanes = len(run.spec.policies) if run else len(st.session_state.lanes)
    if "lane" in pick and 0 <= pick["lane"] < lanes:
        view.chosen = pick["lane"]
    if "reference" in pick and 0 <= pick["reference"] < lanes:
        view.reference = pick["reference"]
    if "head" in pick:
        view.head = tuple(pick["head"]) if pick["head"] else None
    if pick.get("mode") in MODES:
        view.mode = pick["mode"]
    if pick.get("paint") in PAINTS:
        view.paint = pick["paint"]
    if pick.get("pace") in PACES:
        st.session_state.pace = pick["pace"]
        if run is not None:
            run.set_pace(pick["pace"])


def changed() -> None:
    """A lane is to read on under another policy."""
    change, run = st.session_state.board["change"], current()
    if run is None or not fresh("change", change):
        return
    try:
        policy = parse(change["policy"])
    except ValueError as e:
        run.tell(sentence(e))
        return
    view, lane = st.session_state.view, change["lane"]
    view.chosen = lane
    run.switch(lane, policy, bool(change.get("pin")))
    if notes := policy.cautions(None, trained_length()):
        run.tell(notes[0] + ".")
    if view.reference == lane and view.mode == "relative":
        # A curve cannot be seen to move against itself.
        view.mode = "rolling"
        run.tell("Rolling perplexity is shown now, since the lane that all are compared with was switched.")


def draw() -> None:
    """One frame; again and again while there is something to see."""
    run, state = current(), st.session_state
    # Asked before the frame is made: what ends in between is seen by the next one.
    live = busy()
    if run is not None:
        run.look()
        # A frame is sent when there is something new, since every one costs the browser more than its drawing.
        if run.version == state.get("seen") and state.view == state.get("seen_view"):
            run.wait(run.version, 0.25)
        if not live and state.view.head and run.map(state.view.chosen, *state.view.head) is None:
            # The last frame of a run that has ended should have its map.
            run.wait(run.version, 2)
        state.seen, state.seen_view = run.version, replace(state.view)
        frame = state.sender.frame(run, state.view)
        if state.problem:
            run.tell(state.problem)
            state.problem = ""
    else:
        frame = empty(state.sender, [parse(p) for p in state.lanes], state.view, state.pace, state.problem)
    board.mount(frame, key="board", on_press=pressed, on_pick=picked, on_change=changed)
    if live != state.fast:
        # Begun or ended: the whole page runs again and sets the pace of the frames anew.
        st.rerun()


def busy() -> bool:
    run = current()
    return run is not None and run.live


freeze()
open_page()
sidebar()
st.session_state.fast = busy()
st.fragment(draw, run_every=0.1 if st.session_state.fast else None)()
