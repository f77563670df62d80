"""Where a system forces its colours on pages, what colours say is still seen."""

import pytest

pytestmark = pytest.mark.browser

PAINTED = """(of) => [...document.querySelectorAll(of)].filter((e) => {
  // A system that forces its colours leaves of these how much is seen through them, in black or white.
  const [red, green, blue] = getComputedStyle(e).backgroundColor.match(/[\\d.]+/g);
  return red !== green || green !== blue;
}).length"""
UNDERLINED = "() => getComputedStyle(document.querySelector('.sk-flow .sk-gone')).borderBottomColor"
CHOSEN = "(of) => getComputedStyle(document.querySelector(of)).outlineStyle"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_surprise_and_what_was_evicted_are_seen_where_colours_are_forced(app, page, scheme):
    page.emulate_media(forced_colors="active", color_scheme=scheme, reduced_motion="reduce")
    page.goto(f"{app}/?run=gallery:four&at=600")
    page.locator(".sk-text span").nth(100).wait_for()
    assert page.evaluate(PAINTED, ".sk-text span") > 10
    assert page.evaluate(CHOSEN, ".sk-card.sk-chosen") == page.evaluate(CHOSEN, ".sk-segments .sk-on") == "solid"
    page.goto(f"{app}/chat?run=gallery:breakdown")
    page.locator(".sk-flow .sk-gone").first.wait_for()
    # A line below a token says how much attention it got.
    assert page.evaluate(UNDERLINED) == "rgba(0, 0, 0, 0)"
    assert not page.problems and not page.strangers


def test_forced_colours_leave_sliders_switches_and_what_is_chosen(app, page):
    page.emulate_media(forced_colors="active")
    adjust = "e => getComputedStyle(e).forcedColorAdjust"

    def outlined(name: str) -> str:
        return page.get_by_role("button", name=name, exact=True).evaluate("e => getComputedStyle(e).outlineStyle")

    page.goto(f"{app}/learn?chapter=row")
    thumb = page.locator("[data-testid=stSlider] [data-rac]:has(> div > input[type=range])")
    assert thumb.first.evaluate(adjust) == "none"
    assert (outlined("1 · A row must sum to one"), outlined("2 · Look at the first token")) == ("solid", "none")
    chosen, other = page.get_by_role("radio", name="Softmax"), page.get_by_role("radio", name="Off by one")
    assert [e.evaluate("e => getComputedStyle(e).outlineStyle") for e in (chosen, other)] == ["solid", "none"]
    page.goto(f"{app}/verdict")
    switch = page.locator("[data-testid=stCheckbox] label:has(input[role=switch]) > div").first
    mark = page.locator("[data-testid=stRadioOption] div:empty").first
    assert [switch.evaluate(adjust), mark.evaluate(adjust)] == ["none", "none"]
