"""A walk through every page, wide and narrow, light and dark: nothing sticks out, nothing is cut, nothing complains.

Set SINKSCOPE_SHOTS to a folder to get a picture of everything that is seen on the way.
"""

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest

from .conftest import choose
from .test_learn import BRIGHTNESS
from .test_live import press_main, stop, wait_read

pytestmark = pytest.mark.browser

SIZES = ((1440, 900), (1920, 1080), (400, 900))
SHOTS = os.environ.get("SINKSCOPE_SHOTS")
HEADINGS = (
    "[...document.querySelectorAll('h1, h2, h3, h4')].filter((e) => e.checkVisibility()).map((e) => +e.tagName[1])"
)
WIDER = """[document.documentElement, ...document.querySelectorAll('[data-testid=stMain]')]
  .map((e) => e.scrollWidth - e.clientWidth).filter((w) => w > 0)"""
CUT = """[...document.querySelectorAll('[data-testid=stApp] *')].filter((e) => {
  // What is chosen in a box is written in a field, and its own where a node of text is.
  const own = e.matches('[data-testid=stSelectbox] input')
    || [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  // What is hidden from eyes alone is a pixel wide.
  if (!own || e.clientWidth <= 1 || e.matches('select, option')) return false;
  if (e.closest('svg, [aria-hidden=true], code')) return false;
  const style = getComputedStyle(e);
  const seen = e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  if (!seen || style.display === 'inline') return false;
  const holder = e.closest('[data-testid=stSidebar]');
  if (holder?.dataset.collapsed === 'true') return false;
  return !/auto|scroll/.test(style.overflowX) && e.scrollWidth > e.clientWidth + 1;
}).map((e) => `${e.className}: ${(e.value || e.textContent).trim().slice(0, 60)}, ${e.scrollWidth} px`)"""
COVERED = """[...document.querySelectorAll('[data-testid=stTopNav] > *, [data-testid=stTopNav] a')].filter((e) => {
  const { left, top, width, height } = e.getBoundingClientRect();
  if (!width || !e.checkVisibility({ opacityProperty: true, visibilityProperty: true })) return false;
  const there = document.elementFromPoint(left + width - 4, top + height / 2);
  return !there?.closest('[data-testid=stTopNav]');
})"""
"""Ways to other pages on whose end something else lies."""

STALE = """(dark) => [...document.querySelectorAll('.js-plotly-plot .xtick text')].filter((e) => {
  const [r, g, b] = getComputedStyle(e).fill.match(/\\d+/g).map(Number);
  return (0.299 * r + 0.587 * g + 0.114 * b > 127) !== dark;
}).length"""
"""Labels of charts whose colour is that of the other scheme."""


def wrong(page, dark: bool) -> list[str]:
    """What is wrong with what is on screen just now."""
    levels = page.evaluate(HEADINGS)
    found = [f"{wide} px too wide" for wide in page.evaluate(WIDER)] + [f"cut: {c}" for c in page.evaluate(CUT)]
    if levels[:1] != [1] or levels.count(1) != 1 or any(b - a > 1 for a, b in pairwise(levels)):
        found.append(f"headings {levels}")
    if page.evaluate(STALE, dark):
        found.append("charts have the colours of the other scheme")
    return found


def look(page, name: str, sizes=SIZES) -> None:
    """Look at what is on screen, at every size and in both schemes; what is wrong joins the page's problems."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"dark => (({BRIGHTNESS})() < 64) === dark", arg=scheme == "dark")
        for width, height in sizes:
            page.set_viewport_size({"width": width, "height": height})
            # The page is laid out anew, and drawn: not at once everywhere.
            for _ in range(20):
                page.wait_for_timeout(100)
                if not (found := wrong(page, scheme == "dark")):
                    break
            page.problems.extend(f"{name}, {width} px, {scheme}: {what}" for what in found)
            if SHOTS:
                page.wait_for_timeout(300)
                page.screenshot(path=str(Path(SHOTS) / f"{name}-{width}-{scheme}.png"))
    page.set_viewport_size({"width": SIZES[0][0], "height": SIZES[0][1]})


def project(page, name: str) -> None:
    """The same on a projector: one key there, and the same key back."""
    # In a field it would be a letter.
    page.evaluate("document.activeElement.blur()")
    page.locator("body").press("p")
    page.get_by_test_id("stSidebar").wait_for(state="hidden")
    assert "projected=1" in page.url
    look(page, f"{name}-projected", SIZES[1:2])
    page.locator("body").press("p")
    page.get_by_test_id("stSidebar").wait_for()


def test_nothing_lies_on_the_way_to_other_pages_at_any_width(app, page):
    """Pages that have no room beside the corner are in a menu."""
    page.goto(f"{app}/runs")
    page.get_by_role("button", name="Project").wait_for()
    page.get_by_role("link", name="Learn", exact=True).wait_for()
    for width in (1280, 1100, 1024, 960, 820, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        # Laid out anew: not at once.
        page.wait_for_function(f"{COVERED}.length === 0")
    page.set_viewport_size({"width": 820, "height": 900})
    page.wait_for_function(f"{COVERED}.length === 0")
    page.get_by_text(re.compile(r"^\d+ more$")).first.click()
    page.get_by_test_id("stTopNavDropdownLink").filter(has_text="Learn").click()
    page.get_by_text("Sum of the weights").first.wait_for()
    assert not page.problems, page.problems


def test_every_page_at_every_size_in_both_schemes(app, page):
    page.goto(f"{app}/?lane=streaming:sinks=4,window=60&lane=window:window=64")
    page.get_by_text("Window 64").first.wait_for()
    look(page, "read-before")
    press_main(page)
    wait_read(page, 1, 200)
    stop(page)
    look(page, "read")
    project(page, "read")
    for name, there in (
        ("Chat", "Nothing was said yet"),
        ("Heads", "What is each head's sink worth?"),
        ("Figures", "Download"),
        ("Learn", "Sum of the weights"),
    ):
        page.get_by_role("link", name=name, exact=True).click()
        if name == "Figures":
            choose(page, page.get_by_role("combobox", name="Figure"), "Perplexity curves")
        page.get_by_text(there).first.wait_for()
        look(page, name.lower())
        project(page, name.lower())
    for panel in ("Measures", "What is each head's sink worth?"):
        page.get_by_role("link", name="Heads", exact=True).click()
        page.get_by_text(panel, exact=True).first.click()
        page.get_by_text(panel, exact=True).first.wait_for()
        look(page, f"heads-{panel[:8].lower()}", SIZES[::2])
    # What the narrow page folds away.
    page.set_viewport_size({"width": 400, "height": 900})
    page.get_by_test_id("stExpandSidebarButton").click()
    page.get_by_role("link", name="Chat", exact=True).wait_for()
    page.wait_for_function(f"{CUT}.length === 0")
    assert not page.problems and not page.strangers, "\n".join(page.problems)
