"""The recall page in a real browser: a map fills cell by cell, is stopped, goes on, and says where a fact went."""

import csv
import re

import pytest
from playwright.sync_api import expect

from .conftest import PATIENCE

pytestmark = pytest.mark.browser

LANES = "lane=streaming:sinks%3D4,window%3D60,positions%3Dcache&lane=dense"
MAP = f"lengths=96,160&depths=5,95&{LANES}"


def cells(page, state: str):
    return page.locator(f".sk-recall-grid button.sk-{state}")


def test_a_map_fills_and_a_cell_says_where_its_fact_went(app, page):
    page.goto(f"{app}/recall?{MAP}")
    page.get_by_role("button", name="Start", exact=True).click()
    # Dense comes first, whatever the order of lanes.
    expect(page.locator(".sk-recall-map h2")).to_have_text(["Dense", "Sinks + window 4 + 60"])
    cells(page, "done").first.wait_for()
    page.get_by_text(re.compile(r"[1-8] of 8 cells")).first.wait_for()
    expect(cells(page, "done")).to_have_count(8)
    expect(page.locator(".sk-recall-grid [aria-pressed=false]")).to_have_count(8)
    expect(page.locator("[data-testid=stProgress]")).to_have_count(0)
    expect(page.locator(".sk-recall-map").first.locator("button.sk-done")).to_have_text(["1/1"] * 4)
    lost = page.locator(".sk-recall-map").nth(1).get_by_role("button").nth(1)
    lost.hover()
    expect(page.locator(".sk-recall-tip")).to_contain_text(re.compile(r"160 tokens, depth 5 %[^%]*0 % of the fact"))
    # Arrow keys go through a block, whose first cell alone is reached by Tab.
    page.locator(".sk-recall-map").nth(1).get_by_role("button").first.focus()
    page.keyboard.press("ArrowRight")
    expect(lost).to_be_focused(timeout=PATIENCE)
    page.keyboard.press("Enter")
    page.locator(".sk-excerpt .sk-needle").first.wait_for()
    expect(page.locator(".sk-excerpt .sk-needle.sk-lost").first).to_be_visible()
    page.get_by_text("evicted in every head: nothing is left to look at").wait_for()
    # The address says the cell; another tab shows the same, and computes nothing.
    page.wait_for_function("location.search.includes('cell=1,160,5') || location.search.includes('cell=1%2C160%2C5')")
    other = page.context.new_page()
    other.goto(page.url)
    expect(cells(other, "done")).to_have_count(8)
    expect(other.locator("[aria-pressed=true]")).to_have_count(1)
    other.close()
    with page.expect_download() as file:
        page.get_by_role("link", name="All answers as CSV").click()
    with file.value.path().open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["policy"] for row in rows] == ["dense"] * 4 + ["streaming:sinks=4,window=60,positions=cache"] * 4
    assert all(row["hit"] == "True" and row["said"] == row["answer"] for row in rows[:4])
    page.get_by_text("NLL of the answer").click()
    expect(cells(page, "done").first).to_have_text(re.compile(r"^\d\.\d$"))
    # The text of the cell is read in the live board.
    page.get_by_role("link", name="Read this text under dense and Sinks + window 4 + 60").click()
    page.locator(".sk-go", has_text="Start").click()
    # It stands before the answer, with the fact marked; one may go on.
    page.get_by_text(re.compile(r"Paused before token \d+, as the link has it")).wait_for()
    expect(page.locator(".sk-text")).to_contain_text(re.compile("is the pass key.*The pass key is$", re.S))
    (key,) = [row["answer"] for row in rows[4:] if (row["length"], row["depth"]) == ("160", "5.0")]
    expect(page.locator(".sk-marked")).to_contain_text(key)
    assert key in "".join(page.locator(".sk-text .sk-needle").all_text_contents())
    page.locator(".sk-go", has_text="Resume").click()
    page.get_by_text("The text has been read to its end.").wait_for()
    assert not page.problems and not page.strangers


def test_a_map_that_was_stopped_goes_on_and_is_opened_from_the_runs(app, page):
    page.goto(f"{app}/recall?lengths=128&depths=0,10,20,30,40,50,60,70,80,90,100&seed=9&{LANES}")
    page.get_by_role("button", name="Start", exact=True).click()
    cells(page, "done").nth(1).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text(re.compile(r"Stopped after \d+ of 22 cells")).wait_for()
    run = re.search(r"run=([\w-]+)", page.url)[1]
    page.goto(f"{app}/runs")
    row = page.locator(f".st-key-runs-row-{run}")
    row.get_by_text("Recall: passkey").wait_for()
    row.get_by_role("link", name="Open").click()
    page.get_by_role("button", name="Resume").click()
    expect(cells(page, "done")).to_have_count(22)
    assert f"run={run}" in page.url
    assert not page.problems and not page.strangers


def test_what_cannot_be_asked_gets_a_sentence(app, page):
    page.goto(f"{app}/recall?lengths=20&depths=50&task=nothing&run=gone")
    page.get_by_text("there is no task 'nothing'").wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("choose a larger length").wait_for()
    assert not page.problems and not page.strangers
