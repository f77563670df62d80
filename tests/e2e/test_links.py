"""A link shows what was seen where it was copied, and back and forward go through what was opened."""

import re
from hashlib import sha256
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from analysis.runs import archive, library
from tests.fuzz import seeds

from .conftest import started, wait_until
from .test_heads import set_number, tile
from .test_live import choose_head, press_main, stop, wait_read

pytestmark = pytest.mark.browser

LANES = "lane=streaming:sinks=4,window=60&lane=window:window=64"


def asked(page) -> dict[str, list[str]]:
    """What the address of a page says."""
    return parse_qs(urlsplit(page.url).query)


def wait_asked(page, name: str, value: str | None) -> None:
    """Return once the address of a page says so; None: once it does not name that."""
    page.wait_for_function("([n, v]) => new URLSearchParams(location.search).get(n) === v", arg=[name, value])


@pytest.fixture
def elsewhere(browser):
    """Somebody else's browser."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield context.new_page()
    context.close()


def test_back_and_forward_go_through_runs_pages_and_chapters(app, page):
    page.goto(f"{app}/?{LANES}")
    page.get_by_text("Window 64").first.wait_for()
    before = page.evaluate("history.length")
    press_main(page)
    wait_read(page, 0, 1)
    stop(page)
    choose_head(page, 20, 3)
    wait_asked(page, "head", "20.3")
    page.get_by_role("button", name="cumulative").click()
    wait_asked(page, "mode", "cumulative")
    first = asked(page)["run"][0]
    # A run is an entry; what is looked at in it is none.
    assert page.evaluate("history.length") == before + 1
    page.get_by_role("link", name="Learn", exact=True).click()
    page.get_by_text("Sum of the weights").wait_for()
    page.get_by_role("button", name=re.compile("^2 · ")).click()
    wait_asked(page, "chapter", "first")
    page.get_by_role("button", name=re.compile("^3 · ")).click()
    wait_asked(page, "chapter", "nothing")
    page.go_back()
    wait_asked(page, "chapter", "first")
    page.get_by_role("heading", name=re.compile("^2 · ")).wait_for()
    page.go_back()
    page.get_by_role("heading", name=re.compile("^1 · ")).wait_for()
    page.go_back()
    page.get_by_text("Layer 20, head 3 attention map").wait_for()
    assert asked(page)["run"] == [first]
    page.wait_for_function("window.__sinkscope?.mode === 'cumulative'")
    page.go_back()
    wait_asked(page, "run", None)
    page.locator(".sk-go", has_text="Start").wait_for()
    page.get_by_text("Window 64").first.wait_for()
    page.go_forward()
    page.get_by_text("Layer 20, head 3 attention map").wait_for()
    page.go_forward()
    page.get_by_role("heading", name=re.compile("^1 · ")).wait_for()
    assert not page.problems and not page.strangers


def test_a_link_to_the_heads_page_shows_the_same_map(app, page, elsewhere):
    page.goto(f"{app}/heads?tokens=300&pool=mean&colour=linear&head=3.2&text=macbeth&place=100.50.64")
    page.get_by_role("button", name="Capture").click()
    page.wait_for_function("window.__sinkscope_atlas?.tile >= 1")
    # What a link says holds for the first stretch.
    assert tile(page)["head"] == [3, 2]
    page.get_by_text("300 tokens of macbeth").wait_for()
    page.get_by_text("logits", exact=True).click()
    wait_asked(page, "cells", "logits")
    world = page.locator(".sk-world").first
    assert "queries 100 to 164, keys from 50" in world.get_attribute("aria-label")
    world.press("ArrowRight")
    page.wait_for_function("!location.search.includes('100.50.64')")
    link, label = page.url, world.get_attribute("aria-label")
    elsewhere.goto(link)
    there = elsewhere.locator(".sk-world").first
    there.wait_for()
    expect(there).to_have_attribute("aria-label", label)
    assert elsewhere.url == link
    # Measures and knock-outs are panels of their own.
    page.get_by_text("Measures", exact=True).click()
    set_number(page, "Samples", 4)
    wait_asked(page, "samples", "4")
    elsewhere.goto(page.url)
    expect(elsewhere.get_by_role("spinbutton", name="Samples")).to_have_value("4")
    page.go_back()
    page.get_by_text("300 tokens of macbeth").wait_for()
    assert not page.problems and not page.strangers


def test_a_link_to_the_chat_page_sets_it_up_in_the_same_way(app, page):
    link = f"{app}/chat?dtype=bfloat16&kv_heads=3&script=memory&seed=7&temperature=0.5&max_new=12&kv_chunk=64&shown=1"
    page.goto(link)
    page.get_by_text("Nothing was said yet").first.wait_for()
    expect(page.get_by_role("spinbutton", name="KV heads")).to_have_value("3")
    page.get_by_text("How answers are chosen").click()
    expect(page.get_by_role("spinbutton", name="Seed")).to_have_value("7")
    page.wait_for_url(lambda url: sorted(url.split("?")[1].split("&")) == sorted(link.split("?")[1].split("&")))
    page.goto(f"{app}/chat?seed=x&script=sha256:0123456789abcdef&model=nobody/nothing")
    page.get_by_text("upload it again").first.wait_for()
    page.get_by_text("an address fetches none").first.wait_for()
    assert not page.problems and not page.strangers


@pytest.mark.parametrize("where", ["", "chat", "heads", "figures", "learn?chapter=heads"])
def test_every_page_copies_its_link_by_key(app, page, where):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{app}/{where}")
    button = page.get_by_role("button", name="Copy link")
    button.focus()
    expect(button).to_have_css("outline-width", "3px")
    expect(button).to_have_css("outline-style", "solid")
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    assert not page.problems and not page.strangers


def test_a_link_is_copied_where_a_browser_keeps_the_clipboard_from_pages(app, page):
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.goto(f"{app}/?{LANES}&mode=rolling")
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("status").get_by_text("Copied").wait_for()
    field = page.get_by_role("textbox", name="Model")
    field.fill("")
    field.press("Control+v")
    expect(field).to_have_value(page.url)


SET_UP = {
    "": "lane=window:window=64&text=macbeth&mode=cumulative&weights=int8&special=tokens",
    "chat": "lane=window:window=64&script=memory&seed=7&temperature=0.5&weights=model&dtype=bfloat16",
    "heads": "panel=knockouts&kind=weights&layer=3&tokens=96&text=macbeth",
    "figures": "figure=strip:lane=1,begin=5,tokens=30&venue=acl&points=6.5&file=svg&dpi=150&grey=1",
    "learn": "chapter=row&sentence=Words+of+my+own+here&head=20.3&kind=off-by-one&logits=1,2.5,-3,0,4",
}
"""A page set up in a way of its own, for each page."""
FIELDS = """() => [...document.querySelectorAll("input")].filter((input) => input.type !== "file")
  .map((input) => [input.ariaLabel, input.type === "checkbox" ? input.checked : input.value]).sort().join("; ")"""


def settled(page, query: str, like: str = "") -> str:
    """Its fields, once a page says what it was asked, and its fields change no more; `like`: what they come to, which
    may be when a model has been loaded."""
    wanted = sorted(f"{name},{value}" for name, of in parse_qs(query).items() for value in of)
    said = "[...new URLSearchParams(location.search)].map(String).sort().join('; ')"
    wait_until(page, f"(wanted) => {said} === wanted", "; ".join(wanted))
    seen = [""]
    while not seen[-1] or seen[-1] != seen[-2] or seen[-1] != (like or seen[-1]):
        assert len(seen) < 60, f"its fields do not come to rest, or not to {like!r}: {seen[-2:]}"
        page.wait_for_timeout(1500)
        seen.append(page.evaluate(FIELDS))
    return seen[-1]


def test_links_of_every_page_open_the_same_on_another_server_and_back_and_forward(app, page, tmp_path):
    with started(SINKSCOPE_RUNS=str(tmp_path / "runs")) as (other, _):
        fields = {}
        for where, query in SET_UP.items():
            page.goto(f"{app}/{where}?{query}")
            fields[where] = settled(page, query)
        for where, query in list(SET_UP.items())[-2::-1]:
            page.go_back()
            settled(page, query, fields[where])
        page.go_forward()
        settled(page, SET_UP["chat"], fields["chat"])
        for where, query in SET_UP.items():
            page.goto(f"{other}/{where}?{query}")
            settled(page, query, fields[where])
    assert not page.problems and not page.strangers


def test_a_link_to_runs_opens_the_same_elsewhere_once_the_runs_are_there(app, page, tmp_path):
    names = ["handed-a", "handed-b"]
    for name in names:
        seeds.run(library.home() / name, end="finished")
        archive.export(name, tmp_path / f"{name}.zip")
    link = f"runs?{'&'.join(f'compare={name}' for name in names)}&mode=cumulative&lanes=0.1"
    numbers = page.get_by_role("region", name="Numbers of all lanes")

    def seen() -> str:
        """The table, once the grids of the lanes are there that the link says."""
        fields = "[...document.querySelectorAll('[data-testid=stSelectbox] input')].map((input) => input.value)"
        wait_until(page, f"() => {fields}.join() === 'Dense,Window → Window 4'")
        return numbers.inner_text()

    page.goto(f"{app}/{link}")
    here = seen()
    with started(SINKSCOPE_RUNS=str(tmp_path / "runs")) as (other, _):
        page.goto(f"{other}/{link}")
        page.get_by_text("which has no 'handed-a' and no 'handed-b'").wait_for()
        page.get_by_role("button", name="Import").click()
        for name in names:
            # The form of the one before goes when its run has come.
            wait_until(page, "() => document.querySelectorAll('input[type=file]').length === 1")
            page.locator("input[type=file]").set_input_files(tmp_path / f"{name}.zip")
            page.get_by_text("is in the library now").wait_for()
            page.get_by_text(f"no '{name}'").wait_for(state="detached")
        assert seen() == here and page.url == f"{other}/{link}"
        page.reload()
        assert seen() == here
        page.goto(f"{other}/runs?search=handed-b")
        # The block of a row comes before what stands in it.
        page.locator(".st-key-runs-row-handed-b .sk-run h2").wait_for()
        assert page.locator(".sk-run h2").count() == 1
        expect(page.get_by_role("textbox", name="Search")).to_have_value("handed-b")
    assert not page.problems and not page.strangers


def test_back_leads_from_the_list_to_a_comparison_as_it_was(app, page):
    for name in ("linked-a", "linked-b"):
        seeds.run(library.home() / name, end="finished")
    page.goto(f"{app}/runs?compare=linked-a&compare=linked-b")
    page.get_by_text("All lanes have read the same tokens").wait_for()
    page.get_by_text("Cumulative", exact=True).click()
    wait_asked(page, "mode", "cumulative")
    page.get_by_role("button", name="All runs").click()
    page.locator(".st-key-runs-row-linked-a").wait_for()
    page.go_back()
    page.get_by_role("region", name="Numbers of all lanes").wait_for()
    wait_asked(page, "mode", "cumulative")
    assert not page.problems and not page.strangers


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_copies_its_link_too(app, page, scheme):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(f"{app}/runs?search=dense")
    button = page.get_by_role("button", name="Copy link")
    button.wait_for()
    box = button.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 400 and box["height"] >= 24
    for other in page.locator("[data-testid=stHeader] button, .st-key-project-button button").all():
        if other.is_visible():
            its = other.bounding_box()
            assert its["x"] + its["width"] <= box["x"] + 1 or its["x"] >= box["x"] + box["width"] - 1
    button.click()
    page.get_by_role("status").get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not page.problems and not page.strangers


def test_a_script_of_a_link_is_asked_for_and_no_other_is_taken(app, page, tmp_path):
    right = b"What is the capital of France?\nAnd of Italy?\n"
    (tmp_path / "wrong.txt").write_text("Who are you?\n")
    named = f"sha256:{sha256(right).hexdigest()[:16]}"
    page.goto(f"{app}/chat?script={named}&max_new=4&lane=window:window=64")
    page.get_by_text("upload it again").first.wait_for()
    wait_asked(page, "script", named)
    page.locator("input[type=file]").set_input_files(tmp_path / "wrong.txt")
    page.get_by_text("wrong.txt").first.wait_for()
    page.get_by_role("button", name="Play the script").click()
    page.get_by_text("is not the script of this link").first.wait_for()
    assert not page.problems and not page.strangers
