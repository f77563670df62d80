"""A recording in a browser: how soon its first frame is painted, and how long a jump to any of its moments takes."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from analysis.runs.folder import save

from ..recordings import made_up
from .report import head, line
from .sizes import size

TOKENS, JUMPS = size(60_000, 3_000), size(100, 10)

JUMP = """position => new Promise((done) => {
  const slider = document.querySelector(".sk-scrub"), began = performance.now();
  const there = () => window.__sinkscope?.published === position;
  const seen = () => (there() ? done(performance.now() - began) : requestAnimationFrame(seen));
  slider.value = position;
  slider.dispatchEvent(new Event("input"));
  seen();
})"""


def main() -> None:
    """Open a recording of four lanes in the app, and jump about in it."""
    from playwright.sync_api import sync_playwright

    from ..e2e.conftest import FLAGS, started

    head(f"Replay of {TOKENS:,} tokens, four lanes")
    with tempfile.TemporaryDirectory() as home:
        save(made_up(TOKENS, layers=30, heads=9), Path(home) / "long", text_sha256="", weights_sha256="")
        with started(SINKSCOPE_RUNS=home) as (app, _), sync_playwright() as p:
            browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(f"{app}/?run=long")
            page.wait_for_selector(".sk-plot .main-svg", timeout=90_000)
            first = page.evaluate(
                "() => window.__sinkscopeFrames[0].painted * 1000 - performance.timeOrigin"
                " - performance.getEntriesByName('first-paint')[0].startTime"
            )
            cdp = page.context.new_cdp_session(page)
            cdp.send("Performance.enable", {"timeDomain": "threadTicks"})
            positions = np.random.default_rng(0).integers(1, TOKENS, JUMPS).tolist()
            before = busy(cdp)
            jumps = [page.evaluate(JUMP, position) for position in positions]
            taken = (busy(cdp) - before) / len(jumps)
            browser.close()
    line("first frame of a recording after first paint", first / 1000, "≤ 2", unit="s", good=first <= 2000)
    p95 = float(np.quantile(jumps, 0.95))
    line("jump to any moment, p95", p95, "≤ 100", unit="ms", good=p95 <= 100, digits=0)
    line("    of the processor, by the page's thread, mean", 1e3 * taken, "", unit="ms", digits=0)


def busy(cdp) -> float:
    """Seconds of the processor that the page's thread has taken."""
    return next(m["value"] for m in cdp.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration")
