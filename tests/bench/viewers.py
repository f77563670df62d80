"""Many people watch one run: what a frame then takes until it is painted, and what each of them costs the server.

One browser is measured, alone and again while others watch too, who speak the protocol of pages without a browser: so
many browsers would share this machine's processor with the server, and say more about that than about the server.

What a page costs in memory is what the last of them add while the run stands still: the first ones bring what is there
once for all, and lanes that read fill their caches.
"""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import numpy as np
import psutil

from tests.viewer import Viewer

from .page import App, browser_page, staged, wait_read
from .report import head, line, said
from .sizes import size

VIEWERS = size(20, 4)
FEW = size(5, 2)
"""Pages after which what is there once for all is there."""
SECONDS = size(20, 2)
ROUNDS = size(2, 1)
"""One and all, in turns, since other programs come and go."""


def main() -> None:
    """Let one watch, then all, then one again."""
    head(f"{VIEWERS} pages watch one reading")
    said("load of the machine before", " ".join(f"{load:.1f}" for load in os.getloadavg()))
    with TemporaryDirectory() as folder:
        os.environ["SINKSCOPE_RUNS"] = f"{folder}/runs"
        watch(staged(Path(folder)))
    said("load of the machine after", " ".join(f"{load:.1f}" for load in os.getloadavg()))


def watch(script: str) -> None:
    """Measure frames of one browser, with and without others, and what others add to the server's memory."""
    from playwright.sync_api import sync_playwright

    alone, together = list[float](), list[float]()
    with sync_playwright() as p, App(script) as app:
        page = browser_page(p)
        page.goto(app.address)
        wait_read(page, 2)
        page.wait_for_function("() => location.search.includes('run=')")
        query, server = urlsplit(page.url).query, psutil.Process(app.process.pid)
        page.wait_for_timeout(1e3 * size(5, 1))
        steer(page, "❚❚ Pause", "▶ Resume")
        with ExitStack() as others:
            opened(others, page, app.address, query, FEW)
            few = resident(server, app.address)
            opened(others, page, app.address, query, VIEWERS - FEW)
            memory = (resident(server, app.address) - few) / (VIEWERS - FEW) / 1e6
        steer(page, "▶ Resume", "❚❚ Pause")
        for _ in range(ROUNDS):
            page.wait_for_timeout(1e3 * size(3, 1))
            alone += frames(page)
            with ExitStack() as others:
                watching = opened(others, page, app.address, query, VIEWERS - 1)
                before = [viewer.messages for viewer in watching]
                together += frames(page)
                wait_served(page, watching, [messages + 1 for messages in before])
        page.context.browser.close()
    one, all_ = (float(np.quantile(seen, 0.95)) for seen in (alone, together))
    line("event → painted, p95, one page", 1e3 * one, "", unit="ms", digits=0)
    line(f"event → painted, p95, {VIEWERS} pages", 1e3 * all_, "", unit="ms", digits=0)
    line("    the second, times the first", all_ / one, "≤ 1.5", good=all_ <= 1.5 * one, digits=2)
    line(f"server memory, each page from {FEW} to {VIEWERS}", memory, "≤ 3", unit="MB", good=memory <= 3, digits=2)


def steer(page, press: str, then: str) -> None:
    """Press a button, and wait until it says something else."""
    page.get_by_role("button", name=press, exact=True).click()
    page.get_by_role("button", name=then, exact=True).wait_for()


def opened(pages: ExitStack, page, address: str, query: str, count: int) -> list[Viewer]:
    """So many more pages that watch, once all of them are served."""
    watching = [pages.enter_context(Viewer(address, query)) for _ in range(count)]
    wait_served(page, watching, [100] * count)
    return watching


def wait_served(page, watching: list[Viewer], messages: list[int]) -> None:
    """Let the browser go on until each of the others has had so many messages."""
    until = time.monotonic() + 120
    while any(v.messages < least for v, least in zip(watching, messages, strict=True)):
        assert time.monotonic() < until, "a page that watches is not served"
        page.wait_for_timeout(200)


def resident(server: psutil.Process, address: str) -> int:
    """Bytes that the server holds, when it has given back what is free."""
    with Viewer(address, "tidy=now") as tidy:
        while tidy.query != "tidy=done":
            time.sleep(0.1)
    return server.memory_info().rss


def frames(page) -> list[float]:
    """Seconds from event to painted, of the frames of some time, and of one at least: the lane that computes its window
    again for every token takes seconds for a chunk on one core, and nothing is new meanwhile."""
    page.evaluate("window.__sinkscopeFrames.length = 0")
    page.wait_for_timeout(1e3 * SECONDS)
    page.wait_for_function("() => window.__sinkscopeFrames.length")
    return page.evaluate("window.__sinkscopeFrames.map((f) => f.painted - f.published)")
