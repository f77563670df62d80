"""Several people look at one run: all see it, and one steers it."""

import pytest

from .conftest import PATIENCE
from .test_live import press_main, wait_read

pytestmark = pytest.mark.browser


def test_two_browsers_watch_one_run_and_one_takes_over(app, page, browser):
    page.goto(app)
    page.get_by_text("Recompute 128 / 16").first.wait_for()
    press_main(page)
    wait_read(page, 0, 33)
    page.wait_for_function("location.search.includes('run=')")
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    try:
        other = context.new_page()
        other.set_default_timeout(PATIENCE)
        other.goto(page.url)
        # Who comes by the link sees the same run, is told who steers it, and has no say in it.
        other.get_by_text("Viewer 1 steers this reading. You are viewer 2 of 2.").wait_for()
        # The sentence may be there before the first frame is drawn.
        other.locator(".sk-toolbar .sk-go[disabled]").wait_for()
        assert other.get_by_role("button", name="■ Stop").is_disabled()
        other.keyboard.press("k")
        assert page.locator(".sk-toolbar .sk-go").inner_text() == "❚❚ Pause"
        other.get_by_role("button", name="Take over").click()
        other.locator(".sk-toolbar .sk-go:not([disabled])").click()
        # The one who began it is told, and can take over again.
        page.get_by_text("Viewer 2 has taken over this reading. You are viewer 1 of 2.").wait_for()
        page.get_by_text("▶ Resume").wait_for()
        assert page.locator(".sk-toolbar .sk-go").is_disabled()
        page.get_by_role("button", name="Take over").click()
        other.get_by_text("Viewer 1 has taken over").wait_for()
        page.locator(".sk-toolbar .sk-go:not([disabled])").click()
        other.get_by_text("❚❚ Pause").wait_for()
        # Where the one who steers is gone, whoever is left does.
        address = page.url
        page.goto("about:blank")
        other.get_by_role("button", name="■ Stop").click()
        other.get_by_text("Stopped.").wait_for()
        # The board is told that it stopped before the page's run ends and takes away what stands no more.
        other.get_by_text("has taken over").wait_for(state="detached")
        assert other.url == address
    finally:
        context.close()
