"""What a lane predicts beside the first one, on the board in a real browser: its curves, its grid, and its link."""

import re

import pytest
from playwright.sync_api import expect

from .conftest import PATIENCE
from .test_live import press_main, stop, wait_read

pytestmark = pytest.mark.browser

LANES = "lane=dense&lane=window:window%3D64"
LAST = (
    "(lane) => { const y = document.querySelector('.sk-plot').data?.[lane]?.y || []; return Number(y[y.length - 1]); }"
)
"""The last value of a lane's curve, as it is drawn."""


def test_fidelity_is_drawn_as_it_is_measured_and_a_link_says_it(app, page):
    page.goto(f"{app}/?{LANES}&fidelity=on")
    expect(page.get_by_role("checkbox", name="Measure fidelity")).to_be_checked(timeout=PATIENCE)
    press_main(page)
    wait_read(page, 1, 200)
    page.get_by_role("button", name="KL", exact=True).click()
    page.get_by_text("KL divergence from Dense").wait_for()
    # The first lane is what the others are measured against; one that has evicted predicts something else.
    page.wait_for_function(f"() => ({LAST})(0) === 0 && ({LAST})(1) > 0.05")
    page.get_by_role("button", name="top-1", exact=True).click()
    page.get_by_text("Same most probable token as Dense").wait_for()
    page.wait_for_function(f"() => ({LAST})(0) === 100 && ({LAST})(1) > 10 && ({LAST})(1) < 99")
    page.get_by_text("higher is better").wait_for()
    # Of the second lane, the output of every head, and how far it is off.
    page.locator(".sk-card").nth(1).click()
    page.wait_for_function("location.search.includes('shown=1')")
    page.get_by_role("button", name="output error").click()
    said = re.compile(r"Output error of 30 layers of 9 heads; the largest is (0\.[1-9]|0\.0[1-9]|[1-9])")
    expect(page.locator("canvas.sk-grid")).to_have_attribute("aria-label", said)
    stop(page)
    page.wait_for_function("['fidelity=on', 'mode=top-1', 'grid=output'].every((s) => location.search.includes(s))")
    # Another tab shows the same.
    other = page.context.new_page()
    other.goto(page.url)
    other.get_by_text("Same most probable token as Dense").wait_for(timeout=PATIENCE)
    expect(other.locator("canvas.sk-grid")).to_have_attribute("aria-label", re.compile("Output error"))
    other.close()
    assert not page.problems and not page.strangers


def test_what_was_not_measured_says_how_to_measure_it(app, page):
    page.goto(f"{app}/?{LANES}&mode=KL")
    page.get_by_text(
        "Not measured: tick Measure fidelity at the left, with two lanes or more, and press Start."
    ).wait_for()
    press_main(page)
    wait_read(page, 1, 100)
    page.get_by_text("with two lanes or more, and press Restart.").wait_for()
    assert not page.locator(".sk-plot").first.locator("path.js-line").count()
    # No empty axes stand below it; another curve has them again.
    assert not page.locator(".sk-plot").first.is_visible() and not page.get_by_text("drag to zoom").is_visible()
    assert page.locator(".sk-memory .main-svg").first.is_visible()
    page.get_by_role("button", name="rolling", exact=True).click()
    page.locator(".sk-plot").first.locator("path.js-line").first.wait_for()
    page.get_by_text("drag to zoom").wait_for()
    stop(page)
    assert not page.problems and not page.strangers
