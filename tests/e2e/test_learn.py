"""The lesson in a real browser: every chapter in both languages, light and dark, wide and narrow; what is played."""

import re
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import expect

from app.lesson import LANGUAGES, lesson

pytestmark = pytest.mark.browser

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
BRIGHTNESS = "() => +getComputedStyle(document.querySelector('.stApp')).backgroundColor.match(/\\d+/)[0]"
LATE = """(() => {
  const late = (hear) => (event) => setTimeout(hear, 1500, event);
  window.WebSocket = class extends WebSocket {
    set onmessage(hear) { super.onmessage = late(hear); }
    addEventListener(what, hear, how) { super.addEventListener(what, what === "message" ? late(hear) : hear, how); }
  };
})()"""
"""Lets whatever the server says arrive a second and a half later."""
RESULTS = {
    "row": "[data-testid=stMetricValue]:has-text('1.000')",
    "first": "td:has-text('/ 270')",
    "nothing": "[role=img][aria-label*='11.5']",
    "drop": "[data-testid=stMetricValue]:has-text('.')",
    "enough": "[data-testid=stMetricValue]:has-text('1.00 ×')",
    "cost": "[role=img][aria-label*='T²']",
    "chunks": "td:has-text('e-0')",
    "heads": "[role=img][aria-label*='8.59 GB']",
    "emergence": "[role=img][aria-label*='0.0']",
    "recall": "[role=img][aria-label*='12 of 12'], [role=img][aria-label*='12 / 12']",
}
"""What a chapter has computed when it is opened."""

MEET = """() => {
  const met = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const words = ".legendtext, .annotation-text, .g-xtitle text, .g-ytitle text, .nsewdrag";
  return [...document.querySelectorAll(".sk-chart")].flatMap((chart) => {
    const all = [...chart.querySelectorAll(words)].map((node) => [node.textContent, node.getBoundingClientRect()]);
    const drawn = all.filter(([, at]) => at.width);
    return drawn.flatMap(([a, at], i) => drawn.slice(i + 1).filter(([, b]) => met(at, b)).map(([b]) => `${a} / ${b}`));
  });
}"""
"""Words of charts that lie on others, or on a plot."""


def opened(page, language, name):
    """Wait until a chapter shows what it computes."""
    chapter = lesson(language)[name]
    page.get_by_role("heading", name=f"{chapter.number} · {chapter.title}", exact=True).wait_for()
    page.locator(RESULTS[name]).first.wait_for()


def severe(page):
    """What axe finds that keeps somebody from using the page."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_chapter_is_opened_by_an_arrow_key(app, page, language):
    page.goto(f"{app}/learn?lang={language}")
    for name in RESULTS:
        opened(page, language, name)
        # Marks of emphasis that stand beside a bracket are not always read as such.
        assert "**" not in page.get_by_test_id("stMain").inner_text(), name
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(f"dark => (({BRIGHTNESS})() < 64) === dark", arg=scheme == "dark")
            assert not severe(page), (name, scheme)
            page.set_viewport_size({"width": 400, "height": 900})
            # Nothing sticks out at the side, and what was computed is still there.
            widths = page.evaluate(
                "(e => [e.scrollWidth, e.clientWidth])(document.querySelector('[data-testid=stMain]'))"
            )
            assert widths[0] <= widths[1] <= 400, (name, scheme)
            choices = page.get_by_test_id("stMain").get_by_test_id("stButtonGroup").locator("> [role]")
            assert not choices.evaluate_all("of => of.some((e) => e.scrollWidth > e.clientWidth + 1)"), name
            page.locator(RESULTS[name]).first.scroll_into_view_if_needed()
            page.set_viewport_size({"width": 1440, "height": 900})
        if name != [*RESULTS][-1]:
            page.keyboard.press("ArrowRight")
    assert page.get_by_role("button", name=lesson(language)["page"].say("next")).is_disabled()
    page.keyboard.press("ArrowLeft")
    opened(page, language, "emergence")
    assert "chapter=emergence" in page.url
    assert not page.problems and not page.strangers


def test_no_press_is_lost_however_fast_they_come(app, page):
    page.goto(f"{app}/learn?chapter=row")
    opened(page, "en", "row")
    # Seven chapters on and one back, faster than the page runs.
    for key in ["ArrowRight"] * 7 + ["ArrowLeft"]:
        page.locator("body").press(key)
    opened(page, "en", "chunks")
    page.get_by_role("button", name="1 · A row must sum to one").click()
    opened(page, "en", "row")
    page.get_by_role("button", name="Next").dblclick()
    opened(page, "en", "nothing")
    assert not page.problems and not page.strangers


def test_a_sentence_and_a_chapter_stay_where_the_server_is_far_away(app, page):
    page.add_init_script(LATE)
    page.goto(f"{app}/learn?chapter=first")
    opened(page, "en", "first")
    page.get_by_role("textbox", name="Your sentence").fill("A dog ran home")
    page.get_by_role("textbox", name="Your sentence").press("Enter")
    page.wait_for_url("**sentence=A+dog+ran+home**")
    page.get_by_role("heading", name="2 · ").click()
    # On to a chapter that asks for no sentence, and back before the browser hears of it.
    page.locator("body").press("ArrowRight")
    page.wait_for_timeout(750)
    page.locator("body").press("ArrowLeft")
    page.wait_for_timeout(3000)
    opened(page, "en", "first")
    assert "chapter=first" in page.url
    page.get_by_role("button", name="1 · A row must sum to one").click()
    opened(page, "en", "row")
    assert "sentence=A+dog+ran+home" in page.url
    expect(page.get_by_role("textbox", name="Your sentence")).to_have_value("A dog ran home")
    assert not page.problems and not page.strangers


def test_a_chapter_comes_back_where_the_server_is_far_away(app, page):
    page.add_init_script(LATE)
    page.goto(f"{app}/learn?chapter=nothing")
    opened(page, "en", "nothing")
    # That a script has ended arrives late, too; what follows needs a browser that has heard of all before.
    ended = "document.querySelector('[data-test-script-state]').dataset.testScriptState === 'notRunning'"
    page.wait_for_function(ended)
    page.locator("body").press("ArrowLeft")
    opened(page, "en", "first")
    page.wait_for_function(ended)
    page.locator("body").press("ArrowLeft")
    # Back before the browser hears that the first chapter was drawn, and forgets what the third one was.
    page.wait_for_timeout(750)
    for _ in range(2):
        page.locator("body").press("ArrowRight")
    opened(page, "en", "nothing")
    assert not page.problems and not page.strangers


def test_a_row_is_played_with(app, page):
    page.goto(f"{app}/learn?chapter=1")
    opened(page, "en", "row")
    alt = page.locator("[role=img][aria-label]").first.get_attribute("aria-label")
    # Five less of every logit changes nothing: the numbers of the logits do, and those of the weights do not.
    page.get_by_role("button", name="All 5 lower").click()
    page.locator("[data-testid=stSliderThumbValue]", has_text="-2.3").wait_for()
    assert page.locator("[role=img]").first.get_attribute("aria-label") == alt
    page.get_by_text("Off by one", exact=True).click()
    page.get_by_text("Goes nowhere").first.wait_for()
    page.get_by_role("button", name="Reset").click()
    page.locator("[data-testid=stSliderThumbValue]", has_text="2.7").wait_for()
    page.get_by_role("textbox", name="Your sentence").fill("word")
    page.get_by_role("textbox", name="Your sentence").press("Enter")
    page.get_by_text("Write at least two words.").wait_for()
    # The answer is folded away, until it is wanted.
    answer = page.get_by_text("Only differences count")
    assert not answer.is_visible()
    page.get_by_text("Answer", exact=True).click()
    answer.wait_for()
    assert not page.problems and not page.strangers


def test_a_chapter_is_linked_to_translated_and_projected(app, page):
    page.goto(f"{app}/learn?chapter=7")
    opened(page, "en", "chunks")
    page.get_by_text("mat", exact=True).first.click()
    page.get_by_text("Joined from 4 pieces").wait_for()
    page.get_by_text("中文", exact=True).click()
    opened(page, "zh", "chunks")
    assert "lang=zh" in page.url
    page.locator("body").press("p")
    page.get_by_role("button", name="退出投影").wait_for()
    assert "projected=1" in page.url and not page.get_by_test_id("stSidebar").is_visible()
    page.reload()
    opened(page, "zh", "chunks")
    assert not page.get_by_test_id("stSidebar").is_visible()
    page.goto(f"{app}/learn?chapter=eleven")
    page.get_by_text("That chapter does not exist.").wait_for()
    opened(page, "en", "row")
    assert not page.problems and not page.strangers


def test_a_projected_chapter_fills_the_screen_and_no_more(app, page):
    page.set_viewport_size({"width": 1920, "height": 1080})
    ends = """[...document.querySelectorAll('[data-testid=stMainBlockContainer] *')].filter((e) => e.checkVisibility())
      .map((e) => e.getBoundingClientRect().bottom).reduce((a, b) => Math.max(a, b))"""
    for name in ("row", "first", "heads", "enough"):
        page.goto(f"{app}/learn?chapter={name}&projected=1")
        opened(page, "en", name)
        page.wait_for_function(f"0.85 * innerHeight < {ends}")
        assert (
            page.evaluate("(e => e.scrollHeight - e.clientHeight)(document.querySelector('[data-testid=stMain]'))") == 0
        )
        assert page.evaluate(ends) <= 1080


def test_words_of_charts_meet_nothing_on_a_narrow_page(app, page):
    page.set_viewport_size({"width": 400, "height": 900})
    for name in ("nothing", "drop", "enough", "cost", "emergence", "recall"):
        page.goto(f"{app}/learn?chapter={name}")
        opened(page, "en", name)
        page.locator(".sk-chart .nsewdrag").first.wait_for(state="attached")
        assert not page.evaluate(MEET), name


def test_choices_stand_in_one_line_with_boxes_and_have_all_their_borders(app, page):
    page.goto(f"{app}/learn?chapter=row")
    labels = page.get_by_test_id("stMain").get_by_test_id("stWidgetLabel")
    for words in ("Layer", "How logits become weights"):
        labels.filter(has_text=words).wait_for()
    tops = [labels.filter(has_text=words).bounding_box()["y"] for words in ("Layer", "How logits become weights")]
    assert abs(tops[0] - tops[1]) < 2
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(f"{app}/heads?panel=measures")
    choice = page.get_by_role("radio", name="What is each head's sink worth?")
    choice.wait_for()
    # It goes on in the next line, beside nothing that has a border for it.
    assert choice.evaluate("e => getComputedStyle(e).borderLeftColor === getComputedStyle(e).borderTopColor")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_where_the_keyboard_is_among_the_pages_is_seen(app, page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{app}/runs")
    link = page.get_by_test_id("stHeader").get_by_role("link", name="Recall")
    link.wait_for()
    for _ in range(40):
        page.keyboard.press("Tab")
        if link.evaluate("e => e === document.activeElement"):
            break
    style, width, colour = link.evaluate(
        "e => (s => [s.outlineStyle, s.outlineWidth, s.outlineColor])(getComputedStyle(e))"
    )
    assert (style, width) == ("solid", "3px") and ("255" in colour) == (scheme == "dark")


def test_an_answer_closes_with_its_chapter_and_what_is_cut_is_said(app, page):
    page.goto(f"{app}/learn?chapter=row&lang=zh")
    opened(page, "zh", "row")
    page.get_by_text("保留最前面的 10 个词元").wait_for()
    page.get_by_role("textbox", name="你的句子").fill("one two three four five six seven eight nine ten eleven twelve")
    page.get_by_role("textbox", name="你的句子").press("Enter")
    page.get_by_text("共 12 个词元，只保留最前面的 10 个").wait_for()
    answer = page.get_by_test_id("stExpander").locator("details")
    page.get_by_text("答案", exact=True).click()
    page.get_by_text("毫无变化").wait_for()
    expect(answer).to_have_attribute("open", "")
    page.get_by_role("button", name="下一章").click()
    opened(page, "zh", "first")
    # That of the chapter before may stand there for a moment.
    expect(answer).not_to_have_attribute("open", "")
    page.get_by_role("button", name="下一章").click()
    page.get_by_role("button", name="下一章").click()
    opened(page, "zh", "drop")
    page.locator("[data-testid=stMetricLabel]", has_text="汇点加窗口").wait_for()
    assert not page.problems and not page.strangers


def test_sinks_are_dropped_while_the_model_reads(app, page):
    page.goto(f"{app}/learn?chapter=drop")
    opened(page, "en", "drop")
    page.get_by_role("button", name="Drop the sinks now").click()
    page.locator("[data-testid=stMetricLabel]", has_text="Sinks + window").wait_for(state="hidden")
    page.get_by_role("button", name="Give them back").click()
    page.locator("[data-testid=stMetricLabel]", has_text="Sinks + window").wait_for()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Go on").wait_for()
    assert not page.problems and not page.strangers


def test_a_sink_is_trained_looked_back_at_and_exported(app, page):
    page.goto(f"{app}/learn?chapter=emergence")
    opened(page, "en", "emergence")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Go on").wait_for()
    page.get_by_role("button", name="Settings").click()
    steps = page.get_by_role("spinbutton", name="Steps")
    steps.fill("60")
    steps.press("Enter")
    page.get_by_text("to train with these settings").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Start again").click()
    page.get_by_text("60 of 60 steps Finished.").wait_for()
    slider = page.get_by_role("slider", name="Look at step")
    slider.press("Home")
    page.locator("[role=img][aria-label*='map at step 0;']").wait_for()
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as file:
        page.get_by_role("link", name=re.compile("Softmax · CSV")).click()
    assert file.value.path().read_text().startswith("step,loss,copied,weight 0.0,norm 0.0\n0,")
    with page.expect_download() as file:
        page.get_by_role("link", name=re.compile("weight on first token · PDF")).click()
    assert file.value.path().read_bytes().startswith(b"%PDF")
    assert not page.problems and not page.strangers
