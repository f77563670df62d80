"""The heads page in a real browser: maps of a captured stretch, and heads that are knocked out."""

import re

import pytest
from playwright.sync_api import expect

from analysis.runs.codec import LEVELS
from analysis.runs.player import script, style

from .conftest import choose

pytestmark = pytest.mark.browser


def set_number(page, name, value):
    box = page.get_by_role("spinbutton", name=name)
    # While a panel gives way to another, both have such a box; before torch is there, none has.
    expect(box).to_have_count(1, timeout=60_000)
    box.fill(str(value))
    box.press("Enter")


def tile(page):
    return page.evaluate("window.__sinkscope_atlas")


def test_a_captured_stretch_is_panned_zoomed_and_compared(app, page, tmp_path):
    page.goto(f"{app}/heads")
    set_number(page, "Tokens", 400)
    folder = page.get_by_role("textbox", name="Folder")
    folder.fill(str(tmp_path / "stretch"))
    folder.press("Enter")
    page.get_by_role("button", name="Capture").click()
    page.wait_for_function("window.__sinkscope_atlas?.tile >= 1")
    first = tile(page)
    # It opens with a head that looks at the first tokens.
    assert first["scale"] == 1 and first["head"][0] >= 10
    world = page.locator(".sk-world").first
    box = world.bounding_box()
    # The first column, far down: a weight, of named tokens.
    page.mouse.move(box["x"] + 79, box["y"] + 300)
    page.locator(".sk-tip", has_text="(0):").wait_for()
    for _ in range(5):
        page.mouse.wheel(0, -240)
    page.wait_for_function("before => window.__sinkscope_atlas.tile > before", arg=first["tile"])
    page.mouse.move(box["x"] + 84, box["y"] + 310)
    page.locator(".sk-tip", has_text='"').wait_for()
    world.press("0")
    page.mouse.click(box["x"] + 79, box["y"] + 300)
    page.get_by_text("Attention from the text to").wait_for()
    # The pair is marked, and the mark goes with the map.
    page.wait_for_function("window.__sinkscope_atlas.marked?.[1] === 0")
    # The keyboard takes up the pair in the middle, and goes on from there.
    world.press("Enter")
    page.wait_for_function("`${window.__sinkscope_atlas.marked}` === '200,200'")
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        world.press(f"Shift+{key}")
    page.wait_for_function("`${window.__sinkscope_atlas.marked}` === '202,197'")
    # Small maps of all heads of the layer; a press opens one.
    choose(page, page.get_by_role("combobox", name="Small maps"), "heads of this layer")
    page.locator(".sk-many button").nth(8).click()
    page.wait_for_function("window.__sinkscope_atlas.head[1] === 8")
    # What was kept is opened again after a new page; and compared with another policy's.
    page.goto(f"{app}/heads")
    folder = page.get_by_role("textbox", name="Folder")
    folder.fill(str(tmp_path / "stretch"))
    folder.press("Enter")
    page.get_by_role("button", name="Open again").click()
    page.wait_for_function("window.__sinkscope_atlas?.tile >= 1")
    page.get_by_text("400 tokens of Hamlet").wait_for()
    choose(page, page.get_by_role("combobox", name="Small maps"), "heads of this layer")
    page.locator(".sk-many button").nth(8).wait_for()
    folder.fill("")
    folder.press("Enter")
    page.get_by_role("button", name="Dense").click()
    choose(page, page.get_by_role("combobox", name="Policy"), "Sinks + window")
    page.get_by_role("spinbutton", name="Window").wait_for()
    page.keyboard.press("Escape")
    set_number(page, "Tokens", 400)
    page.get_by_role("button", name="Capture").click()
    page.get_by_text("Sinks + window 4 + 252 · 400 tokens").wait_for()
    # Small maps were asked for before, and are there again.
    page.locator(".sk-many button").nth(8).wait_for()
    choose(page, page.get_by_role("combobox", name="Compare with"), "Dense, hamlet, 400 tokens")
    page.locator(".sk-world").nth(1).wait_for()
    page.wait_for_function("document.querySelectorAll('.sk-world')[1].clientWidth > 0")
    left, right = (page.locator(".sk-world").nth(i).bounding_box() for i in (0, 1))
    assert abs(left["y"] - right["y"]) < 30 and right["x"] >= left["x"] + left["width"] > 400
    page.get_by_text("difference").click()
    page.get_by_text("minus Dense").wait_for()
    page.wait_for_function("window.__sinkscope_atlas.low === -window.__sinkscope_atlas.high")
    assert not page.problems and not page.strangers


@pytest.mark.parametrize(
    ("kind", "level", "said"),
    [("weights", LEVELS["top"], "1.0"), ("weights", 1, "at most 0.000001"), ("logits", LEVELS["top"], "250")],
)
def test_what_is_looked_at_stays_on_a_map_that_was_panned_far(page, kind, level, said):
    """Also where all parts are of one scale, as they are once another head is chosen while one looks closely.  A weight
    that is smaller than any level is not said to be as large as the smallest."""
    page.set_content(f"<style>{style('atlas/world')}</style><div id='root' style='width: 600px'></div>")
    page.add_script_tag(content=f"{script('atlas/world')}\nwindow.makeWorld = makeWorld;")
    page.evaluate(
        """([levels, kind, level]) => {
          const shared = { x: 0, y: 0, z: null, linear: false }, nothing = () => {};
          const world = makeWorld(shared, { asked: nothing, chosen: nothing, moved: nothing });
          const theme = themeOf(document.body);
          document.querySelector("#root").append(world.node);
          const array = (columns) => ({ data: new Uint16Array(64 * columns).fill(level), shape: [64, columns] });
          for (let tile = 1; tile <= 40; tile++) {
            const region = { rows: [1000 + 64 * tile, 1064 + 64 * tile], columns: [0, 64], scale: 1 };
            world.show({
              run: "a", head: [0, 0], kind, pool: "max", low: -40, high: 250, total: 4000, cross: null,
              title: "", place: [region.rows[0], 0, 64], constants: { levels }, firsts: ["a"], texts: {}, region, tile,
            }, theme, array(64), array(1), "");
            Object.assign(shared, { y: region.rows[0] });
          }
          world.draw();
        }""",
        [LEVELS, kind, level],
    )
    box = page.locator(".sk-world").bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    expect(page.locator(".sk-tip")).to_have_text(re.compile(r"\(3,5\d\d\) → \(\d+\): " + re.escape(said)))


@pytest.fixture
def worlds(page):
    """Two maps that look at the same place, as `show(total, place)` and `look()` of a page."""
    page.set_content(f"<style>{style('atlas/world')}</style><div id='root' style='display: grid; width: 900px'></div>")
    page.add_script_tag(content=f"{script('atlas/world')}\nwindow.makeWorld = makeWorld;\nwindow.themeOf = themeOf;")
    page.evaluate(
        """(levels) => {
          const shared = { x: 0, y: 0, z: null, linear: false }, nothing = () => {};
          const worlds = [0, 1].map(() => makeWorld(shared, { asked: nothing, chosen: nothing, moved: nothing }));
          const root = document.querySelector("#root"), theme = themeOf(document.body);
          root.style.gridTemplateColumns = "1fr 1fr";
          root.append(...worlds.map((world) => world.node));
          const array = { data: new Uint16Array(1), shape: [1, 1] };
          const region = { rows: [0, 1], columns: [0, 1], scale: 1 };
          window.show = (total, place, which = [0, 1]) => which.forEach((i) => worlds[i].show({
            run: "a", head: [0, 0], kind: "weights", pool: "max", low: 0, high: 1, total, cross: null,
            title: "", place, constants: { levels }, firsts: ["a"], texts: {}, region, tile: 1,
          }, theme, array, array, ""));
          window.shared = shared;
          window.look = () => worlds.map((world) => [world.place(), world.wanted()]);
        }""",
        LEVELS,
    )
    return page


@pytest.mark.parametrize("place", [None, [100, 40, 128]])
def test_two_maps_look_at_the_same_part_at_any_width(worlds, place):
    worlds.evaluate("place => show(1000, place)", place)
    before = worlds.evaluate("look()")
    assert before[0] == before[1] and before[0][0] == place
    for width in (1300, 700, 1100):
        worlds.evaluate("width => { document.querySelector('#root').style.width = `${width}px`; }", width)
        worlds.evaluate("place => show(1000, place)", place)
        assert [seen for seen, _ in worlds.evaluate("look()")] == [place, place]


def test_a_second_map_leaves_the_first_where_it_is(worlds):
    worlds.evaluate("show(1000, [100, 40, 128], [0])")
    worlds.evaluate("Object.assign(shared, { x: 300, y: 500 })")
    worlds.evaluate("show(1000, [100, 40, 128])")
    assert [place for place, _ in worlds.evaluate("look()")] == [[500, 300, 128]] * 2


def test_beside_a_shorter_stretch_nothing_is_looked_at_beyond_its_end(worlds):
    worlds.evaluate("show(1000, [800, 700, 128])")
    worlds.evaluate("show(400, [800, 700, 128])")
    for place, wanted in worlds.evaluate("look()"):
        assert place == [272, 272, 128]
        assert wanted["rows"][0] < wanted["rows"][1] and wanted["columns"][0] < wanted["columns"][1]


@pytest.mark.parametrize("name", ["atlas/world", "board/map"])
def test_the_dimmest_colour_is_said_to_be_that_of_smaller_weights_too(page, name):
    page.set_content(f"<style>{style(name)}</style><div id='root' class='sk' style='width: 420px'></div>")
    made = {"atlas/world": "makeWorld", "board/map": "makeMap"}[name]
    page.add_script_tag(content=f"{script(name)}\nObject.assign(window, {{ {made}, themeOf }});")
    said = page.evaluate(
        """(levels) => {
          const said = [], real = CanvasRenderingContext2D.prototype.fillText;
          CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
            said.push([text, x + this.measureText(text).width <= this.canvas.clientWidth]);
            real.call(this, text, x, y);
          };
          const theme = themeOf(document.body), array = { data: new Uint16Array(4), shape: [2, 2] };
          const root = document.querySelector("#root"), nothing = () => {}, constants = { levels }, texts = ["a", "b"];
          const region = { rows: [0, 2], columns: [0, 2], scale: 1 }, of = { run: "a", head: [0, 0], chosen: 0 };
          const frame = { ...of, constants, total: 2, kind: "weights", firsts: texts, texts, region, tile: 1 };
          if (window.makeMap) {
            const map = makeMap();
            root.append(map.node);
            const at = { layer: 0, head: 0, first: 0, tokens: texts, sink_tokens: texts, note: "" };
            map.show({ ...frame, map: at, arrays: { map: array, map_sinks: array } }, theme);
          } else {
            const shared = { x: 0, y: 0, z: null, linear: false };
            const world = makeWorld(shared, { asked: nothing, chosen: nothing, moved: nothing });
            root.append(world.node);
            world.show(frame, theme, array, array, "");
          }
          return said;
        }""",
        LEVELS,
    )
    # And it fits beside the bar.
    assert ["≤ 10⁻⁴", True] in said and ["1", True] in said


def test_a_grid_of_which_nothing_is_known_says_so(page):
    page.set_content(f"<style>{style()}</style><div id='root' class='sk' style='width: 420px'></div>")
    page.add_script_tag(content=f"{script()}\nObject.assign(window, {{ makeGrid, themeOf }});")
    page.evaluate(
        """() => {
          const grid = makeGrid(() => {}), values = { data: new Float32Array(6).fill(NaN), shape: [2, 3] };
          const frame = { lanes: [{ label: "a" }], chosen: 0, grid: "output error", measured: true };
          document.querySelector("#root").append(grid.node);
          grid.show({ ...frame, arrays: { grid: values } }, themeOf(document.body));
        }"""
    )
    said = page.locator(".sk-grid").get_attribute("aria-label")
    assert said.startswith("Output error of 2 layers of 3 heads; none is known.")


def test_heads_are_knocked_out_until_one_has_seen_enough(app, page):
    page.goto(f"{app}/heads")
    page.get_by_text("What is each head's sink worth?").click()
    # It stands below the box, so that the box is that of this panel.
    page.get_by_role("button", name="Start").wait_for()
    set_number(page, "Tokens", 64)
    page.get_by_role("button", name="Start").click()
    page.get_by_text("of 270 heads").wait_for()
    page.get_by_text(re.compile(r"The \d+ that miss it most")).wait_for()
    page.locator(".js-plotly-plot").nth(1).wait_for()
    # A refresh finds the same numbers again, and more of them.
    page.reload()
    page.get_by_text(re.compile(r"\b([4-9]|\d{2,3}) of 270 heads")).first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("What was found is kept.").wait_for()
    with page.expect_download() as file:
        page.get_by_role("link", name="All heads as CSV").click()
    rows = file.value.path().read_text().splitlines()
    assert rows[0] == "layer,head,excess_nats_per_token,standard_error" and len(rows) > 3
    layer, head = rows[1].split(",")[:2]
    page.get_by_text(f"Read on without the sink of {layer}.{head}").click()
    page.get_by_text(f"sink values zero in {layer}.{head}").first.wait_for()
    assert not page.problems and not page.strangers


def test_what_cannot_be_gets_a_sentence(app, page):
    page.goto(f"{app}/heads?run=gone")
    page.get_by_text("no longer in memory").wait_for()
    page.get_by_text("What is each head's sink worth?").click()
    set_number(page, "Layer", 99)
    page.get_by_role("button", name="Start").click()
    page.get_by_text("There is no layer 99: layers are 0 to 29.").wait_for()


def test_heads_are_measured_over_samples(app, page):
    page.goto(f"{app}/heads")
    page.get_by_text("Measures", exact=True).click()
    set_number(page, "Samples", 8)
    page.get_by_role("button", name="Measure").click()
    page.get_by_text("8 of 8 samples of 64 tokens of Hamlet").wait_for()
    page.get_by_text(re.compile(r"Heads with α₁ > 0\.30")).wait_for()
    page.get_by_text(re.compile(r"layers \d+–\d+, most often at token 0, channel \d+")).wait_for()
    page.locator(".js-plotly-plot").nth(2).wait_for()
    with page.expect_download() as file:
        page.get_by_role("link", name="All heads as CSV").click()
    rows = file.value.path().read_text().splitlines()
    assert rows[0].startswith("layer,head,sink_mass,alpha,distance,entropy") and len(rows) == 271
    assert not page.problems and not page.strangers
