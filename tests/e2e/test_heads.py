"""The heads page in a real browser: knock out heads, stop, and read on with one of them bent."""

import pytest

pytestmark = pytest.mark.browser


def test_heads_are_knocked_out_until_one_has_seen_enough(app, page):
    page.goto(f"{app}/heads")
    page.get_by_text("What is each head's sink worth?").wait_for()
    tokens = page.get_by_role("spinbutton", name="Tokens")
    tokens.fill("64")
    tokens.press("Enter")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("of 270 heads").wait_for()
    page.get_by_text("The 3 that miss it most").wait_for()
    assert page.locator(".js-plotly-plot").count() == 2
    # A refresh finds the same numbers again.
    page.reload()
    page.get_by_text("of 270 heads").first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("What was found is kept.").wait_for()
    with page.expect_download() as file:
        page.get_by_role("button", name="All heads as CSV").click()
    rows = file.value.path().read_text().splitlines()
    assert rows[0] == "layer,head,excess_nats_per_token,standard_error" and len(rows) > 3
    layer, head = rows[1].split(",")[:2]
    page.get_by_text(f"Read on without the sink of {layer}.{head}").click()
    page.get_by_text(f"sink values zero in {layer}.{head}").first.wait_for()
    assert not page.problems and not page.strangers


def test_what_cannot_be_gets_a_sentence(app, page):
    page.goto(f"{app}/heads?run=gone")
    page.get_by_text("Those numbers are no longer in memory").wait_for()
    layer = page.get_by_role("spinbutton", name="Layer")
    layer.fill("99")
    layer.press("Enter")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("There is no layer 99: layers are 0 to 29.").wait_for()
