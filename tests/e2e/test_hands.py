"""Keys and fingers reach what a mouse does, and what stands at the edge of a narrow page is seen to go on."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("typed", "read"), [("1e1", "10"), ("7", "7")])
def test_a_whole_number_with_an_exponent_is_read_whole(app, page, typed, read):
    page.goto(f"{app}/recall")
    box = page.get_by_role("spinbutton", name="Seed")
    box.click()
    page.keyboard.press("Control+A")
    page.keyboard.type(typed)
    # As somebody does who goes on to the next box.
    page.keyboard.press("Tab")
    page.wait_for_function("seed => location.search.includes(`seed=${seed}`)", arg=read)
    expect(box).to_have_value(read)
