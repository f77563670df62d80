"""What serving engines do to a cache, on the board in a real browser: context shift, blocks, and keys in few bits."""

import re

import pytest
from playwright.sync_api import expect

from analysis.runs.player import script
from app.frames.lanes import SCHEMA

from .test_live import number, press_main, stop, wait_read

pytestmark = pytest.mark.browser


def test_a_context_shift_without_its_first_tokens_loses_the_model(app, page):
    lanes = "streaming:sinks%3D4,window%3D60", "shift:window%3D60,keep%3D4", "shift:window%3D64,keep%3D0"
    page.goto(f"{app}/?{'&'.join(f'lane={lane}' for lane in lanes)}")
    press_main(page)
    for lane in range(3):
        wait_read(page, lane, 129)
        assert 0 < number(page, "kept", lane) <= 64
    # Against the first lane.
    page.wait_for_function("() => parseFloat(document.querySelectorAll('.sk-big')[2].textContent) > 1.25")
    assert number(page, "big", 1) < 0.8 * number(page, "big", 2)
    stop(page)
    assert not page.problems and not page.strangers


def test_blocks_keep_more_slots_than_tokens_are_looked_at(app, page):
    band, ranked = "streaming:sinks%3D4,window%3D28,block%3D16", "h2o:budget%3D64,recent%3D16,interval%3D16,block%3D16"
    page.goto(f"{app}/?lane={band}&lane={ranked}")
    press_main(page)
    for lane in (0, 1):
        wait_read(page, lane, 200)
    assert 0 < number(page, "kept", 0) <= 48
    stop(page)
    assert not page.problems and not page.strangers


def megabytes(page, lane: int) -> float:
    """What a lane's cache takes, as its card says it."""
    amount, unit = re.search(r"([\d.,]+) (kB|MB)", page.locator(".sk-kept").nth(lane).inner_text()).groups()
    return float(amount.replace(",", "")) * {"kB": 0.001, "MB": 1.0}[unit]


def test_a_cache_of_four_bits_is_smaller_shows_its_ranges_and_gets_its_bits_back(app, page):
    usual, packed = "streaming:sinks%3D4,window%3D252", "streaming:sinks%3D4,window%3D252,cache%3Dint4,exact%3D4"
    page.goto(f"{app}/?lane={usual}&lane={packed}&shown=1&head=12.3")
    press_main(page)
    for lane in (0, 1):
        wait_read(page, lane, 300)
    assert megabytes(page, 1) < 0.8 * megabytes(page, 0)
    page.get_by_role("heading", name="Ranges of its keys layer 12, KV head 1").wait_for()
    said = re.compile(r"Range of each of 64 channels .* the first tokens reach beyond all others")
    expect(page.locator("canvas.sk-ranges")).to_have_attribute("aria-label", said)
    # In the middle of the text it goes on with all of its bits, and what was lost stays lost.
    page.get_by_role("button", name="switch ▾").nth(1).click()
    form = page.locator(".sk-form:visible")
    form.locator("select[name=cache]").select_option("own")
    form.get_by_role("button", name="Apply").click()
    page.get_by_test_id("stSidebar").get_by_text(re.compile(r"from token \d+ on")).wait_for()
    page.wait_for_function("() => document.querySelector('.sk-ranges').closest('section').hidden")
    read = int(number(page, "read", 1))
    wait_read(page, 1, read + 64)
    assert megabytes(page, 1) == megabytes(page, 0)
    stop(page)
    assert not page.problems and not page.strangers


@pytest.fixture
def form(page):
    """The form that switches a lane, open on a window of 16 tokens, as `lane`; what was asked for, as `asked`."""
    page.set_content("<div class='sk' id='root'><div class='sk-card'></div></div>")
    page.add_script_tag(content=f"{script()}\nwindow.makeSwitch = makeSwitch;")
    page.evaluate(
        """(schema) => {
          window.lane = { policy: "window:window=16,block=1", offers: [], read: 0, sinks_held: 0 };
          const send = (name, { at, ...what }) => { window.asked = what; };
          const make = makeSwitch(send, 0, () => ({ lanes: [lane], schema }));
          document.querySelector(".sk-card").append(make.button, make.form);
        }""",
        SCHEMA,
    )
    return page


@pytest.mark.parametrize(("policy", "setting"), [("streaming", "sinks"), ("shift", "keep"), ("duo", "sinks")])
def test_first_tokens_that_have_left_are_asked_for_whatever_a_policy_calls_them(form, policy, setting):
    form.evaluate("Object.assign(lane, { read: 200, sinks_held: 0 })")
    form.get_by_role("button", name="switch ▾").click()
    form.get_by_label("Policy").select_option(policy)
    expect(form.get_by_role("button", name="Apply")).to_have_count(0)
    form.get_by_role("button", name="Pin the sinks again").click()
    asked = form.evaluate("asked")
    assert asked["pin"] and asked["policy"].startswith(f"{policy}:") and f"{setting}=" in asked["policy"]


def test_first_tokens_that_leave_while_the_form_is_open_are_asked_for_when_it_is_sent(form):
    form.evaluate("Object.assign(lane, { read: 12, sinks_held: 12 })")
    form.get_by_role("button", name="switch ▾").click()
    form.get_by_label("Policy").select_option("streaming")
    form.evaluate("Object.assign(lane, { read: 200, sinks_held: 0 })")
    form.get_by_role("button", name="Apply").click()
    assert form.evaluate("window.asked") is None
    expect(form.get_by_role("button", name="Pin the sinks again")).to_be_focused()
    form.get_by_role("button", name="Go on without").click()
    assert form.evaluate("asked.pin") is False
