"""The reading page in a real browser: four lanes, the real model, and thirty thousand tokens behind them."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from .history import BEHIND, begin
from .report import head, line
from .sizes import size

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def main() -> None:
    head("The reading page, first start to first token")
    first_story()
    first_token()
    head(f"The reading page, four lanes and {BEHIND:,} tokens behind them")
    frames()
    busy()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class App:
    """The app in a process of its own, on a port of its own unless one is named."""

    def __init__(self, script: str = "app/main.py", port: int | None = None, **variables: str) -> None:
        port = port or free_port()
        command = [sys.executable, "-m", "streamlit", "run", script, "--server.headless=true", f"--server.port={port}"]
        self.began = time.time()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        )
        self.address = f"http://127.0.0.1:{port}"
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/_stcore/health", timeout=1)
                return
            except OSError:
                time.sleep(0.1)

    def __enter__(self) -> "App":
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(10)


def browser_page(p):
    browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
    # Playwright waits by evaluating strings, which the app's policy lets no page do.
    page = browser.new_context(viewport={"width": 1440, "height": 900}, bypass_csp=True).new_page()
    page.set_default_timeout(120_000)
    return page


def wait_read(page, tokens: int, timeout: float = 120_000) -> None:
    page.wait_for_function(
        "n => parseInt((document.querySelector('.sk-read')?.textContent || '0').replace(/,/g, '')) >= n",
        arg=tokens,
        timeout=timeout,
    )


def first_story() -> None:
    """How soon a fresh start, with nothing in the cache folder, plays the first story of the gallery."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p, TemporaryDirectory() as cache, App(SINKSCOPE_CACHE=cache) as app:
        page = browser_page(p)
        page.goto(app.address)
        page.wait_for_function("() => window.__sinkscope?.published > 1")
        after = page.evaluate(
            "() => window.__sinkscopeFrames[0].painted - performance.timeOrigin / 1000"
            " - performance.getEntriesByName('first-paint')[0].startTime / 1000"
        )
        line("from first paint to the first story's first frame", after, "≤ 2", unit="s", good=after <= 2)
        page.context.browser.close()


def first_token() -> None:
    """How soon a second start reads: the browser is open, and has been at this address before."""
    from playwright.sync_api import sync_playwright

    port, said = free_port(), "from the command to the first token on screen"
    with sync_playwright() as p:
        page = browser_page(p)
        with App(port=port) as app:
            never_there, _ = until_first_token(app, page)
        with App(port=port) as app:
            whole, pressed = until_first_token(app, page)
        page.context.browser.close()
    line(said, whole, "≤ 5", unit="s", good=whole <= 5, digits=1)
    line("    of it from the press", pressed, "", unit="s", digits=1)
    line("    with a browser that was never there before", never_there, "", unit="s", digits=1)


def until_first_token(app: App, page) -> tuple[float, float]:
    """Seconds until the first token of a reading is on screen, from the command and from the press that begins it."""
    page.goto(app.address)
    page.wait_for_selector(".sk-toolbar .sk-go")
    pressed = time.time()
    page.click(".sk-toolbar .sk-go")
    # What had been read before is the recorded story.
    page.wait_for_selector(".sk-player", state="detached")
    wait_read(page, 2)
    now = time.time()
    page.get_by_role("button", name="Stop").click()
    return now - app.began, now - pressed


def frames() -> None:
    """What a frame costs the server, on a run that has read thirty thousand tokens."""
    from app.frames.reading import ReadingSender, View
    from app.jobs.registry import REGISTRY

    run = begin()
    run.request("paused")
    view, sender, seconds = View(reference=1, chosen=1, head=(25, 5)), ReadingSender(), []
    run.map(1, 25, 5)
    time.sleep(1.5)
    for _ in range(size(60, 2)):
        run.renew_lease()
        began = time.perf_counter()
        blob = sender.frame(run, view).packed()
        seconds.append(time.perf_counter() - began)
    line(
        "building a frame on the server, p95",
        1e3 * np.quantile(seconds, 0.95),
        "≤ 20",
        unit="ms",
        good=np.quantile(seconds, 0.95) <= 0.02,
        digits=1,
    )
    line("    its size, map included", len(blob) / 1e3, "", unit="kB", digits=0)
    REGISTRY.free(run.id)


STAGED = """
import streamlit as st

if __name__ != "__main__":
    from app.feed import ROUTES

    app = st.App(__file__, routes=ROUTES)
else:
    from tests.bench.history import page

    page()
"""


def staged(folder: Path) -> str:
    """A script that opens the reading page with its history, beside the files that the page is served, and serves its
    frames."""
    (folder / "main.py").write_text(STAGED)
    shutil.copytree(ROOT / "app/static", folder / "static")
    return str(folder / "main.py")


def busy() -> None:
    """Event → painted, and what the page takes of a core, while the real model reads."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p, TemporaryDirectory() as folder, App(staged(Path(folder))) as app:
        page = browser_page(p)
        page.goto(app.address)
        wait_read(page, BEHIND)
        page.wait_for_function("() => window.__sinkscopeFrames?.length")
        page.wait_for_timeout(size(4_000, 500))
        clocks = [page.context.new_cdp_session(page) for _ in range(2)]
        for clock, domain in zip(clocks, ("timeTicks", "threadTicks"), strict=True):
            clock.send("Performance.enable", {"timeDomain": domain})

        def tasks() -> np.ndarray:
            """Seconds of the page's tasks, and of the processor that they had of these."""
            measured = [clock.send("Performance.getMetrics")["metrics"] for clock in clocks]
            return np.array([{m["name"]: m["value"] for m in metrics}["TaskDuration"] for metrics in measured])

        server = psutil.Process(app.process.pid)
        page.evaluate("window.__sinkscopeFrames.length = 0")
        before, began, cpu = tasks(), time.time(), sum(server.cpu_times()[:2])
        page.wait_for_timeout(size(20_000, 1_000))
        page.wait_for_function("() => window.__sinkscopeFrames.length")
        share, processor = (tasks() - before) / (time.time() - began)
        seen = page.evaluate("window.__sinkscopeFrames.map((f) => f.painted - f.published)")
        line("event → painted, p50", 1e3 * np.quantile(seen, 0.5), "", unit="ms", digits=0)
        line(
            "event → painted, p95",
            1e3 * np.quantile(seen, 0.95),
            "≤ 400",
            unit="ms",
            good=np.quantile(seen, 0.95) <= 0.4,
            digits=0,
        )
        line("the page's main thread, of a core", share, "≤ 0.15", good=share <= 0.15, digits=2)
        line("    of that, computing and not waiting for a processor", processor, "", digits=2)
        line(
            "    server and engine, of a core",
            (sum(server.cpu_times()[:2]) - cpu) / (time.time() - began),
            "",
            digits=2,
        )
        # Marks of switches are whole lines; the others come and go with what is shown.
        marks = "document.querySelector('.sk-plot').layout.shapes.filter((s) => s.line.dash === 'solid').length"
        waits = []
        for name in ("Drop the sinks", "Bring the sinks back") * size(3, 1):
            lane = page.locator(".sk-card").nth(3)
            lane.get_by_role("button", name="switch ▾").click()
            # Before the click: a mark may be there as soon as it is done.
            before = page.evaluate(marks)
            clicked = time.time()
            page.get_by_role("button", name=name, exact=True).click()
            page.wait_for_function(f"n => {marks} > n", arg=before)
            waits.append(time.time() - clicked)
            page.wait_for_timeout(1500)
        line(
            "click on a switch → marked on the curve, worst of six",
            max(waits),
            "≤ 1",
            unit="s",
            good=max(waits) <= 1,
            digits=2,
        )
        page.get_by_role("button", name="Stop").click()
        page.context.browser.close()
