"""Takes the pictures of the documents anew: `make screenshots`, or `python -m tests.screenshots NAME …` for some.

The app as a person starts it, in a headless browser.  Most pages replay the gallery and need no model; those of
heads, of a token, of recall and of the verdict compute what they show, which takes minutes.
"""

import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright

from analysis.runs.library import GALLERY

from .e2e.conftest import FLAGS, ROOT, started, wait_until

OUT = ROOT / "assets" / "screenshots"
SIZE = {"width": 1440, "height": 900}
PATIENCE = 300_000
"""Milliseconds that something may take, with other work on the machine."""
Show = Callable[[Page], object]
until = partial(wait_until, timeout=PATIENCE)


def settled(page: Page) -> None:
    """Let fonts, pictures and what moves come to rest, with the pointer out of the way."""
    page.mouse.move(5, 895)
    # A plot that is hidden draws nothing.
    drawn = "!plot.clientHeight || plot.querySelector('.main-svg')"
    until(page, f"[...document.querySelectorAll('.sk-plot')].every((plot) => {drawn})")
    page.wait_for_timeout(2500)


def replayed(page: Page) -> None:
    page.locator(".sk-scrub").wait_for()
    until(page, "window.__sinkscope?.published > 0")


def captured(page: Page) -> None:
    page.get_by_role("button", name="Capture").click()
    until(page, "window.__sinkscope_atlas?.tile >= 1")
    page.wait_for_timeout(5000)


def computed(name: str, result: str) -> Show:
    """Press a button, and wait for something of this selector."""

    def show(page: Page) -> None:
        page.get_by_role("button", name=name, exact=True).click()
        page.locator(result).first.wait_for()
        page.locator("[data-testid=stProgress]").wait_for(state="detached")

    return show


def looked_back(page: Page) -> None:
    """A conversation in which a token of the first answer is chosen."""
    page.get_by_role("button", name="Where it breaks down").click()
    page.locator(".sk-lane").first.locator(".sk-user").nth(2).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator(".sk-lane").first.locator(".sk-assistant").last.locator("span").nth(5).click()
    page.get_by_text("looked back at").first.wait_for()


def recalled(page: Page) -> None:
    """A whole map, and a cell of it in which a policy has lost the fact."""
    page.get_by_role("button", name="Start", exact=True).click()
    page.locator(".sk-recall-grid button.sk-done").first.wait_for()
    # A map takes longer than all other pictures.
    page.locator("[data-testid=stProgress]").wait_for(state="detached", timeout=3 * PATIENCE)
    page.locator(".sk-recall-map").nth(2).get_by_role("button", name="384 tokens, depth 50 %").click()
    page.locator(".sk-excerpt").wait_for()
    page.locator(".js-plotly-plot").nth(1).wait_for()


def weighed(page: Page) -> None:
    """A whole comparison: its sentence, its picture and its table."""
    page.get_by_role("button", name="Start", exact=True).click()
    # The picture stands there once the first policy is known.
    page.locator(".sk-chart .main-svg").first.wait_for(timeout=3 * PATIENCE)
    page.locator("[data-testid=stProgress]").wait_for(state="detached", timeout=3 * PATIENCE)
    page.locator(".sk-sentence").wait_for()


def trained(page: Page) -> None:
    """So far that a sink has grown."""
    page.get_by_text(re.compile(r"[4-8]\d\d of 800 steps")).wait_for()


def dropped(page: Page) -> None:
    """So far that the window has long lost its sinks, and not what was recorded."""
    until(page, "/keeps [5-9]\\d\\d$/.test(document.querySelector('[data-testid=stMetric]')?.innerText)")


def there(selector: str) -> Show:
    return lambda page: page.locator(selector).first.wait_for()


FORGETFUL = "&".join(
    f"lane={quote(policy)}"
    for policy in ("dense", "window:window=128", "streaming:sinks=4,window=124", "h2o:budget=128,recent=64,interval=16")
)
SMALL = "budgets=64,128&tokens=512&kl=0&lengths=256&depths=5,95"
"""A comparison of the policies that the page begins with, of a quarter of the tokens."""
PICTURES: dict[str, tuple[str, Show]] = {
    "read-light": ("/?run=gallery:four&at=3000", replayed),
    "read-dark": ("/?run=gallery:four&at=3000", replayed),
    "switch-light": ("/?run=gallery:drop&at=3000", replayed),
    "choice-light": ("/?run=gallery:choice&at=1500", replayed),
    "interventions-light": ("/?run=gallery:what&at=1500", replayed),
    "chat-light": ("/chat?run=gallery:breakdown", replayed),
    "chat-dark": ("/chat?run=gallery:breakdown", replayed),
    "chat-token": ("/chat", looked_back),
    "heads-light": ("/heads?tokens=1024", captured),
    "heads-dark": ("/heads?tokens=1024", captured),
    "measures-light": ("/heads?panel=measures&tokens=256", computed("Measure", ".js-plotly-plot")),
    "knockouts-light": ("/heads?panel=knockouts&tokens=128&layer=20", computed("Start", ".js-plotly-plot")),
    "recall-light": (f"/recall?lengths=128,192,256,384&depths=5,25,50,75,95&{FORGETFUL}", recalled),
    "verdict-light": (f"/verdict?{SMALL}", weighed),
    "figures-light": ("/figures?figure=perplexity&run=four", there("[data-testid=stImage] img")),
    "learn-light": ("/learn?chapter=emergence", trained),
    "learn-row-light": ("/learn?chapter=row", there("[data-testid=stMetricValue]:has-text('1.000')")),
    "learn-drop-dark": ("/learn?chapter=drop", dropped),
}
"""Where each picture is taken, and what is done there first; its name ends with its colours."""


def main(names: list[str]) -> None:
    """Take these pictures, or all of them."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or sys.exit("no chromium on the PATH")
    with (
        tempfile.TemporaryDirectory() as runs,
        started(SINKSCOPE_RUNS=runs) as (address, _),
        sync_playwright() as playwright,
    ):
        # Figures are made of runs of the library.
        shutil.copytree(GALLERY / "four", Path(runs) / "four")
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name in names or PICTURES:
            where, show = PICTURES[name]
            scheme = "dark" if name.endswith("-dark") else "light"
            page = browser.new_page(viewport=SIZE, color_scheme=scheme)
            page.set_default_timeout(PATIENCE)
            page.goto(f"{address}{where}")
            show(page)
            settled(page)
            page.screenshot(path=OUT / f"{name}.png")
            page.context.close()
            print(OUT / f"{name}.png", flush=True)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
