"""Chat: say something, and every lane answers under its own policy, without end."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from typing import Any

import streamlit as st

from analysis.chat.conversation import CHUNK
from analysis.chat.scripts import read_script, script_from_bytes, scripts
from analysis.experiments.presets import CHATS
from analysis.models.devices import pick_device
from analysis.policies import parse
from analysis.runs.spec import TYPED, Sampling, Spec
from app import address
from app.address_bar import readdress
from app.components import conversation
from app.controls import (
    MODEL,
    Chosen,
    brand,
    heading,
    is_double,
    is_new_press,
    lane_controls,
    model_controls,
    whole_control,
)
from app.feed import paced
from app.frames.chat import ChatSender, strongest_head
from app.jobs.chat import MAX_LANES, ChatJob
from app.jobs.registry import REGISTRY
from app.panels import slots, steering
from app.panels.asked import unfollowed
from app.panels.job_panel import Maker, carry_out, press, redraw
from app.panels.run_panel import NO_RUN, RunPanel, same_lanes, story_buttons
from app.panels.sampling import sampling_controls
from app.parameters import AT, CHAT
from app.projection import project
from app.view import CHAT_PARAMETERS, ChatView

LOST = (
    "That conversation is no longer in memory and not in the library here, or belongs to another page: begin a new "
    "one, or find it on the page Runs, which imports its .zip, too."
)
DELETED = "That conversation was deleted from the library: begin a new one."
JOB_PANEL = RunPanel("chat", ChatJob, keeps="chat", lost=LOST, deleted=DELETED)
UPLOAD, LINKED = "Upload a script …", "The script of the link"
ADDRESS = ("run", *AT, "lane", *MODEL, *CHAT, *CHAT_PARAMETERS)
"""What the address of this page says."""
KEPT = "That conversation is no longer in memory, and is kept in the library: let it go on, or begin a new one."
EVERY = 3.0
"""Seconds from one run of the script to the next: frames come without it."""


def quick() -> Chosen:
    """On a CPU 4 bits, which the embedded model's own file has too; elsewhere weights stay as they came."""
    return Chosen(weights="int4" if pick_device("auto").type == "cpu" else "model")


@dataclass
class Settings:
    """What this tab's next conversation will be."""

    lanes: list[str]
    script: str
    model: Chosen = field(default_factory=quick)
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new=48))
    kv_chunk: int | None = None


def open_page() -> None:
    """What a tab begins with: the conversation or the lanes that its address names, or the first story."""
    state, asked = st.session_state, st.query_params
    state.setdefault("revision", 0)
    if "chat" in state and not JOB_PANEL.is_linked(ADDRESS):
        # Here already, or back from another page: all is as it was left.
        return
    problems, story = [], CHATS["breakdown"]
    chosen = Settings(list(story.policies), story.script)
    moment, left_out = address.values(AT, asked)
    known = JOB_PANEL.open(asked.get("run"), moment.get("at"))
    if known is not None:
        spec = known.spec
        found, _ = address.values({"script": CHAT["script"]}, asked)
        own = spec.text if spec.text in scripts() else address.named_text("", known.text_sha256)
        # What can be played is chosen at the left, whatever was said before.
        script = found.get("script") or own or chosen.script
        chosen = replace(chosen, lanes=list(spec.policies), model=Chosen.of(spec), script=script)
        chosen.sampling, chosen.kv_chunk = spec.sampling or chosen.sampling, spec.kv_chunk
        problems += filter(None, [unfollowed(CHAT, values_of(chosen), chosen.model, chosen.lanes)])
    elif "run" in asked:
        problems.append(LOST)
    if known is None:
        left_out += [NO_RUN] * (bool(moment) and "run" not in asked)
        chosen.model, unloaded = chosen.model.linked(asked, REGISTRY.models())
        left_out += unloaded
        found, wrong = address.values(CHAT, asked)
        left_out += wrong
        chosen.script, chosen.kv_chunk = found.pop("script", chosen.script), found.pop("kv_chunk", None)
        chosen.sampling = replace(chosen.sampling, **found)
        try:
            if "lane" in asked:
                chosen.lanes = address.lanes(asked.get_all("lane"), MAX_LANES, "talk")
        except ValueError as e:
            problems.append(address.wrong([str(e)], "The first story is set instead."))
    view, unseen = ChatView.linked(chosen.lanes, asked)
    unseen += JOB_PANEL.without_head(view)
    problems += filter(None, [address.wrong([*left_out, *unseen])])
    JOB_PANEL.say(" ".join(problems))
    state.update(chat=chosen, chat_view=view, revision=state.revision + 1)


def to_address() -> None:
    """Let the address say what is shown, so that a reload and a second tab show it too."""
    state = st.session_state
    lanes, model = state.chat.lanes, state.chat.model
    if (known := JOB_PANEL.known) is not None:
        lanes, model = known.spec.policies, Chosen.of(known.spec)
    said: dict[str, str | list[str]] = {**state.chat_view.link()}
    said |= address.said(MODEL, model._asdict(), quick()._asdict())
    shown = state.chat
    if known is not None:
        shown = replace(shown, sampling=known.spec.sampling or shown.sampling, kv_chunk=known.spec.kv_chunk)
    said |= address.said(CHAT, values_of(shown), values_of(Settings([], CHATS["breakdown"].script)))
    if known is not None:
        # How it is loaded as usual is not the same on all machines.
        said |= {**JOB_PANEL.link(), "weights": model.weights}
    if not same_lanes(lanes, CHATS["breakdown"].policies):
        said["lane"] = list(lanes)
    readdress(ADDRESS, said)


def values_of(chosen: Settings) -> dict[str, Any]:
    """The script and how answers are chosen, by the names that addresses have for them."""
    sampling, upload = asdict(chosen.sampling), st.session_state.get("chat_upload")
    script = None if chosen.script == UPLOAD else chosen.script
    if chosen.script == UPLOAD and upload is not None:
        script = address.named_text("", hashlib.sha256(upload.getvalue()).hexdigest())
    return {**sampling, "top_k": sampling["top_k"] or None, "script": script, "kv_chunk": chosen.kv_chunk}


def begin(script: tuple[list[str], str] | None = None) -> None:
    """A new conversation with what is set, and a script (prompts and digest); the one that was on screen ends."""
    if JOB_PANEL.begin(partial(_prepared, script), partial(begin, script)) is not None:
        view = st.session_state.chat_view
        view.token, view.chosen = None, min(view.chosen, len(st.session_state.chat.lanes) - 1)


def _prepared(script: tuple[list[str], str] | None) -> Maker[ChatJob]:
    chosen = st.session_state.chat
    bundled, upload = chosen.script in scripts(), st.session_state.get("chat_upload")
    spec = Spec(
        # What is chosen at the left is not what is said, until it is played.
        text=TYPED if script is None else chosen.script if bundled or upload is None else upload.name,
        policies=tuple(chosen.lanes),
        chunk=CHUNK,
        sampling=chosen.sampling,
        kv_chunk=chosen.kv_chunk,
        **chosen.model.decided()._asdict(),
    )
    prompts, digest = script or ([], "")
    return partial(ChatJob, spec, script=prompts, script_sha256=digest)


def resume() -> None:
    """Go on where the recording on screen stopped."""
    if (recording := JOB_PANEL.recording) is not None:
        JOB_PANEL.begin(lambda: partial(ChatJob, recording.spec, resumes=recording.id), resume)


def take(name: str) -> None:
    """Tell a story: set everything as it has it, and play its script."""
    story, state = CHATS[name], st.session_state
    state.chat = replace(
        state.chat,
        lanes=list(story.policies),
        script=story.script,
        sampling=replace(state.chat.sampling, max_new=story.max_new),
    )
    state.chat_view = ChatView(head=state.chat_view.head)
    state.revision += 1
    begin(read_script(story.script))


def lesson(policies: Sequence[str] = ()) -> str:
    """What to see in these lanes, or in those that are set, where a story tells of them."""
    chosen = st.session_state.chat
    lanes = policies or chosen.lanes
    stories = (s for s in CHATS.values() if same_lanes(s.policies, lanes) and s.script == chosen.script)
    return next((s.lesson for s in stories), "")


def the_script() -> tuple[list[str], str]:
    """The prompts of the chosen script, and its digest.  Raises ValueError with what to do."""
    chosen = st.session_state.chat
    if chosen.script in scripts():
        return read_script(chosen.script)
    upload, linked = st.session_state.get("chat_upload"), address.HASH.fullmatch(chosen.script)
    if upload is None and linked:
        raise ValueError("this link is of a script that was uploaded: upload it again, or choose another one")
    if upload is None:
        raise ValueError("choose a script to upload first, or another one")
    script = script_from_bytes(upload.getvalue(), upload.name)
    if linked and address.named_text("", script[1]) != chosen.script:
        raise ValueError(
            f"{upload.name} is not the script of this link, whose SHA-256 begins with "
            f"{chosen.script.removeprefix('sha256:')}: upload that one, or choose another"
        )
    return script


def sidebar() -> None:
    """Stories, and the settings of the next conversation."""
    state, chosen = st.session_state, st.session_state.chat
    with st.sidebar:
        brand("chat")
        story_buttons(
            "chat",
            CHATS,
            take,
            lambda story: same_lanes(story.policies, chosen.lanes) and chosen.script == story.script,
        )
        names = [*scripts(), UPLOAD]
        if address.HASH.fullmatch(chosen.script):
            names.insert(0, chosen.script)
        chosen.script = st.selectbox(
            "Script",
            names,
            index=names.index(chosen.script) if chosen.script in names else 0,
            format_func=lambda n: n if n == UPLOAD else n.capitalize() if n in scripts() else LINKED,
            key=f"chat-script-{state.revision}",
            help="Played by the button beside the field where you write",
        )
        linked = address.HASH.fullmatch(chosen.script)
        if linked:
            st.caption(f"This link is of a script that was uploaded ({chosen.script} …): upload it again.")
        if chosen.script == UPLOAD or linked:
            st.file_uploader("One prompt a line, or JSONL with turns", key="chat_upload", max_upload_size=8)
        state.chat_switched = switched(JOB_PANEL.job)
        lane_controls("chat-lane", chosen.lanes, MAX_LANES, None, state.chat_switched)
        st.caption("Model")
        chosen.model = model_controls("chat-model", chosen.model)
        with st.expander("How answers are chosen"):
            chosen.sampling = sampling_controls(chosen.sampling)
            chosen.kv_chunk = whole_control(
                "Read the cache in pieces of",
                1,
                65536,
                chosen.kv_chunk,
                step=256,
                placeholder="whole",
                key=f"kv-chunk-{state.revision}",
                help="Flash-decoding: pieces have their own sums, joined at the end.  Changes no number; empty: whole",
            )
        talk = JOB_PANEL.job
        if talk is not None and differs(talk.spec, chosen):
            st.caption("Press New conversation to talk with these settings.")


def switched(talk: ChatJob | None) -> dict[int, str]:
    """What became of the lanes that were switched while they talked."""
    if talk is None or list(talk.spec.policies) != st.session_state.chat.lanes:
        return {}
    last = [(lane.lane, lane.switches[-1]) for lane in talk.snapshot if lane.switches]
    return {lane: f"{switch.policy.label} from token {switch.position:,} on" for lane, switch in last}


def differs(spec: Spec, chosen: Settings) -> bool:
    """Whether a conversation has other settings than those that are chosen."""
    mine = (chosen.model.decided(), chosen.sampling, chosen.kv_chunk)
    return not same_lanes(spec.policies, chosen.lanes) or (Chosen.of(spec), spec.sampling, spec.kv_chunk) != mine


def said() -> None:
    """Words were sent."""
    sent = st.session_state.conversation["say"]
    if is_new_press("say", sent):
        press(partial(say, sent["text"], sent["at"]))


def say(text: str, mark: int) -> None:
    """Say this in the conversation; a new one begins where there is none.  `mark`: names it where it is not taken."""
    if JOB_PANEL.job is None:
        begin()
    if (talk := JOB_PANEL.steered) is not None:
        JOB_PANEL.say("")
        talk.say(text, mark)
    else:
        st.session_state.chat_unsaid = mark


def pressed() -> None:
    """A button of the conversation was pressed."""
    pushed = st.session_state.conversation["press"]
    if is_new_press("chat-press", pushed) and not (pushed["what"] == "new" and is_double("new")):
        press(partial(steer, pushed["what"]))


def steer(what: str) -> None:
    """Do what a button of the conversation stands for."""
    talk = JOB_PANEL.job
    if talk is not None and what != "new" and not JOB_PANEL.steers:
        return
    try:
        if what == "new":
            begin()
        elif what == "play" and (talk is None or not talk.pending):
            script = the_script()
            if talk is None or not any(lane.pieces for lane in talk.snapshot):
                # A conversation in which nothing was said yet is not one of this script.
                begin(script)
            else:
                talk.play(script[0])
        elif talk is not None:
            {
                "stop": talk.stop,
                "again": talk.again,
                "skip": talk.skip,
                "play": partial(talk.hold, True),
                "hold": partial(talk.hold, False),
            }[what]()
    except ValueError as e:
        JOB_PANEL.say(e)
        if talk is not None:
            talk.tell(JOB_PANEL.problem)


def picked() -> None:
    """A choice of what to look at."""
    view, pick, talk = st.session_state.chat_view, st.session_state.conversation["pick"], JOB_PANEL.job
    if not is_new_press("chat-pick", pick):
        return
    lanes = len(talk.spec.policies if talk else st.session_state.chat.lanes)
    if 0 <= pick.get("lane", -1) < lanes:
        view.chosen = pick["lane"]
    if "head" in pick:
        view.head = tuple(pick["head"]) if pick["head"] else None
    if "token" in pick:
        view.token = (view.chosen, pick["token"]) if pick["token"] is not None else None
        if view.token and view.head is None and talk is not None and (best := strongest_head(talk, view.chosen)):
            view.head = best


def changed() -> None:
    """A lane is to go on under another policy."""
    JOB_PANEL.switch(st.session_state.conversation["change"], st.session_state.chat_view)


def draw() -> None:
    """What the conversation is drawn from, and what stands around it; again and again, so that whoever talks in another
    tab is seen here too."""
    carry_out()
    JOB_PANEL.settle()
    talk, state = JOB_PANEL.job, st.session_state
    view = state.chat_view
    known = JOB_PANEL.known
    view.chosen = min(view.chosen, len(state.chat.lanes if known is None else known.spec.policies) - 1)
    JOB_PANEL.forget_unknown_head(view)
    to_address()
    if talk is None and (kept := JOB_PANEL.recording) is not None:
        note = JOB_PANEL.problem or (KEPT if kept.goes_on and not kept.story else lesson(kept.spec.policies))
        JOB_PANEL.replay(
            conversation.COMPONENT,
            view,
            live=("Talk live", "Load the model, and begin a conversation with what is set at the left", begin),
            resume=("Resume", "Load the model, and go on where this conversation stopped", resume),
            note=note,
        )
        return
    if talk is None:
        note = JOB_PANEL.problem or lesson()
        lanes, unsaid = [parse(p) for p in state.chat.lanes], state.get("chat_unsaid", 0)
        drawn = ChatSender().empty(lanes, view, note, unsaid=unsaid).packed()
    else:
        slots.renew_lease(talk)
        steering.say(talk)
        words, seen, steers = lesson(talk.spec.policies), replace(view), steering.mine(talk)
        look = (words, steers, *astuple(seen))
        drawn = JOB_PANEL.feed.follow(talk, look, lambda talk: ChatSender().frame(talk, seen, words, steers))
    conversation.mount(drawn, key="conversation", on_say=said, on_press=pressed, on_pick=picked, on_change=changed)
    if state.chat_switched != switched(talk):
        # The list of lanes says so.
        st.rerun()


open_page()
sidebar()
project()
heading("chat")
# One pace for ever, since somebody may talk in another tab.
redraw(draw, lambda: paced(JOB_PANEL.job, EVERY))
