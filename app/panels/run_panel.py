"""A run in front of a person, live or as the library keeps it, which the browser plays by itself: what the pages *Read*
and *Chat* have in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import streamlit as st
from typing_extensions import override

from analysis.errors import sentence
from analysis.experiments.presets import ChatPreset, Preset
from analysis.policies import Policy, parse
from app import address, recordings
from app.address_bar import is_linked
from app.components import replay
from app.controls import is_double, is_new_press
from app.feed import Feed
from app.jobs.registry import REGISTRY
from app.view import ChatView, View

from .job_panel import JobPanel, Maker, press

if TYPE_CHECKING:
    # Read is on screen before torch is loaded, which conversations need.
    from app.jobs.chat import ChatJob
    from app.jobs.reading import ReadingJob

Run = TypeVar("Run", bound="ReadingJob | ChatJob")
NO_RUN = "at is a moment of a recording, and no run is named"
Action = tuple[str, str, Callable[[], None]]
"""A button beside the player: its words, what they mean, and what happens."""


@dataclass(frozen=True)
class RunPanel(JobPanel[Run]):
    """The place of one run on a page.

    `lost`, `deleted`: what to say of one that is in neither memory nor library, and of one that somebody deleted.
    """

    lost: str = ""
    deleted: str = ""

    @property
    def recording(self) -> recordings.Recording | None:
        """What the browser plays, where no job stands here."""
        return st.session_state.get(f"{self.name}_recording")

    @property
    def at(self) -> int | None:
        """Position in the text at which the recording stands; None where it has not moved."""
        return st.session_state.get(f"{self.name}_at")

    @property
    def known(self) -> Run | recordings.Recording | None:
        """The job or the recording that stands here."""
        return self.job or self.recording

    @property
    def feed(self) -> Feed:
        """What this page's component takes the frames of a job from."""
        if (feed := st.session_state.get(f"{self.name}_feed")) is None:
            feed = st.session_state[f"{self.name}_feed"] = Feed()
        return feed

    def play(self, recording: recordings.Recording | None, at: int | None = None) -> None:
        """Let a recording stand here, at a position of its text; None: none."""
        st.session_state.update({f"{self.name}_recording": recording, f"{self.name}_at": at})

    def open(self, name: str | None, at: int | None) -> Run | recordings.Recording | None:
        """Let the run of a name stand here, or its recording at a position; None where there is neither."""
        job = REGISTRY.find(name, self.kind)
        self.put(job.id if job is not None else "")
        if job is None or self.gives_way(partial(recordings.find, name, self.keeps)):
            self.put("")
            self.play(recordings.find(name, self.keeps), at)
        else:
            self.play(None)
        return self.known

    def is_linked(self, names: Sequence[str]) -> bool:
        """Whether somebody came for what the address says by these parameters, and not for what stands here already."""
        return is_linked(names, self.id or (self.recording.id if self.recording is not None else ""))

    def without_head(self, view: View | ChatView) -> list[str]:
        """Forget a head that the model of what stands here does not have; what is wrong with it."""
        known, head = self.known, view.head
        if head is None or known is None or known.facts is None or known.facts.has(*head):
            return []
        view.head = None
        return [f"{known.facts.name} has no layer {head[0]}, head {head[1]}"]

    def forget_unknown_head(self, view: View | ChatView) -> None:
        """Forget a head that the model of the job here does not have, and say so: it was chosen in another model, or by
        an address."""
        job = self.job
        if job is not None and job.status != "loading" and (lost := self.without_head(view)):
            job.tell(f"{lost[0]}: click a cell of the sink mass grid. {job.note}".strip())

    def link(self) -> dict[str, str]:
        """What an address says of what stands here."""
        if (known := self.known) is None:
            return {}
        return {"run": known.id} | ({"at": str(self.at)} if self.job is None and self.at is not None else {})

    @override
    def begin(self, prepare: Callable[[], Maker[Run]], again: Callable[[], None], *, keep: bool = False) -> Run | None:
        job = super().begin(prepare, again, keep=keep)
        if job is not None:
            self.play(None)
        return job

    def settle(self) -> None:
        """Let what the library keeps of a run stand here once it is no longer in memory, and no longer where that was
        deleted."""
        failed = self.gives_way(partial(recordings.find, self.id, self.keeps))
        if self.job is None and self.id:
            self.play(recordings.find(self.id, self.keeps))
            self.put("")
            if not failed:
                self.say("" if self.recording else self.lost)
        if self.recording is not None and recordings.find(self.recording.id, self.keeps) is None:
            self.play(None)
            self.say(self.deleted)

    def switch(self, change: Mapping[str, Any], view: View | ChatView) -> Policy | None:
        """Let a lane go on under another policy, as a press says, and show it; None where that cannot be."""
        if not is_new_press(f"{self.name}-change", dict(change)) or (job := self.steered) is None:
            return None
        try:
            policy = address.policy(change["policy"])
            job.switch(change["lane"], policy, bool(change.get("pin")))
        except ValueError as e:
            job.tell(sentence(e))
            return None
        view.chosen = change["lane"]
        return policy

    def replay(
        self,
        component: Callable[..., Any],
        view: View | ChatView,
        *,
        live: Action,
        resume: Action,
        note: str,
        pace: int = 0,
        told: int = 0,
    ) -> None:
        """Play the recording in a component, from the view and the position on, which both follow it.

        `live`, `resume`: what a person may do with it; `pace`: tokens a second at which it plays at once; `told`: how
        many times a story was begun.
        """
        recording = self.recording
        assert recording is not None, "there is one to be played"
        state, key = st.session_state, f"replay-{recording.id}-{told}"
        offered = {"live": live, **({"resume": resume} if recording.goes_on and not recording.story else {})}

        def rested() -> None:
            """Take over what the player shows, once it stands still."""
            if key not in state:
                # What it told came when something else stood here already.
                return
            rest = state[key]["rest"]
            view.look(rest, len(recording.spec.policies))
            self.play(recording, rest["at"] if isinstance(rest.get("at"), int) else self.at)

        def asked() -> None:
            """Have done what was pressed beside the player, once: a second press may come when it is done already, or
            before."""
            if key not in state:
                return
            if is_new_press(f"{self.name}-replay", pushed := state[key]["press"]) and pushed["what"] in offered:
                press(partial(first, offered[pushed["what"]][-1]))

        def first(action: Callable[[], None]) -> None:
            """Do what was pressed, unless it has put something else here already."""
            if self.recording == recording:
                action()

        replay.mount(
            component,
            recording.id,
            view=view.shown(),
            at=self.at,
            # Where it can go on, that stands first.
            actions=[(what, words, meaning) for what, (words, meaning, _) in reversed(offered.items())],
            note=note,
            pace=pace,
            key=key,
            on_rest=rested,
            on_press=asked,
        )


def same_lanes(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether two lists name the same policies, however they are written."""
    return [parse(p) for p in a] == [parse(p) for p in b]


def story_buttons(
    page: str,
    stories: Mapping[str, Preset] | Mapping[str, ChatPreset],
    begin: Callable[[str], None],
    chosen: Callable[[Any], bool],
    missing: Callable[[Any], str] = lambda story: "",
) -> None:
    """A button for each story of a page, the one that is chosen in another colour; `missing`: the sentence that says
    what to do first where a story cannot be told here."""

    def told(name: str) -> None:
        """A story was chosen."""
        if not is_double(f"{page}-{name}"):
            begin(name)

    st.caption("Start from")
    for name, story in stories.items():
        wanting = missing(story)
        st.button(
            f"**{story.title}**  \n{wanting or story.point}",
            key=f"{page}-story-{name}",
            on_click=told,
            args=(name,),
            width="stretch",
            type="primary" if chosen(story) else "secondary",
            disabled=bool(wanting),
        )
