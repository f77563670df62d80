"""A link sets a page up as that was from which it was copied: every widget, and what the address says, on each page."""

import time
from collections.abc import Mapping

import pytest
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.runtime.scriptrunner_utils.script_run_context import ScriptRunContext
from streamlit.testing.v1 import AppTest

from analysis.experiments.presets import PRESETS
from analysis.policies import parse
from app.jobs.registry import REGISTRY
from app.lesson import lesson
from app.lesson.chapters.cost import row_told
from app.libraries import LIBRARIES
from app.projection import NAME

from .fuzz import seeds
from .fuzz.addresses import MAIN

pytestmark = pytest.mark.whole

LANES = ["streaming:sinks=4,window=60,positions=cache", "window:window=64"]
MODEL = {"dtype": "bfloat16", "weights": "int8", "kv_heads": "3", "bos": "on", "special": "tokens"}
SET: dict[str, tuple[str, Mapping[str, str | list[str]]]] = {
    "read": ("read", {"lane": LANES, "text": "macbeth", "mode": "rolling", "head": "20.3", "fidelity": "on",
                      "mark": "120.135", "pause": "480", **MODEL}),
    "told": ("read", {"lane": [str(parse(p)) for p in PRESETS["drop"].policies], "story": "drop", "text": "macbeth"}),
    "chat": ("chat", {"lane": LANES[1:], "script": "memory", "seed": "7", "temperature": "0.5", **MODEL}),
    "maps": ("heads", {"text": "macbeth", "tokens": "300", "cells": "logits", "pool": "mean", "head": "3.2", **MODEL}),
    "measures": ("heads", {"panel": "measures", "samples": "7", "first": "2", "threshold": "0.55", **MODEL}),
    "knockouts": ("heads", {"panel": "knockouts", "kind": "weights", "layer": "3", "policy": LANES[0], **MODEL}),
    "recall": ("recall", {"task": "needle:haystack=macbeth", "lengths": "100,200", "depths": "2.5,50", "repeats": "3",
                          "seed": "7", "question": "blind", "lane": LANES, **MODEL}),
    "stream": ("recall", {"task": "streameval:back=40,digits=3", "lengths": "900"}),
    "verdict": ("verdict", {"budgets": "32,96", "kl": "0", "tasks": "needle:haystack=macbeth,arc",
                            "texts": "hamlet,macbeth", "tokens": "700", "lengths": "100,200", "depths": "2.5,50",
                            "repeats": "3", "seed": "7", "question": "blind", "lane": LANES, "quality": "kl",
                            "cost": "milliseconds", **MODEL}),
    "figures": ("figures", {"figure": "strip:lane=1,begin=5,tokens=30", "run": "kept", "venue": "acl", "dpi": "150",
                            "points": "6.5", "file": "svg", "grey": "1"}),
    "compare": ("runs", {"compare": ["kept", "other"], "mode": "cumulative", "lanes": "1.0"}),
    "search": ("runs", {"search": "dense", "marked": ["kept"]}),
}  # fmt: skip
CHAPTERS: dict[str, Mapping[str, str]] = {
    "row": {"sentence": "Words of my own here", "head": "20.3", "kind": "off-by-one", "logits": "1,2.5,-3,0,4"},
    "first": {"sentence": "Words of my own here", "begin": "word", "other": "Bonjour"},
    "nothing": {"take": "values"},
    "enough": {"size": "64"},
    "cost": {"show": "memory"},
    "chunks": {"sentence": "Words of my own here", "head": "3.1", "cuts": "2,3"},
    "heads": {"tokens": "65536", "bits": "4"},
    "emergence": {"kinds": "relu,sigmoid", "recipe": "layers=2,steps=50,seed=3", "step": "40"},
    "recall": {"cache": "64"},
}
WAITED = {lesson("en")["page"].say(name) for name in ("loading", "reading")}
KINDS = (
    *("selectbox", "number_input", "text_input", "slider", "select_slider", "radio", "toggle", "button_group"),
    "multiselect",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    LIBRARIES.load()
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    for name in ("kept", "other"):
        seeds.run(tmp_path / name, end="finished")


def opened(page: str, asked: Mapping[str, str | list[str]]) -> AppTest:
    at = AppTest.from_file(MAIN, default_timeout=300)
    if page != "read":
        at.switch_page(f"views/{page}.py")
    for name, value in asked.items():
        at.query_params[name] = value
    settle(at)
    if "lesson_run" in at.session_state:
        REGISTRY.free(at.session_state["lesson_run"])
    return at


def settle(at: AppTest) -> None:
    """Run a page until it waits for nothing: some widgets of the lesson are made of an answer."""
    at.run()
    until = time.monotonic() + 120
    while WAITED & {caption.value for caption in at.caption} and time.monotonic() < until:
        at.run()
    assert not at.exception


def said(at: AppTest) -> dict[str, list[str]]:
    """What the address says, but for what plays in a chapter, which has another name each time."""
    asked = {name: v if isinstance(v := at.query_params[name], list) else [v] for name in at.query_params}
    plays = "lesson_run" in at.session_state and asked.get("run") == [at.session_state["lesson_run"]]
    return {name: value for name, value in asked.items() if name != "run" or not plays}


def every_widget(at: AppTest) -> list:
    return [widget for kind in KINDS for widget in at.get(kind)]


def widgets(at: AppTest) -> list[tuple[str, object]]:
    return [(widget.label, widget.value) for widget in every_widget(at)]


def drawn_first(proto) -> object:
    """What a browser shows that knows nothing of a widget but this."""
    chosen, options = proto.default, [getattr(option, "content", option) for option in getattr(proto, "options", ())]
    if proto.set_value:
        names = {field.name for field, _ in proto.ListFields()}
        (name,) = names & {"raw_value", "raw_values", "value"} or {"value"}
        chosen = getattr(proto, name)
    several = not isinstance(chosen, (str, int, float))
    shown = [
        options[int(of)] if options and not isinstance(of, str) else of for of in (chosen if several else [chosen])
    ]
    return proto.id, shown


class Heard:
    """What a page sends to the browser, in place of the method that does so."""

    def __init__(self) -> None:
        self.send, self.addresses = ScriptRunContext.enqueue, list[str]()

    def __get__(self, context, _):
        return lambda message: self.hear(context, message)

    def hear(self, context, message) -> None:
        if message.WhichOneof("type") == "page_info_changed":
            self.addresses.append(message.page_info_changed.query_string)
        self.send(context, message)


def is_the_same_elsewhere(page: str, asked: Mapping[str, str | list[str]]) -> None:
    here = opened(page, asked)
    wanted = {name: value if isinstance(value, list) else [value] for name, value in asked.items()}
    assert said(here) == wanted
    assert not here.error
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptRunContext, "enqueue", heard := Heard())
        there = opened(page, said(here))
    assert said(there) == said(here) and widgets(there) == widgets(here)
    # What the address says already is not said again: it might come when a person has gone back to another page.
    begun = f"run={there.session_state['lesson_run']}" if "lesson_run" in there.session_state else "nothing begins"
    assert not [address for address in heard.addresses if begun not in address]
    # Where a browser got nothing of all this, and so says nothing of it, it is told all of it again.
    told = [drawn_first(widget.proto) for widget in every_widget(there)]
    there._run(WidgetStates())
    assert [drawn_first(widget.proto) for widget in every_widget(there)] == told
    # It is not as it is without the link.
    assert widgets(there) != widgets(opened(page, {}))


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", SET)
def test_a_link_sets_a_page_up_in_the_same_way(name):
    is_the_same_elsewhere(*SET[name])


@pytest.mark.real
@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_link_sets_a_chapter_up_in_the_same_way(name):
    is_the_same_elsewhere("learn", {"chapter": name, **CHAPTERS[name]})


@pytest.mark.real
@pytest.mark.usefixtures("home")
def test_a_sentence_that_did_not_fit_is_asked_for_and_known_again():
    long = "It was the best of times, it was the worst of times, " * 8
    at = opened("learn", {"chapter": "row"})
    at.text_input("lesson-sentence").set_value(long)
    settle(at)
    (named,) = said(at)["sentence"]
    assert named.startswith("sha256:") and not at.info
    there = opened("learn", said(at))
    assert there.text_input("lesson-sentence").value == "" and "write it again" in there.info[0].value
    assert said(there)["sentence"] == [named]
    there.text_input("lesson-sentence").set_value("Other words").run()
    assert "not the sentence of the link" in there.info[0].value and said(there)["sentence"] == ["Other words"]
    there.text_input("lesson-sentence").set_value(long)
    settle(there)
    assert not there.info and said(there)["sentence"] == [named] and widgets(there) == widgets(at)


@pytest.mark.parametrize(("page", "language"), [("recall", "en"), ("learn", "zh")])
def test_a_page_is_projected_however_its_link_says_so(page, language):
    for written, projected, wrong in (("1", True, ""), ("yes", True, ""), ("off", False, ""), ("x", False, NAME)):
        at = AppTest.from_file(MAIN, default_timeout=300)
        at.switch_page(f"views/{page}.py")
        at.query_params[NAME], at.query_params["lang"] = written, language
        at.run()
        assert not at.exception and at.session_state[NAME] is projected, written
        told = " ".join(info.value for info in at.info)
        assert wrong in told and ("要求" in told) == (bool(wrong) and language == "zh")


def test_the_chapter_of_costs_writes_its_numbers_as_its_table_does(home):
    at = opened("learn", {"chapter": "cost"})
    assert any("at 1,024 tokens" in caption.value for caption in at.caption)


def test_who_listens_to_the_costs_hears_what_each_number_is():
    row = ("Dense", "4,096", "T²", "1.89", "1.24", "0.49 ms", "50 %")
    assert row_told(row, lesson("en")["cost"]) == (
        "Dense: Tokens 4,096, Theory T², Attention 1.89, Whole model 1.24, Fixed, a token 0.49 ms, "
        "Share of attention 50 %"
    )
