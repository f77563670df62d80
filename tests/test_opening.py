"""What takes seconds to import is imported once, in sight, and a page that needs it waits for it."""

import gc
import sys
import threading
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from analysis.models.dtypes import Decision
from analysis.models.garbage import SELDOM
from app import controls, libraries
from app.controls import Chosen
from app.lesson import translated
from app.libraries import LIBRARIES, Libraries

MAIN = str(Path(__file__).parent.parent / "app" / "main.py")
PARTS = {"colorsys": "colours", "this": "a poem"}


@pytest.fixture
def small(monkeypatch):
    """Libraries that take no time."""
    monkeypatch.setattr(libraries, "PARTS", PARTS)
    for name in PARTS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return Libraries()


def test_each_is_imported_once_whoever_asks(small, monkeypatch):
    imported = []
    monkeypatch.setattr(libraries, "import_module", imported.append)
    threads = [threading.Thread(target=small.load) for _ in range(4)]
    for thread in threads:
        thread.start()
    small.begin()
    small.load()
    for thread in threads:
        thread.join()
    assert imported == list(PARTS) and small.ready and small.share == 1


def test_what_is_waited_for_is_said(small, monkeypatch):
    monkeypatch.setattr(libraries, "import_module", lambda name: None)
    said = []
    small.load(said.append)
    assert said == ["Loading colours", "Loading a poem"] and small.said == ""


def test_garbage_is_collected_seldom_while_they_are_imported_and_as_usual_then(small, monkeypatch):
    usual, meanwhile = gc.get_threshold(), []

    def imported(name):
        meanwhile.append(gc.get_threshold()[0])
        if len(meanwhile) == 3:
            raise OSError("no such library")

    monkeypatch.setattr(libraries, "import_module", imported)
    small.load()
    assert meanwhile == [SELDOM, SELDOM] and gc.get_threshold() == usual
    with pytest.raises(OSError, match="no such library"):
        Libraries().load()
    assert len(meanwhile) == 3 and gc.get_threshold() == usual


def test_a_failure_is_a_sentence_and_another_try_may_succeed(small, monkeypatch):
    def broken(name):
        raise OSError("no such library")

    monkeypatch.setattr(libraries, "import_module", broken)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    small.begin()
    for thread in threading.enumerate():
        if thread.name == "libraries":
            thread.join()
    assert small.problem.startswith("Loading colours failed (OSError: no such library): run make setup")
    said = translated(small.problem, "zh")
    assert said == "所需的库无法加载（OSError: no such library）：请运行 make setup，然后重新启动应用。"
    monkeypatch.setattr(libraries, "import_module", lambda name: None)
    small.load()
    assert small.ready


def test_a_page_that_needs_them_waits_in_sight_and_follows(monkeypatch):
    LIBRARIES.load()
    monkeypatch.setattr(LIBRARIES, "there", 1)
    begun = []
    monkeypatch.setattr(LIBRARIES, "begin", lambda: begun.append(True))
    at = AppTest.from_file(MAIN, default_timeout=60)
    at.switch_page("views/heads.py").run()
    assert not at.exception and at.title[0].value == "Heads" and not at.button
    assert begun
    monkeypatch.setattr(LIBRARIES, "there", len(libraries.PARTS))
    at.run()
    assert not at.exception and any("Capture" in b.label for b in at.button)


def test_a_page_that_waits_for_them_reads_its_address_then(monkeypatch):
    LIBRARIES.load()
    monkeypatch.setattr(LIBRARIES, "there", 1)
    monkeypatch.setattr(LIBRARIES, "begin", lambda: None)
    at = AppTest.from_file(MAIN, default_timeout=60)
    at.query_params["figure"] = "memory"
    at.switch_page("views/figures.py").run()
    at.run()
    assert not at.exception and not at.selectbox
    monkeypatch.setattr(LIBRARIES, "there", len(libraries.PARTS))
    at.run()
    assert not at.exception and at.selectbox[0].value == "memory"
    assert at.session_state.came_from is None and at.session_state.page == "figures"
    # And once only.
    at.selectbox[0].select("strip").run()
    assert at.selectbox[0].value == "strip"


def test_the_first_page_is_there_at_once_and_they_follow(monkeypatch):
    monkeypatch.setattr(LIBRARIES, "there", 0)
    begun = []
    monkeypatch.setattr(LIBRARIES, "begin", lambda: begun.append(True))
    at = AppTest.from_file(MAIN, default_timeout=60).run()
    assert not at.exception and any("The four policies" in b.label for b in at.button)
    assert begun


def test_asking_torch_what_is_fastest_waits_for_it(monkeypatch):
    asked = []
    monkeypatch.setattr(LIBRARIES, "load", lambda: asked.append("load"))
    monkeypatch.setattr(controls, "decide", lambda dtype: asked.append(dtype) or Decision("float32", ""))
    assert Chosen(dtype="auto").decided().dtype == "float32" and asked == ["load", "auto"]
    asked.clear()
    Chosen(dtype="bfloat16").decided()
    assert asked == ["bfloat16"]
