"""The verdict page in a real browser: a small comparison is stopped, goes on, and is found again by its address."""

import re

import pytest
from playwright.sync_api import expect

from .conftest import wait_until

pytestmark = pytest.mark.browser
SMALL = "budgets=32&tokens=256&kl=0&lengths=128&depths=5,95&lane=window:window=64&lane=streaming:sinks=4,window=60"


def table(page) -> list[str]:
    """The lines of the table that the page gives away."""
    with page.expect_download() as download:
        page.get_by_role("link", name="Table as CSV").click()
    assert download.value.suggested_filename == "table.csv"
    return download.value.path().read_text().splitlines()


def test_a_comparison_stops_goes_on_and_ends_in_a_sentence(app, page):
    page.goto(f"{app}/verdict?{SMALL}")
    page.get_by_role("button", name="Start", exact=True).click()
    # Dense and the question are known before the first policy is.
    expect(page.get_by_text(re.compile(r"[1-8] of 9 cells"))).to_be_visible(timeout=90_000)
    # A file of what there is comes at the first press, though cells come and the page is drawn anew.
    for _ in range(3):
        assert table(page)[0].startswith("Policy,Budget")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text(re.compile(r"Stopped after \d of 9 cells. They are kept."))).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Resume").wait_for(state="detached")
    expect(page.locator(".sk-sentence")).to_contain_text(
        re.compile(r"^(The smallest cache|No cache of up to 32 tokens).*of dense on Hamlet"), timeout=90_000
    )
    wait_until(page, "!!document.querySelector('.sk-chart .main-svg')")
    told = page.locator(".sk-sentence").inner_text()
    lines = table(page)
    assert lines[0].startswith("Policy,Budget,Perplexity") and len(lines) == 4
    # All of each number is on screen: the table was made when there were dashes.
    shown = page.get_by_test_id("stTable")
    on_screen = [",".join(row.locator("th, td").all_inner_texts()) for row in shown.locator("tr").all()]
    # A fraction would be a date to a spreadsheet.
    assert [re.sub(r"\b(\d+)/(\d+)\b", r"\1 of \2", line) for line in on_screen] == lines
    assert shown.evaluate(
        "table => [...table.querySelectorAll('td')].every((cell) => cell.scrollWidth <= cell.clientWidth)"
    )
    assert re.search(r"run=[0-9a-f-]+", page.url)
    page.reload()
    expect(page.locator(".sk-sentence")).to_have_text(told)
    page.get_by_role("link", name="Make a figure of it").click()
    page.get_by_role("link", name="Download pareto.pdf").wait_for()
