"""A recorded conversation in a real browser: played, scrubbed and found again, with no model in memory."""

import re

import pytest

from analysis.chat.partner import Partner
from analysis.figures.report import report
from analysis.runs import library, screen
from analysis.runs.reader import load
from analysis.runs.recorded_chat import recorded_chat

from .. import tokenizers
from ..recordings import decoded
from ..test_bos import model_of
from ..test_recorded_chat import PROMPTS, Talk
from .conftest import cut_labels
from .test_chat import gone
from .test_replay import offline, position, violations, wait_address, wait_painted  # noqa: F401

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def talked():
    """A conversation of the library under two policies, one of which was switched: its name, and its positions."""
    partner = Partner(model_of(tokenizers.gemma_like()))
    talk = Talk(partner, ("streaming:sinks=4,window=12", "window:window=16"), "talked", most=20)
    talk.ask(PROMPTS[0])
    talk.ask(PROMPTS[1])
    talk.switch(1, "streaming:sinks=4,window=12", pin=True)
    talk.ask(PROMPTS[2])
    return "talked", decoded(recorded_chat(load(talk.finish()), "x", {}))[0]["total"]


def test_a_recorded_conversation_is_played_scrubbed_and_found_again(app, page, talked):
    name, total = talked
    page.goto(f"{app}/chat?run={name}")
    wait_painted(page, total)
    assert page.locator(".sk-lane").count() == 2 and page.get_by_label("Say something to every lane").count() == 0
    assert page.locator(".sk-line:visible").count() == 2 and page.locator(".sk-switched").count() == 1
    assert page.locator(".sk-tick-switch").count() == 1
    at_end = gone(page, 0)
    assert at_end > 0
    # Turn by turn back, and before the switch.
    page.keyboard.press("Shift+ArrowLeft")
    page.wait_for_function("total => window.__sinkscope.published < total", arg=total)
    second = position(page)
    wait_painted(page, second)
    assert gone(page, 0) < at_end and page.locator(".sk-switched").count() == 0
    assert page.locator(".sk-user").count() == 4
    wait_address(page, "at", str(second))
    # A token says how well it was expected; colour says it of all.
    page.locator(".sk-flow").first.locator(".sk-assistant span", has_text=re.compile(r"\w")).first.click()
    page.get_by_text("a probability of").wait_for()
    page.get_by_role("button", name="Surprise").click()
    page.wait_for_function("document.querySelectorAll('.sk-flow span[style*=rgba]').length > 20")
    # A reload shows the same moment.
    page.reload()
    wait_painted(page, second)
    page.get_by_text("a probability of").wait_for()
    # It plays on to its end.
    page.get_by_label("Speed").select_option("100 tokens/s")
    page.get_by_role("button", name="Play or pause").click()
    wait_painted(page, total)
    assert gone(page, 0) == at_end
    page.get_by_text("▶ Play").wait_for()
    assert page.get_by_role("button", name="Talk live").count() == 1
    assert not cut_labels(page) and not page.problems and not page.strangers


def test_a_static_page_of_a_conversation_replays_its_lanes_without_network(offline, talked, tmp_path):  # noqa: F811
    (name, total), page, out = talked, offline, tmp_path / "page.html"
    report(library.find(name), out, lane=1)
    assert out.stat().st_size < 15e6
    page.goto(f"{out.as_uri()}#at={total}&token=0.9")
    wait_painted(page, total)
    assert page.locator(".sk-lane").count() == 2 and page.locator(".sk-line:visible").count() == 2
    assert page.locator(".sk-lane:visible .sk-invite:visible").count() == 0
    page.get_by_text("a probability of").wait_for()
    # The arrows go from token to token, and no further than the last one.
    lane = page.locator(".sk-lane").first
    lane.locator(".sk-flow span").last.click()
    lane.locator(".sk-said").focus()
    for key in ("ArrowLeft", "ArrowRight", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
        page.wait_for_timeout(200)
    assert lane.locator(".sk-flow span").last.evaluate("e => e.classList.contains('sk-asked')")
    page.get_by_text("a probability of").wait_for()
    page.evaluate("document.activeElement.blur()")
    at_end = gone(page, 0)
    # The keyboard goes a turn back, and less has left the cache there; the address says where it rests.
    page.keyboard.press("Shift+ArrowLeft")
    page.wait_for_function("total => window.__sinkscope.published < total", arg=total)
    second = position(page)
    wait_painted(page, second)
    assert 0 < gone(page, 0) < at_end
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert not violations(page, "document"), scheme
    page.get_by_role("button", name="Surprise").click()
    page.wait_for_function("document.querySelectorAll('.sk-flow span[style*=rgba]').length > 20")
    # Whatever its colour, and whether or not it has left the cache, all of it can be read.
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(
            "dark => document.querySelector('.sk').classList.contains('sk-dark') === dark", arg=scheme == "dark"
        )
        assert not violations(page, "document"), scheme
    page.wait_for_function(
        "at => location.hash.includes(`at=${at}`) && location.hash.includes('paint=true')", arg=second
    )
    page.reload()
    wait_painted(page, second)
    page.wait_for_function("document.querySelectorAll('.sk-flow span[style*=rgba]').length > 20")
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    # It plays on to its end.
    page.get_by_label("Speed").select_option("100 tokens/s")
    page.get_by_role("button", name="Play or pause").click()
    wait_painted(page, total)
    assert gone(page, 0) == at_end and not cut_labels(page) and not page.problems


def test_the_newest_token_stays_in_sight_where_the_page_changes_its_size(offline, talked, tmp_path):  # noqa: F811
    (name, total), page, out = talked, offline, tmp_path / "page.html"
    report(library.find(name), out)
    page.goto(f"{out.as_uri()}#at={total}")
    wait_painted(page, total)
    body = page.locator(".sk-said").first
    hidden = "e => e.scrollHeight - e.clientHeight - e.scrollTop"
    for width, height in ((1440, 2000), (1440, 650), (900, 2000), (220, 800)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(500)
        assert body.evaluate(hidden) <= 1, (width, height)
    assert body.evaluate("e => e.scrollHeight - e.clientHeight") > 100
    # Whoever reads what was said before stays there.
    body.evaluate("e => { e.scrollTop = 0; }")
    page.wait_for_timeout(300)
    page.set_viewport_size({"width": 210, "height": 790})
    page.wait_for_timeout(500)
    assert body.evaluate(hidden) > 100


def test_where_answers_were_cut_is_still_marked_on_the_way_back(offline, talked, tmp_path, monkeypatch):  # noqa: F811
    (name, total), page, out = talked, offline, tmp_path / "page.html"
    # Fewer than were said: older tokens come back at the front.
    monkeypatch.setattr(screen, "TAIL", 60)
    report(library.find(name), out)
    page.goto(f"{out.as_uri()}#at={total - 2}")
    wait_painted(page, total - 2)
    marked = page.locator(".sk-flow [data-cut]").count()
    assert marked > 0
    page.keyboard.press("ArrowLeft")
    wait_painted(page, total - 3)
    assert page.locator(".sk-flow [data-cut]").count() == marked
