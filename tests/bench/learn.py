"""The lesson in a real browser: how soon chapters show what was recorded and what is live, a sink that grows, the
exponents of costs."""

import re
import time

from app.lesson import lesson

from .page import App, browser_page
from .report import head, line, said
from .sizes import TOY, size

RESULTS = {
    "row": "[data-testid=stMetricValue]",
    "first": "td:has-text('/ 270')",
    "nothing": "[role=img][aria-label*='11.5']",
    "drop": "[data-testid=stMetricValue]:has-text('.')",
    "enough": "[data-testid=stMetricValue]:has-text('×')",
    "cost": "[role=img][aria-label*='T²']",
    "chunks": "td:has-text('e-0')",
    "heads": "[role=img][aria-label*='8.59 GB']",
    "emergence": "[role=img][aria-label*='0.0']",
}
WANTED = {"Dense": 2, "Window": 1, "Recompute": 1, "Sinks + window": 1, "Recompute, in the window": 2}
LIVE, RECORDED = (lesson("en")["page"].words[word].partition(" {")[0] for word in ("live", "recorded"))
"""What the line below a result begins with."""
SLOW = {"cost": "when it has read enough for exponents"}
"""Chapters whose live result takes longer than a page should, and when it is there."""
GROWN = size(0.3, 0.0)
"""Weight on the first token that counts as a sink."""


def main() -> None:
    from playwright.sync_api import sync_playwright

    head("The lesson, from the arrow key to a chapter's first result and to its live one (the model is loaded)")
    with App() as app, sync_playwright() as p:
        page = browser_page(p)
        page.goto(f"{app.address}/learn")
        for name, result in RESULTS.items():
            chapter = lesson("en")[name]
            if name != "row":
                page.keyboard.press("ArrowRight")
            began = time.perf_counter()
            page.get_by_role("heading", name=f"{chapter.number} · {chapter.title}", exact=True).wait_for()
            page.locator(result).first.wait_for()
            first, kept = time.perf_counter() - began, page.get_by_text(RECORDED).is_visible()
            how = "recorded" if kept else "live already"
            line(f"{chapter.title}, {how}", first, "≤ 3", unit="s", good=first <= 3, digits=1)
            if name in SLOW and TOY:
                continue
            page.get_by_text(LIVE).wait_for(timeout=400_000)
            page.locator(result).first.wait_for()
            live = time.perf_counter() - began
            if name == "row":
                said("    live (the first one waits for libraries and model)", f"{live:.1f} s")
            elif name in SLOW:
                said(f"    live, {SLOW[name]}", f"{live:.1f} s")
            else:
                line("    live", live, "≤ 3", unit="s", good=live <= 3, digits=1)
            page.wait_for_timeout(size(1000, 0))
        began = time.perf_counter()
        page.get_by_role("button", name="Start again").click()
        page.wait_for_timeout(1000)
        weight = 0.0
        while weight <= GROWN and time.perf_counter() - began < 120:
            page.wait_for_timeout(250)
            alt = page.locator("[role=img]").first.get_attribute("aria-label")
            weight = float(re.search(r"Softmax: weight on first token ([\d.]+)", alt)[1])
        took = time.perf_counter() - began
        line(f"Softmax passes {GROWN} beside ReLU", took, "≤ 60", unit="s", good=took <= 60, digits=0)
        head("Exponents of what policies cost, as chapter 6 has fitted them to the end")
        page.goto(f"{app.address}/learn?chapter=cost")
        fitted = page.locator("tbody tr").first if TOY else page.get_by_text("in theory 2, and takes")
        fitted.wait_for(timeout=400_000)
        for row in page.locator("tbody tr").all():
            title, tokens, theory, alone, whole, fixed, share = row.locator("td").all_inner_texts()
            if alone == "–":
                said(f"{title}, {theory}", "not fitted yet")
                continue
            power = float(alone)
            good = abs(power - WANTED[title]) <= 0.15
            line(f"{title}, {theory}: attention", power, f"{WANTED[title]} ± 0.15", good=good, digits=2)
            said("", f"whole {whole}, {tokens} tokens, fixed {fixed}, attention takes {share}")
