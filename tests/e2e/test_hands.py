"""Keys and fingers reach what a mouse does, and what stands at the edge of a narrow page is seen to go on."""

import re

import pytest
from playwright.sync_api import expect

from .test_recall import cells

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


@pytest.mark.parametrize(("typed", "read"), [("9,5", "9.5"), ("9.5", "9.5"), ("10", "10.0")])
def test_a_fraction_with_a_comma_is_no_other_number(app, page, typed, read):
    page.goto(f"{app}/figures")
    box = page.get_by_role("spinbutton", name="Points")
    expect(box).to_have_value("8.00")
    box.click()
    page.keyboard.press("Control+A")
    page.keyboard.type(typed)
    page.keyboard.press("Tab")
    page.wait_for_function("points => location.search.includes(`points=${points}`)", arg=read)
    expect(box).to_have_value(f"{float(read):.2f}")


def test_a_token_of_the_text_tells_its_value_to_fingers_and_keys(app, browser):
    context = browser.new_context(viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(f"{app}/")
    text, go = page.locator(".sk-text"), page.get_by_role("button", name="Pause")
    expect(text.locator("span").nth(300)).to_be_attached()
    go.click()
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    tip = page.locator(".sk-holder:has(> .sk-text) > .sk-tip")
    text.locator("span").nth(-2).tap()
    expect(tip).to_have_text(re.compile(r"^\".+\" at \d+: \d+\.\d\d nats$"))
    newest = int(re.search(r"at (\d+)", tip.text_content())[1]) + 1
    for key, at in (("ArrowRight", newest), ("ArrowLeft", newest - 1), ("Shift+ArrowLeft", newest - 11)):
        # They go on from where the keyboard is, and it comes to the newest token first.
        page.keyboard.press(key)
        expect(tip).to_contain_text(f" at {at}: ")
        expect(text.locator(".sk-at")).to_have_count(1)
    page.keyboard.press("Tab")
    expect(tip).to_be_hidden()
    context.close()


def test_the_tip_of_a_cell_gives_way_to_what_is_said_below(app, page):
    page.goto(f"{app}/recall?lengths=96&depths=5,95&lane=window:window%3D32")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(cells(page, "done")).to_have_count(2)
    tip = page.locator(".sk-recall-tip")
    cells(page, "done").first.hover()
    expect(tip).to_be_visible()
    cells(page, "done").first.click()
    page.get_by_role("heading", name=re.compile("Where did it go")).wait_for()
    expect(tip).to_be_hidden()


def test_a_table_that_is_too_wide_fades_where_it_goes_on(app, page):
    fades = """([chapter, x]) => {
      const table = document.querySelector("[data-testid=stTable] > div");
      if (!table || !location.search.includes(chapter)) return false;
      table.scrollLeft = x;
      const mask = getComputedStyle(table).maskImage;
      return mask.match(/to (left|right)/)?.[1] ?? mask;
    }"""
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(f"{app}/learn?chapter=cost")
    for x, side in ((0, "right"), (9999, "left")):
        page.wait_for_function(f"([now, side]) => ({fades})(now) === side", arg=[["cost", x], side])
    page.set_viewport_size({"width": 1440, "height": 900})
    page.wait_for_function(f"now => ({fades})(now) === 'none'", arg=["cost", 0])


def test_a_link_beyond_the_end_of_a_recording_says_so(app, page):
    page.goto(f"{app}/?run=gallery:four&at=99999")
    note = page.locator(".sk-note")
    expect(note).to_have_text(
        "The address of this page asks for token 99,999, and this recording has 3,000: its end is shown."
    )
    page.wait_for_function("location.search.includes('at=3000')")
    page.get_by_role("button", name="One token back").click()
    expect(note).to_be_hidden()


def test_the_meters_of_a_conversation_have_names_before_anything_is_said(app, page):
    page.goto(f"{app}/chat")
    for name in ("Time per token", "KV cache"):
        expect(page.get_by_role("img", name=re.compile(rf"^{name}\. .*Window 64: nothing yet"))).to_be_visible()
