"""The figures page in a real browser: from a run that has just been read to a file with its provenance."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from analysis.runs import library

from .conftest import choose
from .test_live import press_main, wait_read

pytestmark = pytest.mark.browser


def download(page, name):
    with page.expect_download() as file:
        page.get_by_role("link", name=name).click()
    return Path(file.value.path()).read_bytes()


def test_a_run_of_the_page_becomes_a_figure_and_a_report(app, page):
    page.goto(f"{app}/?lane=streaming:sinks=4,window=60&lane=window:window=64")
    page.get_by_text("Window 64").first.wait_for()
    press_main(page)
    wait_read(page, 1, 200)
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    page.get_by_role("button", name="compare with this", exact=True).last.click()
    page.get_by_text("times that of Window 64").first.wait_for()
    page.get_by_role("link", name="Figures").click()
    # The figure begins with what the page showed: its curve, and its reference by name.
    page.get_by_text("The same file from a command line:").wait_for()
    expect(page.get_by_test_id("stCode").last).to_contain_text("reference=1")
    page.get_by_text("Perplexity curves.").first.wait_for()
    page.get_by_text("Sources as BibTeX").click()
    page.get_by_text("xiao2023streamingllm").wait_for()
    page.reload()
    page.get_by_text("The same file from a command line:").wait_for()
    expect(page.get_by_test_id("stCode").last).to_contain_text("reference=1")
    assert download(page, "Download perplexity.pdf").startswith(b"%PDF")
    choose(page, page.get_by_role("combobox", name="File"), "svg")
    svg = download(page, "Download perplexity.svg").decode()
    assert "Tokens read" in svg and "python -m analysis figure" in svg and "times that of Window 64" in svg
    page.get_by_text("As a black-and-white printer has it").click()
    page.locator("[data-testid='stImage'] img").wait_for()
    report = download(page, "Report of this run").decode()
    assert "read by SmolLM2-135M" in report and "plotly" in report
    # The command finds what the page has kept.
    command = page.locator("[data-testid='stCode']").last.inner_text()
    (place,) = (run for run in library.home().glob("*/run.json") if str(run.parent) in command)
    assert json.loads(place.read_text())["status"] == "interrupted"
    assert not page.problems and not page.strangers


def test_a_folder_that_holds_nothing_gets_a_sentence(app, page):
    page.goto(f"{app}/figures")
    folder = page.get_by_role("textbox", name="Folder")
    folder.fill("/nowhere")
    folder.press("Enter")
    page.get_by_text("holds no captured stretch").wait_for()
    assert not page.problems
