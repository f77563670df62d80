"""The whole story in a real browser, on the real model: start, watch, switch, look into a head, pause, come back."""

import re

import pytest
from playwright.sync_api import expect

from .conftest import PATIENCE, choose, cut_labels

pytestmark = pytest.mark.browser


def number(page, part: str, lane: int) -> float:
    text = page.locator(f".sk-{part}").nth(lane).inner_text()
    found = re.search(r"[\d.,]+", text)
    return float(found[0].replace(",", "")) if found else 0.0


def wait_read(page, lane: int, tokens: int) -> None:
    page.wait_for_function(
        "([i, n]) => parseInt((document.querySelectorAll('.sk-read')[i]?.textContent || '0').replace(/,/g, '')) >= n",
        arg=[lane, tokens],
    )


def press_main(page) -> None:
    # Beside a recording that stands still it is "Play" that stands out.
    page.locator(".sk-toolbar .sk-go, .sk-toolbar [aria-label$='it live']").last.click()
    # A story gives way to what is live, or says why it cannot.
    page.wait_for_function("!document.querySelector('.sk-player') || document.querySelector('.sk-note:not(.sk-empty)')")


def choose_head(page, layer: int, head: int) -> None:
    box = page.locator(".sk-grid").bounding_box()
    x = box["x"] + 34 + (box["width"] - 78) * (layer + 0.5) / 30
    y = box["y"] + 4 + (box["height"] - 38) * (8.5 - head) / 9
    page.mouse.click(x, y)


def stop(page) -> None:
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()


def test_the_whole_story(app, page):
    page.goto(app)
    # It opens with the four policies, and one press starts it.
    page.get_by_text("Recompute 128 / 16").first.wait_for()
    press_main(page)
    for lane in range(4):
        wait_read(page, lane, 33)
    # Window attention falls behind the sinks as soon as its first tokens are gone.
    wait_read(page, 1, 320)
    wait_read(page, 3, 320)
    page.wait_for_function("parseFloat(document.querySelectorAll('.sk-big')[1].textContent) > 1.5")
    assert number(page, "kept", 1) == number(page, "kept", 3) == 128
    curves = page.locator(".sk-plot").first
    drawn = curves.locator(".scatterlayer .trace path.js-line").count()
    assert drawn == 4
    # Marks stand above the plot, where they cover no peak; what is better is said once.
    curves.locator(".sk-texts span", has_text="caches full").wait_for()
    # Both at once: a mark moves as the text is read.
    bottom, top = curves.evaluate(
        """plot => {
            const mark = [...plot.querySelectorAll(".sk-texts span")].find((s) => s.textContent.includes("caches"));
            return [mark.getBoundingClientRect().bottom, plot.querySelector(".nsewdrag").getBoundingClientRect().top];
        }"""
    )
    assert bottom <= top + 2
    for said in ("lower is better", "double-click: whole curve"):
        assert page.get_by_text(said).count() == 1
    before = page.evaluate("window.__sinkscope.seq")
    page.wait_for_function("seq => window.__sinkscope.seq > seq", arg=before)

    # Drop the sinks of the last lane: the mark appears, and its rolling perplexity rises.
    calm = number(page, "rolling", 3)
    page.wait_for_function("window.__sinkscope.mode === 'relative'")
    page.get_by_role("button", name="switch ▾").nth(3).click()
    page.get_by_role("button", name="Drop the sinks", exact=True).click()
    curves.get_by_text("Window 128").first.wait_for()
    page.wait_for_function("window.__sinkscope.mode === 'rolling'")
    page.get_by_test_id("stSidebar").get_by_text(re.compile(r"Window 128 from token \d+ on")).wait_for()
    at = number(page, "read", 3)
    wait_read(page, 3, int(at) + 260)
    assert number(page, "rolling", 3) > 1.3 * calm

    # A head, its map, and what the pointer finds in it.
    choose_head(page, 25, 5)
    page.get_by_text("Layer 25, head 5").wait_for()
    page.locator(".sk-map").wait_for(state="visible")
    box = page.locator(".sk-map").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + box["height"] * 0.4)
    tip = page.locator(".sk-tip:visible").last
    expect(tip).to_contain_text("→")
    page.get_by_role("button", name="attention received").click()
    page.get_by_text("the stronger the colour, the more attention").wait_for()

    # Pause: nothing moves.  A refresh and a second tab find the run again.
    press_main(page)
    page.get_by_role("button", name="Resume").wait_for()
    page.wait_for_timeout(600)
    read = number(page, "read", 3)
    page.wait_for_timeout(700)
    assert number(page, "read", 3) == read
    page.reload()
    page.get_by_role("button", name="Resume").wait_for()
    wait_read(page, 3, int(read))
    assert number(page, "read", 3) == read
    # What was looked at is looked at still.
    page.get_by_text("Layer 25, head 5 attention map").wait_for()
    page.get_by_text("Window 128 (2); the stronger the colour, the more attention from layer 25, head 5").wait_for()
    page.wait_for_function("window.__sinkscope?.mode === 'rolling'")
    other = page.context.new_page()
    other.goto(page.url)
    other.get_by_role("button", name="Resume").wait_for(timeout=PATIENCE)
    other.get_by_text("the stronger the colour, the more attention from layer 25, head 5").wait_for(timeout=PATIENCE)
    other.close()
    # Before it was switched the lane had another name.
    names = page.evaluate("() => document.querySelector('.sk-plot').data[3].customdata")
    assert names[0] == "Sinks + window 4 + 124" and names[-1] == "Window 128 (2)"
    assert page.get_by_role("heading", level=1, name="Read a text under several policies").count() == 1

    press_main(page)
    wait_read(page, 3, int(read) + 32)
    stop(page)
    # What was read can still be looked into.
    choose_head(page, 20, 3)
    page.locator(".sk-title", has_text="Layer 20, head 3 attention map").wait_for()
    assert page.problems == []
    assert page.strangers == []


def test_no_press_is_lost_while_the_page_around_the_board_runs_again(app, page):
    page.goto(app)
    page.get_by_text("Recompute 128 / 16").first.wait_for()
    press_main(page)
    wait_read(page, 3, 160)
    page.evaluate("() => { window.__cards = document.querySelector('.sk-cards'); }")
    lane = page.locator(".sk-card").nth(3)
    for name, then in (("Drop the sinks", "Window 128 (2)"), ("Bring the sinks back", "Sinks + window 4 + 124")) * 4:
        lane.get_by_role("button", name="switch ▾").click()
        lane.get_by_role("button", name=name, exact=True).click()
        lane.get_by_role("button", name=then).wait_for()
    now = page.get_by_test_id("stSidebar").get_by_text(re.compile(r"Sinks \+ window 4 \+ 124 from token \d+ on"))
    now.wait_for()
    # The board is what it was: a form that a person had opened in it would be open still.
    assert page.evaluate("window.__cards.isConnected")
    stop(page)
    assert page.problems == []


def zoom_in(page):
    box = page.locator(".sk-plot .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.8, steps=5)
    page.mouse.up()


def test_zoom_survives_updates_and_modes_are_one_press_away(app, page):
    page.goto(f"{app}/?lane=window:window=32&lane=streaming:sinks=4,window=28")
    page.get_by_text("Window 32").first.wait_for()
    # What is not there yet has a name all the same.
    nothing = re.compile("nothing was read yet")
    expect(page.locator(".sk-grid")).to_have_attribute("aria-label", nothing)
    press_main(page)
    wait_read(page, 0, 200)
    zoom_in(page)
    ranges = "() => document.querySelector('.sk-plot').layout.xaxis.range.map(Math.round)"
    zoomed = page.evaluate(ranges)
    seq = page.evaluate("window.__sinkscope.seq")
    page.wait_for_function("seq => window.__sinkscope.seq > seq + 3", arg=seq)
    assert page.evaluate(ranges) == zoomed
    for mode in ("rolling", "cumulative", "relative"):
        page.get_by_role("button", name=mode, exact=True).click()
        page.wait_for_function("mode => window.__sinkscope.mode === mode", arg=mode)
    # What is compared with what is one click.
    page.get_by_role("button", name="compare with this").first.click()
    page.get_by_text("times that of Window 32").wait_for()
    page.keyboard.press("k")
    page.get_by_role("button", name="Resume").wait_for()
    # A mark goes with the stretch that it stands over, though nothing is read; and comes back with it.
    mark = page.locator(".sk-texts span", has_text="caches full")
    expect(mark).to_have_count(1)
    zoom_in(page)
    expect(mark).to_have_count(0)
    page.get_by_role("button", name="whole curve").click()
    expect(mark).to_have_count(1)
    # The keyboard moves, and only Enter chooses.
    page.locator(".sk-grid").focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
    page.get_by_role("status").get_by_text(re.compile("layer 1, head 1: ")).wait_for()
    assert "head=" not in page.url
    page.keyboard.press("Enter")
    page.get_by_text("Layer 1, head 1 attention map").wait_for()
    # Nothing moves, and still all is drawn anew when the colours change or the page becomes narrow.
    page.emulate_media(color_scheme="dark")
    for plot in (0, 1):
        page.wait_for_function(f"document.querySelectorAll('.sk-plot')[{plot}].layout.xaxis.gridcolor === '#33373d'")
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function(
        "[...document.querySelectorAll('.sk-plot')].every(p => p.layout.width === p.clientWidth && p.clientWidth < 400)"
    )
    assert cut_labels(page) == []
    stop(page)
    assert page.problems == []


def test_pinning_the_sinks_again_is_asked_and_done(app, page):
    page.goto(f"{app}/?lane=window:window=64&lane=dense")
    page.get_by_text("Window 64").first.wait_for()
    press_main(page)
    wait_read(page, 0, 160)
    page.get_by_role("button", name="switch ▾").first.click()
    page.get_by_label("Policy", exact=True).last.select_option("streaming")
    page.get_by_text("have left this lane's cache").wait_for()
    page.get_by_role("button", name="Pin the sinks again").click()
    page.get_by_text("sinks pinned again").first.wait_for()
    stop(page)
    assert page.problems == []


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("lane=window:window=0", "window must be at least 1"),
        ("lane=nothing", "there is no policy"),
        ("text=nothing", "no bundled text"),
        ("run=gone", "no longer in memory"),
        ("lane=streaming:sinks=4,window=<b>x</b>", "must be a whole number"),
    ],
)
def test_what_an_address_asks_wrongly_gets_a_sentence(app, page, query, sentence):
    page.goto(f"{app}/?{query}")
    page.locator(".sk-note", has_text=sentence).wait_for()
    assert page.get_by_text("Traceback").count() == 0
    page.get_by_text("Sinks + window 4 + 124").first.wait_for()


def test_an_unknown_model_gets_a_sentence(app, page):
    page.goto(f"{app}/?model=nobody/nothing")
    page.get_by_text("Recompute 128 / 16").first.wait_for()
    # An address fetches nothing: whoever reads here writes the name.
    page.locator(".sk-note", has_text="an address fetches none").wait_for()
    field = page.get_by_role("textbox", name="Model")
    # A box that was just drawn is empty for a moment, and loses what is written into it then.
    expect(field).to_have_value("embedded")
    field.fill("nobody/nothing")
    field.press("Enter")
    press_main(page)
    page.locator(".sk-note.sk-bad", has_text="the hub cannot be reached").wait_for()
    assert page.problems == []


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("empty.txt", b"", "is empty"),
        ("photo.txt", b"\x89PNG\x00\x00\x00\x00", "binary"),
        ("old.txt", "naïve café".encode("latin-1"), "not UTF-8"),
    ],
)
def test_an_upload_that_cannot_be_read_gets_a_sentence(app, page, name, data, sentence):
    page.goto(app)
    page.get_by_text("Recompute 128 / 16").first.wait_for()
    # The list shows only what is near the chosen text: typing finds the rest.
    choose(page, page.get_by_label("Text", exact=True).first, "Upload a text", typed="Upload")
    page.locator("input[type=file]").set_input_files({"name": name, "mimeType": "text/plain", "buffer": data})
    page.get_by_text(name).first.wait_for()
    press_main(page)
    page.locator(".sk-note", has_text=sentence).wait_for()
    assert page.problems == []


def test_token_text_is_shown_as_it_is(app, page):
    page.goto(f"{app}/?text=macbeth")
    page.get_by_text("Recompute 128 / 16").first.wait_for()
    choose(page, page.get_by_label("Text", exact=True).first, "Paste a text", typed="Paste")
    text = "<b>bold</b> $x^2$ **stars** <script>alert(1)</script> " * 6
    page.get_by_placeholder("Paste at least").fill(text)
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(800)
    press_main(page)
    page.get_by_text("read to its end").wait_for()
    shown = page.locator(".sk-text").inner_text()
    assert "<b>bold</b>" in shown
    assert "$x^2$ **stars** <script>alert(1)</script>" in shown
    assert page.locator(".sk-text b, .sk-text script").count() == 0
    # An address names what is read, or nothing.
    assert "run=" in page.url and "macbeth" not in page.url
    assert page.problems == []


def test_a_lane_that_chooses_is_mapped_and_bent_while_it_reads(app, page):
    page.goto(f"{app}/?lane=streaming:sinks=4,window=60&lane=h2o:budget=64,recent=32,interval=16")
    page.get_by_text("Heavy hitters 64, every 16").first.wait_for()
    press_main(page)
    card = page.locator(".sk-card").nth(1)
    card.get_by_text("49 kept").wait_for()
    card.click()
    page.get_by_text("Heavy hitters 64, every 16").first.wait_for()
    grid = page.locator("canvas").first.bounding_box()
    page.mouse.click(grid["x"] + grid["width"] * 0.8, grid["y"] + grid["height"] * 0.4)
    page.get_by_text("evicted: no longer in the cache").wait_for()
    card.get_by_text("switch").click()
    form = page.locator(".sk-form:visible")
    form.locator("summary").click()
    form.locator("[name=knockout]").select_option("values")
    form.get_by_role("button", name="Apply").click()
    card.get_by_text("Heavy hitters 64, every 16, sink values zero").wait_for()
    # Two settings that do not go together are refused in a sentence, and the lane reads on.
    card.get_by_text("switch").click()
    form.locator("[name=recent]").fill("64")
    form.get_by_role("button", name="Apply").click()
    page.locator(".sk-note", has_text="choose a larger budget").wait_for()
    assert page.get_by_text("Traceback").count() == 0
    assert page.problems == []
