"""The first page of a fresh start plays a recorded story, and one press turns it into the same thing live."""

import re
from pathlib import Path

import pytest

from analysis.experiments.presets import PRESETS
from app.lesson import lesson

from .conftest import started
from .test_learn import RESULTS
from .test_live import stop, wait_read
from .test_replay import position, violations, wait_address, wait_painted

pytestmark = pytest.mark.browser

TOTAL = PRESETS["four"].recorded
# Other lanes stand at 1.00 ×, too, when they have just begun.
STAYS = RESULTS | {"enough": "[data-testid=stMetricValue]:has-text('×')"}
"""What stands where it stood, whether it was recorded or is live."""


def test_a_fresh_start_plays_a_story_that_one_press_makes_live(page, tmp_path):
    cache, runs = tmp_path / "cache", tmp_path / "runs"
    with started(SINKSCOPE_CACHE=str(cache), SINKSCOPE_RUNS=str(runs)) as (address, _):
        page.goto(address)
        # It plays by itself, before a model is unpacked or anything is read.
        page.wait_for_function("window.__sinkscope?.published > 20")
        assert not any(Path(cache).rglob("*.safetensors")) and not runs.exists()
        assert page.locator(".sk-card").count() == 4 and page.get_by_text(f"of {TOTAL:,} tokens").count() == 1
        page.get_by_role("button", name="Pause").click()
        assert 20 < position(page) < TOTAL
        assert violations(page) == []
        wait_address(page, "run", "gallery:four")
        page.get_by_role("button", name="Run it live").click()
        page.locator(".sk-player").wait_for(state="detached")
        page.wait_for_function("!location.search.includes('gallery')")
        for lane in range(4):
            wait_read(page, lane, 33)
        # Another story is played at once in place of what is live, and made live in the same way.
        page.get_by_role("button", name="How many are enough?").click()
        wait_address(page, "run", "gallery:enough")
        page.locator(".sk-card").nth(4).wait_for()
        page.wait_for_function("window.__sinkscope.published > 20")
        assert position(page) < PRESETS["enough"].recorded
        page.get_by_role("button", name="Run it live").click()
        page.locator(".sk-player").wait_for(state="detached")
        wait_read(page, 4, 33)
        stop(page)
        assert page.problems == [] and page.strangers == []


def test_a_story_stands_still_where_motion_is_not_wanted_and_comes_back_by_its_address(app, page):
    page.emulate_media(reduced_motion="reduce")
    page.goto(app)
    wait_painted(page, 1)
    page.wait_for_timeout(1500)
    assert position(page) == 1
    page.keyboard.press("End")
    wait_painted(page, TOTAL)
    page.wait_for_function("new URL(location).searchParams.get('at') !== null")
    page.goto(re.sub(r"at=\d+", "at=700", page.url))
    wait_painted(page, 700)
    assert page.problems == []


def test_chapters_show_what_was_recorded_until_what_is_live_has_come(page, tmp_path):
    with started(SINKSCOPE_CACHE=str(tmp_path / "cache"), SINKSCOPE_RUNS=str(tmp_path / "runs")) as (address, _):
        for chapter in lesson("en"):
            if chapter in ("page", "cost"):
                # What is live of costs takes a minute to show how they grow.
                continue
            page.goto(f"{address}/learn?chapter={chapter}")
            result = page.locator(STAYS[chapter]).first
            about = page.get_by_text(re.compile("^(Recorded, not live|Live: computed)"))
            result.wait_for()
            if chapter == "row":
                # Once the model is there, what is live may come before anybody has seen what was recorded.
                assert about.inner_text().startswith("Recorded, not live: SmolLM2-135M, float32")
            # While the page is first laid out, elements take the room of those above them that have not come yet.
            page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
            before = result.bounding_box()
            page.get_by_text("Live: computed on this machine").wait_for()
            # Nothing has moved.
            assert about.count() == 1 and result.bounding_box() == before
        assert page.problems == [] and page.strangers == []
