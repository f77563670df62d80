"""A recorded run in a real browser: it opens without a model, plays, pauses, steps, is dragged, and comes back."""

import re
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import axe_playwright_python
import numpy as np
import pytest

from analysis.figures.report import report
from analysis.figures.site import site
from analysis.runs import library
from analysis.runs.folder import save

from ..recordings import made_up
from .conftest import cut_labels
from .test_live import choose_head

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def recorded():
    """A run of the library, of three thousand tokens, one lane of which was switched."""
    switches = {3: (1500, "window:window=128")}
    save(
        made_up(3000, layers=30, heads=9, switches=switches),
        library.home() / "replayed",
        text_sha256="",
        weights_sha256="",
    )
    return "replayed"


def position(page) -> int:
    return int(page.locator(".sk-scrub").input_value())


def wait_painted(page, at: int) -> None:
    page.wait_for_function("at => window.__sinkscope?.published === at", arg=at)


def wait_address(page, name: str, value: str) -> None:
    page.wait_for_function("([name, value]) => new URL(location).searchParams.get(name) === value", arg=[name, value])


def violations(page, where: str = "document.querySelector('.sk')") -> list[str]:
    page.evaluate(AXE)
    found = page.evaluate(f"axe.run({where}, {{resultTypes: ['violations']}})")["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found]


def test_a_recorded_run_is_played_stepped_dragged_and_found_again(app, page, recorded):
    page.goto(f"{app}/?run={recorded}")
    slider = page.locator(".sk-scrub")
    # It opens at its end.
    wait_painted(page, 3000)
    assert page.get_by_text("3,000 of 3,000 tokens").count() == 1
    assert page.locator(".sk-card").count() == 4 and page.get_by_role("button", name="switch ▾").count() == 0
    # Keys: from the beginning, a token, a chunk.
    page.keyboard.press("Home")
    wait_painted(page, 1)
    page.keyboard.press("ArrowRight")
    wait_painted(page, 2)
    page.keyboard.press("Shift+ArrowRight")
    wait_painted(page, 129)
    page.keyboard.press("ArrowLeft")
    wait_painted(page, 128)
    page.keyboard.press("End")
    wait_painted(page, 3000)
    # Buttons do the same.
    page.get_by_role("button", name="One chunk back").click()
    assert position(page) < 3000
    # The scrubber is dragged, and the address says where it rests.
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    middle = position(page)
    assert 1400 < middle < 1600
    wait_painted(page, middle)
    wait_address(page, "at", str(middle))
    # What is looked at changes at once, and stands in the address too.
    page.get_by_role("button", name="cumulative").click()
    page.wait_for_function("window.__sinkscope.mode === 'cumulative'")
    page.locator(".sk-choose").first.click()
    choose_head(page, 3, 2)
    page.get_by_text("To keep it, read with --maps 3.2").wait_for()
    for name, value in (("mode", "cumulative"), ("shown", "0"), ("head", "3.2")):
        wait_address(page, name, value)
    # A reload shows the same moment.
    page.reload()
    wait_painted(page, middle)
    assert page.evaluate("window.__sinkscope.mode") == "cumulative"
    page.get_by_text("To keep it, read with --maps 3.2").wait_for()
    assert f"{middle:,} read" in page.locator(".sk-card").first.inner_text()
    # It plays at a speed, and pauses.
    page.get_by_label("Speed").select_option("500 tokens/s")
    page.locator(".sk-title").first.click()
    page.keyboard.press("Space")
    page.wait_for_function("at => window.__sinkscope.published > at", arg=middle + 100)
    page.keyboard.press("Space")
    paused = position(page)
    wait_address(page, "at", str(paused))
    assert position(page) == paused and page.get_by_role("button", name="Play or pause").inner_text() == "▶ Play"
    assert slider.get_attribute("aria-valuetext") == f"token {paused:,} of 3,000"
    # The switch has its mark.
    assert page.locator(".sk-tick-switch").count() == 1
    assert not violations(page) and not cut_labels(page)
    assert not page.problems and not page.strangers


def test_a_recording_fits_a_narrow_page_and_plays_to_its_end(app, page, recorded):
    page.set_viewport_size({"width": 400, "height": 800})
    page.emulate_media(reduced_motion="reduce", color_scheme="dark")
    page.goto(f"{app}/?run={recorded}&at=2900")
    wait_painted(page, 2900)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert not cut_labels(page) and not violations(page)
    page.get_by_label("Speed").select_option("500 tokens/s")
    page.get_by_role("button", name="Play or pause").click()
    wait_painted(page, 3000)
    page.get_by_text("▶ Play").wait_for()
    # With little motion it moves seldom.
    moves = page.evaluate("new Set(window.__sinkscopeFrames.map((f) => f.published).filter((at) => at > 2900)).size")
    assert moves <= 2


def test_a_curve_that_stays_high_is_drawn_and_not_cut(app, page):
    run = made_up(3000)
    # A window that lost the sinks: 35 times the perplexity of the first lane, to the end.
    run.tracks[1].nll.view()[200:] += np.log(35)
    save(run, library.home() / "high", text_sha256="", weights_sha256="")
    page.goto(f"{app}/?run=high&mode=relative")
    page.locator(".sk-scrub").press("End")
    wait_painted(page, 3000)
    top, greatest = page.evaluate(
        "(plot => [10 ** plot.layout.yaxis.range[1], Math.max(...plot.data.flatMap((t) => Array.from(t.y)))])"
        "(document.querySelector('.sk-plot'))"
    )
    assert 30 < greatest < top


DRAWN = """
window.__drawn = [];
const { fillText } = CanvasRenderingContext2D.prototype;
CanvasRenderingContext2D.prototype.fillText = function (text, ...at) {
  window.__drawn.push(parseFloat(this.font));
  return fillText.call(this, text, ...at);
};"""
"""Keeps the size of the type of each text that is drawn on a canvas."""

SMALLEST = """() => Math.min(
  ...window.__drawn.splice(0),
  ...[...document.querySelectorAll(".sk-plot text, .sk-texts span")]
    .map((e) => parseFloat(getComputedStyle(e).fontSize)))"""
"""The smallest type of what was drawn since it was last asked for, and of the plots on screen."""


def test_all_that_is_drawn_on_a_projected_page_has_its_large_type(app, page, recorded):
    page.add_init_script(DRAWN)
    page.goto(f"{app}/?run={recorded}&at=500&head=3.4")
    page.wait_for_function("document.querySelector('.sk-memory .sk-texts span') && window.__drawn.length > 5")
    page.wait_for_timeout(1000)
    assert page.evaluate(SMALLEST) == 11
    page.locator("body").press("p")
    page.get_by_test_id("stSidebar").wait_for(state="hidden")
    # Drawn once more with the type of before, perhaps, while the page is laid out.
    page.wait_for_timeout(1500)
    page.evaluate("window.__drawn.length = 0")
    page.set_viewport_size({"width": 1500, "height": 900})
    page.wait_for_function("window.__drawn.length > 5")
    page.wait_for_timeout(1500)
    # 15 px is the smallest type of a projected page, but for marks.
    assert page.evaluate(SMALLEST) >= 14
    assert not cut_labels(page)
    assert not page.problems, page.problems


# The least contrast of a text over a plot with the page that it stands on (WCAG 2).
FAINTEST = """() => {
  const light = ([r, g, b]) => [0.2126 * r, 0.7152 * g, 0.0722 * b].reduce((a, c) => a + c, 0.05);
  const of = (colour) => light(colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)));
  const ground = of(getComputedStyle(document.querySelector("[data-testid=stApp]")).backgroundColor);
  const inks = [...document.querySelectorAll(".sk-texts span")].map((span) => of(getComputedStyle(span).color));
  return Math.min(...inks.map((ink) => Math.max(ink, ground) / Math.min(ink, ground)));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_at_curves_can_be_read(app, page, recorded, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{app}/?run={recorded}&at=500")
    page.wait_for_function("document.querySelectorAll('.sk-memory .sk-texts span').length > 1")
    assert page.evaluate(FAINTEST) >= 4.5


def test_memory_follows_while_one_drawing_comes_right_after_another(app, page, recorded):
    page.goto(f"{app}/?run={recorded}&at=500")
    page.wait_for_function("document.querySelectorAll('.sk-memory .sk-texts span').length > 1")
    drawn = "document.querySelector('.sk-memory').data.at(-1).x.at(-1)"
    page.wait_for_function(f"{drawn} >= 499")
    before = page.evaluate(drawn)
    # Each step is drawn before the time has passed in which a rest is answered.
    page.evaluate("""() => new Promise((done) => {
      const step = (left) => {
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
        if (left) setTimeout(step, 100, left - 1);
        else done();
      };
      step(25);
    })""")
    assert page.evaluate(drawn) > before + 5


def test_a_projected_plot_fits_a_page_that_becomes_lower(app, page, recorded):
    """On a projector a browser fills the screen, or leaves it: the width stays."""
    page.set_viewport_size({"width": 1440, "height": 1080})
    page.goto(f"{app}/?run={recorded}&at=500&projected=1")
    page.wait_for_function("document.querySelector('.sk-memory .sk-texts span')")
    page.set_viewport_size({"width": 1440, "height": 800})
    fits = """[...document.querySelectorAll(".sk-plot")].every(
      (plot) => plot.querySelector(".main-svg").getBoundingClientRect().height === plot.clientHeight)"""
    page.wait_for_function(fits)
    assert not cut_labels(page)


def test_a_run_that_is_not_there_is_said_and_the_page_can_start(app, page):
    page.goto(f"{app}/?run=nobody&at=17")
    page.get_by_text("no longer in memory").wait_for()
    page.get_by_role("button", name=re.compile("Start")).first.wait_for()


@pytest.fixture
def offline(page):
    """A page that reaches nothing."""
    page.context.set_offline(True)
    page.context.route(re.compile("^(?!file|data|blob)"), lambda route: route.abort())
    return page


def test_a_curve_that_is_zoomed_into_keeps_numbers_at_its_side(offline, recorded, tmp_path):
    page, out = offline, tmp_path / "page.html"
    report(library.find(recorded), out)
    for mode in ("relative", "rolling"):
        page.goto(f"{out.as_uri()}#mode={mode}")
        page.reload()
        wait_painted(page, 3000)
        box = page.locator(".sk-plot .nsewdrag").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.5)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5 + 25, steps=5)
        page.mouse.up()
        page.wait_for_function("document.querySelector('.sk-plot').layout.xaxis.range[0] > 0")
        page.wait_for_timeout(500)
        low, high = page.evaluate("document.querySelector('.sk-plot').layout.yaxis.range.map((v) => 10 ** v)")
        numbers = [
            float(text.replace(" ×", ""))
            for text in page.locator(".sk-plot").first.locator(".ytick").all_text_contents()
        ]
        assert high < 1.3 * low and len(numbers) >= 3 and all(low <= v <= high for v in numbers), (mode, numbers)


def test_colours_of_output_errors_end_with_one_and_more(offline, tmp_path):
    page, out = offline, tmp_path / "page.html"
    save(made_up(600, fidelity=True), library.home() / "measured", text_sha256="", weights_sha256="")
    report(library.find("measured"), out)
    page.add_init_script(
        """window.written = [];
        const write = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...at) {
            window.written.push(`${text}`);
            write.call(this, text, ...at);
        };"""
    )
    page.goto(f"{out.as_uri()}#chosen=1")
    wait_painted(page, 600)
    assert "1" in page.evaluate("window.written") and "≥ 1" not in page.evaluate("window.written")
    page.get_by_role("button", name="output error").click()
    page.wait_for_function("window.written.includes('≥ 1')")


def test_a_static_page_replays_without_network(offline, recorded, tmp_path):
    page, out = offline, tmp_path / "page.html"
    report(library.find(recorded), out, lane=1)
    page.goto(f"{out.as_uri()}#at=1234&mode=rolling")
    wait_painted(page, 1234)
    assert page.evaluate("window.__sinkscope.mode") == "rolling"
    for mode in ("cumulative", "relative"):
        page.get_by_role("button", name=mode).click()
        page.wait_for_function("mode => window.__sinkscope.mode === mode", arg=mode)
    # What was not measured is no number, to who hears the page either.
    page.get_by_role("button", name="KL", exact=True).click()
    page.wait_for_function("window.__sinkscope.mode === 'KL'")
    heard = page.locator(".sk-plot").first.get_attribute("aria-label")
    assert "NaN" not in heard and ". Dense: –; Window 128: –; Recompute" in heard
    page.get_by_role("button", name="relative").click()
    page.keyboard.press("End")
    wait_painted(page, 3000)
    # All that a report showed: curves and memory, the sink mass of every lane, the whole text, and where it comes from.
    page.wait_for_function("document.querySelectorAll('.sk-plot .scatterlayer .trace').length >= 9")
    assert page.locator(".sk-whole canvas").count() == 4
    # A lane that was switched is called by all policies that it was read under, wherever the replay is.
    below = page.locator(".sk-whole .sk-sub")
    assert below.nth(3).text_content().endswith(", Sinks + window 4 + 124 → Window 128")
    assert below.nth(1).text_content().endswith(", Window 128")
    assert page.locator(".text span").count() == 2999
    page.wait_for_function("location.hash.includes('at=3000')")
    page.reload()
    wait_painted(page, 3000)
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert not violations(page, "document"), scheme
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert not page.problems


def test_a_replay_that_nobody_sees_stands_still(offline, recorded, tmp_path):
    """A browser draws no frames of a tab that is hidden, and tells the page when it is hidden and seen again."""
    page, out = offline, tmp_path / "page.html"
    report(library.find(recorded), out)
    page.goto(f"{out.as_uri()}#at=1")
    wait_painted(page, 1)
    page.get_by_role("combobox", name="Speed").select_option("100 tokens/s")
    page.get_by_role("button", name="Play or pause (space)").click()
    page.wait_for_function("document.querySelector('.sk-scrub').value > 10")
    moved = page.evaluate(
        """async () => {
          const frames = window.requestAnimationFrame, kept = [], scrub = document.querySelector(".sk-scrub");
          const at = () => Number(scrub.value);
          const told = () => document.dispatchEvent(new Event("visibilitychange"));
          window.requestAnimationFrame = (f) => kept.push(f);
          told();
          await new Promise((done) => setTimeout(done, 4000));
          window.requestAnimationFrame = frames;
          const before = at();
          told();
          kept.forEach((f) => frames(f));
          while (at() === before) await new Promise((done) => setTimeout(done, 10));
          return at() - before;
        }"""
    )
    assert 0 < moved < 200
    page.get_by_role("button", name="Play or pause (space)").click()
    assert not page.problems


def test_a_static_site_opens_from_a_folder_and_below_any_address(page, recorded, tmp_path):
    shutil.copytree(library.find(recorded), tmp_path / "gallery" / "story")
    site(tmp_path / "served" / "some" / "where", tmp_path / "gallery")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=tmp_path / "served")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        served = f"http://127.0.0.1:{server.server_port}/some/where/index.html"
        for address in (served, (tmp_path / "served" / "some" / "where" / "index.html").as_uri()):
            page.goto(address)
            page.get_by_role("link", name="a play").click()
            wait_painted(page, 3000)
        server.shutdown()
    assert not [problem for problem in page.problems if "favicon" not in problem and "404" not in problem]
