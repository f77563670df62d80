"""A conversation in a real browser: say something, watch the cache lose it, play a script until a lane breaks down."""

import re

import pytest
from playwright.sync_api import expect

from .conftest import PATIENCE, choose, cut_labels

pytestmark = pytest.mark.browser

FIELD = "Say something to every lane"


def open_chat(app, page, query="") -> None:
    page.goto(f"{app}/chat{query}")
    page.get_by_label(FIELD).wait_for()


def say(page, text: str) -> None:
    page.get_by_label(FIELD).fill(text)
    page.keyboard.press("Enter")


def wait_answered(page, answers: int) -> None:
    """Wait until every lane has answered so often and is silent."""
    page.wait_for_function(
        """n => window.__sinkscope?.status === "waiting" &&
        [...document.querySelectorAll(".sk-lane")].every(l => l.querySelectorAll(".sk-assistant").length >= n)""",
        arg=answers,
    )


def lane_text(page, lane: int) -> str:
    return page.locator(".sk-flow").nth(lane).inner_text()


def gone(page, lane: int) -> int:
    return page.locator(".sk-lane").nth(lane).locator(".sk-flow .sk-gone").count()


def test_a_conversation_under_two_policies(app, page):
    open_chat(app, page)
    say(page, "What is the capital of France?")
    wait_answered(page, 1)
    for lane in range(2):
        assert "Paris" in lane_text(page, lane)
    # The caches are not full: nothing is dimmed, and the first tokens are there.
    assert gone(page, 0) == gone(page, 1) == 0
    # And still only what a policy keeps for ever is marked as a sink.
    assert [page.locator(".sk-lane").nth(i).locator(".sk-flow .sk-sink").count() for i in (0, 1)] == [4, 0]
    assert page.locator(".sk-first").first.inner_text().endswith("kept")
    say(page, "What is the opposite of hot?")
    wait_answered(page, 2)
    # The line has moved, what stands above it is dimmed; one lane still has its first tokens.
    before = gone(page, 0)
    assert before > 0 and gone(page, 1) > 0
    assert page.locator(".sk-line:visible").count() == 2
    # What it means stands below what was said, and covers none of it.
    assert page.locator(".sk-line").all_inner_texts() == ["", ""]
    assert page.locator(".sk-evicted").all_inner_texts() == ["before the bar: has left the cache"] * 2
    assert page.locator(".sk-lane").first.locator(".sk-sink").count() == 4
    assert page.locator(".sk-lane").nth(1).locator(".sk-sink").count() == 0
    assert page.locator(".sk-first").nth(1).inner_text().endswith("gone")
    assert "cold" in lane_text(page, 0)

    # A token: what it looked back at is drawn on the transcript, and the sinks got most of it.
    page.locator(".sk-lane").first.locator(".sk-assistant").last.locator("span").first.click()
    page.get_by_text("Shaded: what the outlined token gave").wait_for()
    shaded = page.locator(".sk-lane").first.locator(".sk-flow span[style*=--paint]")
    # The words are there before the weights are.
    shaded.nth(10).wait_for(state="attached")
    assert "% of the attention" in page.locator(".sk-first b").first.get_attribute("title")

    # Switched in the middle of the conversation, with the sinks pinned again.
    page.get_by_role("button", name="switch ▾").nth(1).click()
    page.get_by_role("button", name="Bring the sinks back", exact=True).click()
    page.locator(".sk-note", has_text="with the sinks pinned again").wait_for()
    # It leaves its mark in the transcript and in the list of lanes, and no two lanes have one name.
    mark = page.locator(".sk-lane").nth(1).locator(".sk-switched")
    assert mark.inner_text() == "switched: Sinks + window 4 + 60, with the sinks pinned again"
    page.get_by_test_id("stSidebar").get_by_text(re.compile(r"Sinks \+ window 4 \+ 60 from token \d+ on")).wait_for()
    page.locator(".sk-lane").nth(1).get_by_text("Sinks + window 4 + 60 (2)").wait_for()
    say(page, "How many legs does a spider have?")
    wait_answered(page, 3)
    assert page.locator(".sk-lane").nth(1).locator(".sk-sink").count() == 4
    assert gone(page, 0) > before

    # The same answer again; a refresh and a second tab find the conversation.
    text = lane_text(page, 0)
    page.get_by_role("button", name="Answer again").click()
    page.wait_for_function("window.__sinkscope.status === 'answering'")
    wait_answered(page, 3)
    assert lane_text(page, 0) == text
    page.get_by_label(FIELD).fill("half written")
    page.locator(".sk-lane").nth(1).locator(".sk-assistant").last.locator("span").nth(1).click()
    page.locator(".sk-lane").nth(1).locator(".sk-asked").wait_for()
    page.reload()
    page.locator(".sk-flow").first.wait_for()
    assert lane_text(page, 0) == text
    # What was looked at is looked at still, and the mark of the switch is where it was.
    page.locator(".sk-lane").nth(1).locator(".sk-asked").wait_for()
    assert mark.count() == 1 and page.locator(".sk-lane.sk-chosen").count() == 1
    assert page.get_by_label(FIELD).input_value() == "half written"
    other = page.context.new_page()
    other.goto(page.url)
    other.locator(".sk-flow").first.wait_for(timeout=PATIENCE)
    assert lane_text(other, 0) == text
    other.close()
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function(
        """[...document.querySelectorAll('.sk-plot')].every(p =>
        p.layout?.xaxis.gridcolor === '#33373d' && p.layout.width === p.clientWidth && p.clientWidth < 400)"""
    )
    assert cut_labels(page) == []
    assert page.problems == []
    assert page.strangers == []


def test_a_token_is_found_by_keys_and_none_is_lost_where_they_come_fast(app, page):
    page.goto(f"{app}/chat?run=gallery:breakdown")
    page.locator(".sk-flow span").first.wait_for()
    last = page.locator(".sk-flow").first.locator("[data-i]").last
    newest = int(last.get_attribute("data-i"))
    page.get_by_role("log").first.focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("token => location.search.includes(`token=${token}`)", arg=newest - 7)
    page.keyboard.press("Escape")
    page.wait_for_function("!location.search.includes('token=')")
    assert not page.problems and not page.strangers


def test_the_keyboard_is_never_lost(app, page):
    open_chat(app, page, "?max_new=24")
    say(page, "Tell me a story about a ship.")
    wait_answered(page, 1)
    again = page.get_by_role("button", name="Answer again")
    again.focus()
    page.keyboard.press("Enter")
    # The button has nothing to do while there are answers: they can be stopped now.
    page.wait_for_function("window.__sinkscope.status === 'answering'")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_function("window.__sinkscope.status === 'waiting'")
    switch = page.get_by_role("button", name="switch ▾").nth(1)
    switch.focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Apply").focus()
    page.keyboard.press("Enter")
    expect(switch).to_be_focused()
    page.locator(".sk-note", has_text="from the next token on").wait_for()
    assert not page.problems and not page.strangers


def test_why_an_answer_was_cut_reads_from_left_to_right_behind_words_that_do_not(app, page):
    open_chat(app, page, "?max_new=2")
    say(page, "שלום")
    mark = page.locator(".sk-flow [data-cut]").first
    mark.wait_for(state="attached")
    style = mark.evaluate(
        "span => { const s = getComputedStyle(span, '::after'); return [s.unicodeBidi, s.direction]; }"
    )
    assert style == ["isolate", "ltr"]


def test_a_prompt_that_is_refused_stays_in_the_field(app, page):
    open_chat(app, page, "?max_new=2&lane=dense")
    say(page, "Hello")
    wait_answered(page, 1)
    # White space to Python, and none to a browser.
    say(page, "\x85\x85")
    page.locator(".sk-note", has_text="The prompt is empty").wait_for()
    expect(page.get_by_label(FIELD)).to_have_value("\x85\x85")
    say(page, "Again")
    wait_answered(page, 2)
    assert page.get_by_label(FIELD).input_value() == "" and not page.problems


def test_the_bar_of_the_window_stands_before_its_token_in_either_direction(app, page):
    open_chat(app, page, "?max_new=2&lane=window:window=32")
    bar = page.locator(".sk-edge")
    widths = "bar => { const s = getComputedStyle(bar); return [s.borderRightWidth, s.borderLeftWidth]; }"
    # Behind the newest words only what opens an answer is kept, and two tokens of it.
    for words, drawn in (("שלום " * 20, ["2px", "0px"]), ("hello " * 40, ["0px", "2px"])):
        say(page, words)
        page.locator(".sk-user .sk-edge", has_text=re.compile(words[0] if drawn[1] == "2px" else "")).wait_for()
        page.wait_for_function("window.__sinkscope.status === 'waiting'")
        assert bar.evaluate(widths) == drawn
        wait_answered(page, 1)


def test_a_prompt_that_was_stopped_says_what_of_it_was_not_read(app, page):
    open_chat(app, page)
    say(page, "The ship went on and on. " * 2500)
    lane = page.locator(".sk-lane").first
    lane.get_by_text("reading").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("window.__sinkscope.status === 'waiting'")
    words = lane.get_by_text("tokens kept").inner_text()
    kept, total, unread = (
        int(n.replace(",", "")) for n in re.match(r"([\d,]+) of ([\d,]+) tokens kept, ([\d,]+) not", words).groups()
    )
    assert 0 < kept <= 64 and 0 < unread < total
    # The second lane was told nothing of it.
    second = page.locator(".sk-lane").nth(1)
    assert second.get_by_text("0 of").count() == 1 and second.locator(".sk-first").inner_text().endswith("not read yet")
    assert not page.problems and not page.strangers


def test_a_script_plays_until_the_window_breaks_down(app, page):
    open_chat(app, page)
    page.get_by_role("button", name="Where it breaks down").click()
    # Neither the script's words nor the other lane's: nobody who is asked for a planet says this.
    page.wait_for_function(
        """() => /(The(↵)*){3}|wis/.test([...document.querySelectorAll(".sk-lane")[1].querySelectorAll(".sk-assistant")]
        .map(e => e.textContent).join(" "))"""
    )
    assert "The month after May is June." in lane_text(page, 0)
    assert not re.search(r"wis |TheThe", lane_text(page, 0))
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("the script stands still").wait_for()
    assert "… stopped" in page.locator(".sk-flow [data-cut]").last.evaluate(
        "e => getComputedStyle(e, '::after').content"
    )
    page.get_by_role("button", name="Go on with the script").wait_for()
    page.get_by_role("button", name="New conversation").click()
    page.get_by_text("Nothing was said yet").first.wait_for()
    assert page.problems == []


def test_who_speaks_before_the_model_is_there_is_told_of_it(app, page):
    # Weights that no other test has loaded.
    open_chat(app, page, "?weights=int8&max_new=9")
    say(page, "What is the capital of France?")
    page.get_by_text("Answers come when the model is there").first.wait_for()
    # What is being waited for is said once, above.
    assert "load" not in page.locator(".sk-lanes").inner_text() + page.locator(".sk-composer").inner_text()
    assert page.get_by_text("Nothing was said yet").count() == 0
    wait_answered(page, 1)
    # Of so few tokens there is one point, which is seen.
    expect(page.locator(".sk-meter .scatterlayer path.point")).to_have_count(2 * page.locator(".sk-lane").count())
    assert page.problems == []


def test_what_is_written_stays_where_a_conversation_has_failed(app, page):
    open_chat(app, page)
    model = page.get_by_label("Model", exact=True)
    model.fill("/nowhere")
    model.press("Enter")
    say(page, "To be?")
    page.locator(".sk-note.sk-bad", has_text="/nowhere").wait_for()
    say(page, "Or not to be?")
    page.wait_for_timeout(500)
    assert page.get_by_label(FIELD).input_value() == "Or not to be?"


def test_fluent_is_not_remembering(app, page):
    open_chat(app, page)
    page.get_by_role("button", name="Fluent is not remembering").click()
    wait_answered(page, 5)
    answers = [page.locator(".sk-lane").nth(i).locator(".sk-assistant").last.inner_text() for i in range(2)]
    assert "Oscar" in answers[0] and "Oscar" not in answers[1] and "dog" in answers[1]
    assert page.get_by_text("No policy here extends what a model can recall").count() == 1


def test_what_is_wrong_gets_a_sentence(app, page):
    open_chat(app, page, "?lane=window:window=0")
    page.locator(".sk-note", has_text="window must be at least 1").wait_for()
    choose(page, page.get_by_label("Script", exact=True).first, "Upload a script")
    page.locator("input[type=file]").set_input_files({"name": "a.jsonl", "mimeType": "text/plain", "buffer": b"hello"})
    page.get_by_text("a.jsonl").first.wait_for()
    page.get_by_role("button", name="Play the script").click()
    page.locator(".sk-note", has_text="line 1 of a.jsonl is not JSON").wait_for()
    open_chat(app, page, "?run=gone")
    page.locator(".sk-note", has_text="no longer in memory").wait_for()
    # What looks like control or markup is text.
    say(page, "<|im_end|> <b>bold</b> <script>alert(1)</script>")
    page.locator(".sk-user", has_text="<script>alert(1)</script>").first.wait_for()
    assert "<|im_end|> <b>bold</b>" in page.locator(".sk-user").first.inner_text()
    page.keyboard.press("Escape")
    assert page.locator(".sk-flow b, .sk-flow script").count() == 0
    assert page.get_by_text("Traceback").count() == 0
    assert page.problems == []
