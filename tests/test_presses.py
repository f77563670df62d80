"""What is written and pressed at once: Streamlit tells both in one run, and calls back for the press before the page
has read what was written.  What begins is what stands on screen."""

import json
from types import SimpleNamespace

import pytest
from streamlit.proto.WidgetStates_pb2 import WidgetState
from streamlit.testing.v1 import AppTest

from analysis.chat.conversation import CHUNK
from analysis.experiments.presets import CHATS
from analysis.runs.spec import TYPED
from app import controls
from app.jobs.base import Job
from app.jobs.cells import CellsSnapshot
from app.libraries import LIBRARIES, Libraries
from app.panels import job_panel, slots
from app.panels.job_panel import JobPanel
from app.panels.run_panel import RunPanel

from .fuzz import seeds
from .test_links_pages import opened

pytestmark = pytest.mark.whole

BUTTONS = {
    "recall": ("recall", {}, "Seed", "Start"),
    "verdict": ("verdict", {}, "Seed", "Start"),
    "maps": ("heads", {}, "Tokens", "Capture"),
    "measures": ("heads", {"panel": "measures"}, "Tokens", "Measure"),
    "knockouts": ("heads", {"panel": "knockouts"}, "Tokens", "Start"),
    "emergence": ("learn", {"chapter": "emergence"}, "Steps", "Start again"),
}
"""A page, its address, a number that is written there, and the button that is pressed."""
COMPONENTS = {
    "read": ("read", {}, "KV heads", {"press": {"what": "start", "at": 1}}),
    "said": ("chat", {}, "Read the cache in pieces of", {"say": {"text": "Hello", "at": 1}}),
    "played": ("chat", {}, "Read the cache in pieces of", {"press": {"what": "play", "at": 1}}),
    "anew": ("chat", {}, "Read the cache in pieces of", {"press": {"what": "new", "at": 1}}),
}
"""The same where a component has the button: what it tells."""
WRITTEN = 347


@pytest.fixture
def begun(tmp_path, monkeypatch) -> list:
    """What pages were about to begin: that is not made."""
    LIBRARIES.load()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    made = []

    def start(make, again, instead=""):
        made.append(make.args)
        raise ValueError("this is only noted")

    monkeypatch.setattr(slots, "start", start)
    return made


def write(at: AppTest, label: str) -> None:
    (box,) = (box for box in at.number_input if box.label == label)
    assert box.value != WRITTEN
    box.set_value(WRITTEN)


def component_of(at: AppTest) -> str:
    """The id of the page's component."""
    names = ("board", "conversation")
    return next(e.proto.id for e in at.get("bidi_component") if e.proto.component_name.endswith(names))


def tell(at: AppTest, told: dict, component: str = "") -> None:
    """Let the page's component tell this, or the one of an id, which stood there before."""
    states = at._tree.get_widget_states()
    events = json.dumps([{"event": event, "value": value} for event, value in told.items()])
    component = component or component_of(at)
    states.widgets.append(WidgetState(id=f"$$STREAMLIT_INTERNAL_KEY_{component}__events", json_trigger_value=events))
    at._run(states)


def is_begun_with_what_was_written(at: AppTest, begun: list) -> None:
    assert not at.exception
    assert f"={WRITTEN}," in repr(begun[-1])
    # A press counts once; a chapter begins whenever nothing plays.
    count = len(begun)
    at.run()
    assert len(begun) == count or begun[-1] == begun[-2]


@pytest.mark.parametrize("name", BUTTONS)
def test_a_button_begins_with_what_was_just_written(begun, name):
    page, address, label, pressed = BUTTONS[name]
    at = opened(page, address)
    begun.clear()
    write(at, label)
    next(button for button in at.button if button.label == pressed).click()
    at.run()
    is_begun_with_what_was_written(at, begun)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_begins_with_what_was_just_written(begun, name):
    page, address, label, told = COMPONENTS[name]
    # Without a recording, which has buttons of its own.
    at = opened(page, {**address, "lane": "window:window=64"})
    write(at, label)
    tell(at, told)
    is_begun_with_what_was_written(at, begun)


@pytest.mark.parametrize("name", ["recall", "verdict", "maps", "measures", "knockouts"])
def test_a_button_that_is_pressed_twice_begins_one_job(begun, monkeypatch, name):
    monkeypatch.setattr(JobPanel, "busy", property(lambda panel: bool(begun)))
    page, address, _, pressed = BUTTONS[name]
    at = opened(page, address)
    with pytest.MonkeyPatch.context() as late:
        # The second press comes before the first is carried out.
        late.setattr(job_panel, "carry_out", lambda: None)
        for _ in range(2):
            next(button for button in at.button if button.label == pressed).click()
            at.run()
    at.run()
    assert not at.exception and len(begun) == 1


def test_a_reading_that_is_started_twice_begins_once(begun, monkeypatch):
    monkeypatch.setattr(JobPanel, "busy", property(lambda panel: bool(begun)))
    at = opened("read", {"lane": "window:window=64"})
    for moment in (1, 2):
        tell(at, {"press": {"what": "start", "at": moment}})
    assert not at.exception and len(begun) == 1
    tell(at, {"press": {"what": "restart", "at": 3}})
    assert len(begun) == 2


def press_button(at: AppTest, label: str) -> None:
    next(button for button in at.button if label in button.label).click()
    at.run()


AGAIN = {
    "restart": ("read", {"lane": "window:window=64"}, lambda at, moment: {"what": "restart", "at": moment}),
    "new": ("chat", {"lane": "window:window=64"}, lambda at, moment: {"what": "new", "at": moment}),
    "story": ("chat", {"lane": "window:window=64"}, lambda at, moment: press_button(at, CHATS["breakdown"].title)),
    "chapter": ("learn", {"chapter": "emergence"}, lambda at, moment: press_button(at, "Start again")),
}
"""Buttons that begin once more while something goes on: a page, its address, and a press, or what a component tells."""


@pytest.mark.parametrize("name", AGAIN)
def test_a_double_click_on_what_begins_anew_begins_once(begun, monkeypatch, name):
    page, address, press = AGAIN[name]
    at = opened(page, address)
    # A chapter begins whenever nothing plays.
    monkeypatch.setattr(Libraries, "ready", page != "learn")
    begun.clear()
    for moment, count in ((1, 1), (2, 1), (3, 2)):
        # The third comes when somebody has looked at what began.
        monkeypatch.setattr(controls, "DOUBLE", 1000.0 if moment < 3 else 0.0)
        if (told := press(at, moment)) is not None:
            tell(at, {"press": told})
        assert not at.exception and len(begun) == count


def test_what_is_pressed_twice_beside_a_player_is_done_once(begun, monkeypatch):
    """When the second press comes, what the first one began stands there already."""
    monkeypatch.setattr(RunPanel, "begin", lambda panel, *of: begun.append(of) or panel.play(None))
    at = opened("read", {})
    player = component_of(at)
    for moment in (1, 2):
        tell(at, {"press": {"what": "live", "at": moment}}, player)
        tell(at, {"rest": {"at": 10}}, player)
    assert not at.exception and len(begun) == 1


@pytest.mark.parametrize(("name", "text"), [("said", TYPED), ("anew", TYPED), ("played", "memory")])
def test_a_conversation_is_of_a_script_where_that_is_played(begun, name, text):
    at = opened("chat", {"script": "memory", "lane": "window:window=64"})
    tell(at, COMPONENTS[name][-1])
    (spec,) = begun[-1]
    assert not at.exception and (spec.text, spec.chunk) == (text, CHUNK)


@pytest.mark.usefixtures("begun")
@pytest.mark.parametrize(("button", "left"), [("Add a lane", 3), ("Remove", 1)])
def test_a_lane_keeps_what_was_just_written_where_another_comes_or_goes(button, left):
    at = opened("read", {"lane": ["window:window=64", "streaming:sinks=4,window=60"]})
    write(at, "Sinks")
    next(b for b in at.button if b.label == button).click()
    at.run()
    lanes = at.session_state["lanes"]
    assert not at.exception and len(lanes) == left and f"={WRITTEN}" in ",".join(lanes)


def test_runs_are_compared_with_the_one_that_was_just_marked(tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    for name in "abc":
        seeds.run(tmp_path / name, end="finished")
    at = opened("runs", {"marked": ["a", "b"]})
    at.checkbox("runs-mark-c").check()
    at.button("runs-compare").click().run()
    assert sorted(at.query_params["compare"]) == ["a", "b", "c"]


def test_what_was_pressed_on_a_page_begins_nothing_on_another(begun):
    at = opened("recall", {})
    at.session_state["pressed"] = [lambda: begun.append("of the page that was left")]
    at.switch_page("views/verdict.py").run()
    assert not at.exception and not begun and "pressed" not in at.session_state


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (CellsSnapshot(), "Stopped before anything was found."),
        (CellsSnapshot(0, 9, 0.05), "Stopped before anything was found."),
        (CellsSnapshot(3, 9, 0.4), "Stopped after 3 of 9 cells. They are kept."),
    ],
)
def test_a_job_that_is_stopped_before_it_found_anything_claims_to_keep_nothing(found, words, monkeypatch):
    stopped, said = SimpleNamespace(live=False, status="stopped", kept=SimpleNamespace(problem="")), list[str]()
    monkeypatch.setattr(JobPanel, "job", stopped)
    monkeypatch.setattr(job_panel.st, "info", said.append)
    JobPanel("cells", Job).progress_of_cells(found)
    assert said == [words]
