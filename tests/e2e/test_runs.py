"""The runs page in a real browser: what lies in the library is found, named, compared, deleted and brought back."""

import io
import zipfile

import pytest

from tests.fuzz import seeds

from .conftest import started, wait_until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    place = tmp_path_factory.mktemp("library")
    seeds.run(place / "first", end="finished")
    seeds.run(place / "second", end="interrupted")
    seeds.run(place / "talk", end="finished", chat=True)
    with started(SINKSCOPE_RUNS=str(place)) as (address, _):
        yield address, place


def rows(page, count: int) -> None:
    wait_until(page, "(n) => document.querySelectorAll('.sk-run h2').length === n", count)


def row(page, name: str):
    return page.locator(f".st-key-runs-row-{name}")


def test_list_is_searched_named_pinned_deleted_and_brought_back(library, page):
    address, place = library
    page.goto(f"{address}/runs")
    rows(page, 3)
    # Pictures are drawn, and by nobody else's server.
    wait_until(
        page,
        """() => {
            const pictures = [...document.querySelectorAll(".sk-run img")];
            return pictures.length === 6 && pictures.every((i) => i.complete && i.naturalWidth);
        }""",
    )
    row(page, "first").get_by_role("button", name="More").click()
    title = page.get_by_role("textbox", name="Title")
    title.fill("<b>Drop</b> the sinks ![x](http://127.0.0.1:9/x.png)")
    title.press("Enter")
    page.get_by_role("heading", name="<b>Drop</b> the sinks ![x](http://127.0.0.1:9/x.png)").wait_for()
    page.keyboard.press("Escape")
    row(page, "first").get_by_role("button", name="Pin", exact=True).click()
    row(page, "first").get_by_role("button", name="Unpin").wait_for()
    search = page.get_by_role("textbox", name="Search")
    search.fill("drop")
    search.press("Enter")
    rows(page, 1)
    assert "search=drop" in page.url
    page.reload()
    rows(page, 1)
    page.get_by_role("textbox", name="Search").fill("")
    page.get_by_role("textbox", name="Search").press("Enter")
    rows(page, 3)
    row(page, "second").get_by_role("button", name="More").click()
    page.get_by_role("button", name="Delete").click()
    rows(page, 2)
    assert not (place / "second").exists()
    # By the keyboard.
    page.get_by_role("button", name="Undo").focus()
    page.keyboard.press("Enter")
    rows(page, 3)
    assert (place / "second" / "run.json").exists()
    assert not page.problems and not page.strangers


def test_run_is_exported_and_taken_in_and_a_hostile_file_leaves_nothing(library, page, tmp_path):
    address, place = library
    page.goto(f"{address}/runs")
    rows(page, 3)
    row(page, "talk").get_by_role("button", name="More").click()
    with page.expect_download() as file:
        page.get_by_role("link", name="Export as .zip").click()
    whole = tmp_path / "talk.zip"
    file.value.save_as(whole)
    page.keyboard.press("Escape")
    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as z:
        z.writestr("../evil.json", "x")
    (tmp_path / "evil.zip").write_bytes(evil.getvalue())
    before = sorted(str(p) for p in place.parent.rglob("*"))
    page.get_by_role("button", name="Import").click()
    page.locator("input[type=file]").set_input_files(tmp_path / "evil.zip")
    page.get_by_text("would lie outside of the library").wait_for()
    assert sorted(str(p) for p in place.parent.rglob("*")) == before
    if not page.locator("input[type=file]").count():
        page.get_by_role("button", name="Import").click()
    page.locator("input[type=file]").set_input_files(whole)
    page.get_by_text("is in the library now").wait_for()
    rows(page, 4)
    assert (place / "talk-2" / "tokens.parquet").read_bytes() == (place / "talk" / "tokens.parquet").read_bytes()
    assert not page.problems and not page.strangers


@pytest.mark.parametrize("width", [1440, 400])
def test_runs_are_compared_at_any_width(library, page, width):
    address, _ = library
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{address}/runs")
    row(page, "first").wait_for()
    for name in ("first", "second"):
        row(page, name).get_by_role("checkbox").focus()
        page.keyboard.press("Space")
        wait_until(page, "(n) => document.querySelectorAll(`.st-key-runs-row-${n} input:checked`).length === 1", name)
    page.get_by_role("button", name="Compare 2").click()
    page.get_by_text("All lanes have read the same tokens").wait_for()
    wait_until(page, "() => document.querySelectorAll('.sk-chart .main-svg').length >= 4")
    assert "compare=first" in page.url and "compare=second" in page.url
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.reload()
    page.get_by_role("region", name="Numbers of all lanes").wait_for()
    assert page.get_by_role("region", name="Numbers of all lanes").locator("tr").count() == 5
    page.get_by_role("button", name="All runs").click()
    row(page, "first").wait_for()
    wait_until(page, "() => !location.search.includes('compare')")
    assert not page.problems and not page.strangers


def test_open_shows_the_run_again(library, page):
    address, _ = library
    page.goto(f"{address}/runs?search=first")
    row(page, "first").get_by_role("link", name="Open").click()
    page.wait_for_url("**/?*run=first*")
    wait_until(page, "() => document.querySelectorAll('.sk-plot .main-svg').length >= 1")
    assert not page.problems and not page.strangers


def test_open_in_a_new_tab_shows_the_run_and_not_the_library(library, page):
    address, _ = library
    page.goto(f"{address}/runs?search=first")
    link = row(page, "first").get_by_role("link", name="Open")
    link.wait_for()
    with page.context.expect_page() as tab:
        link.click(button="middle")
    tab.value.get_by_role("button", name="Play").first.wait_for()
    assert tab.value.url.startswith(f"{address}/?") and "run=first" in tab.value.url
    # The library stays as it was.
    assert page.url.startswith(f"{address}/runs")
    assert not page.problems and not page.strangers


def test_library_without_runs_says_how_one_gets_one(page, tmp_path):
    with started(SINKSCOPE_RUNS=str(tmp_path / "none")) as (address, _):
        page.goto(f"{address}/runs")
        page.get_by_text("There is no run here yet").wait_for()
        page.get_by_role("link", name="Read a text under several policies").click()
        page.get_by_role("button", name="Run it live").wait_for()


def test_lanes_of_a_run_stay_inside_its_row_on_a_narrow_page(library, page):
    page.set_viewport_size({"width": 170, "height": 800})
    page.goto(f"{library[0]}/runs")
    page.locator(".sk-run-lane").first.wait_for()
    out = """() => [...document.querySelectorAll(".sk-run-lane")].filter((lane) =>
      lane.getBoundingClientRect().right > lane.closest(".sk-run-words").getBoundingClientRect().right + 1
    ).map((lane) => lane.textContent)"""
    assert not page.evaluate(out)
