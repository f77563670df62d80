"""What a notebook displays, in a real browser: a board and two maps in frames that know nothing of each other."""

import re

import numpy as np
import pytest

from analysis import show
from analysis.policies import parse

from ..recordings import FOUR, made_up
from ..test_notebook import WORDS, made_map
from .conftest import PATIENCE, cut_labels, wait_until
from .test_replay import violations

pytestmark = pytest.mark.browser


def displayed(page, *shown) -> list:
    """The frames of what a notebook shows, one below the other, as JupyterLab has them in its own page."""
    page.set_content(f'<body data-jp-theme-light="true">{"".join(s._repr_html_() for s in shown)}</body>')
    frames = [page.locator("iframe").nth(i).element_handle().content_frame() for i in range(len(shown))]
    for frame in frames:
        frame.locator(".sk-panel canvas").first.wait_for()
    return frames


def test_a_board_in_a_notebook_has_its_curves_and_is_played(page):
    run = made_up(1200, FOUR[:2])
    (frame,) = displayed(page, show(run))
    # One of them is the straight line of the reference; the other is drawn point by point.
    points = "[...document.querySelectorAll('.sk-plot path.js-line')].map((path) => path.getTotalLength())"
    wait_until(frame, f"Math.max(...{points}) > 1.2 * {points}[0] && {points}[0] > 0")
    wait_until(frame, "window.__sinkscope?.published === 1200")
    # The memory of so many tokens ends just below a tick, whose label stands at the very top of its plot.
    frame.locator(".sk-memory .ytick").last.wait_for()
    assert frame.locator(".sk-card").count() == 2 and not cut_labels(frame)
    label = parse(FOUR[1]).label
    assert label in frame.locator(".sk-card").nth(1).inner_text()
    nll = [t.nll.view()[-256:].astype(float) for t in run.tracks]
    shown = frame.locator(".sk-card .sk-big").nth(1).inner_text()
    assert float(shown.split()[0]) == pytest.approx(np.exp((nll[1] - nll[0]).mean()), abs=0.006)
    # What is pressed is answered in the frame at once; its address cannot say it, and nothing tries to.
    frame.get_by_role("button", name="rolling").click()
    wait_until(frame, "window.__sinkscope.mode === 'rolling'")
    frame.get_by_role("button", name="One token back").click()
    wait_until(frame, "window.__sinkscope.published === 1199")
    assert frame.url == "about:srcdoc" and not violations(frame)
    assert page.get_by_text("Trust this notebook").is_hidden()
    # The notebook around it has none of its scripts and styles.
    assert page.evaluate("typeof window.__sinkscope + typeof window.Plotly") == "undefinedundefined"
    assert page.evaluate("getComputedStyle(document.body).margin") == "8px"
    assert page.problems == [] and page.strangers == []


def test_two_maps_in_a_notebook_tell_their_own_tokens_and_weights(page):
    made = [made_map(), made_map([f" w{i}" for i in range(40)], head=(5, 0), policy="window:window=8", seed=1)]
    frames = displayed(page, *map(show, made))
    for frame, of in zip(frames, made, strict=True):
        assert f"Layer {of['head'][0]}, head {of['head'][1]}" in frame.locator(".sk-title").inner_text()
        assert parse(str(of["policy"])).label in frame.locator(".sk-title").inner_text()
        assert not violations(frame)
    canvas, tip = frames[0].locator(".sk-map"), frames[0].locator(".sk-tip")
    # Its middle, and the first token, which stands magnified at the left.
    side = canvas.bounding_box()["height"] - 40
    for row in range(len(WORDS)):
        canvas.hover(position={"x": 60, "y": 4 + (row + 0.5) / len(WORDS) * side})
        query, _, rest = tip.inner_text().partition(" → ")
        assert query == f"{as_json(WORDS[row])} ({row})"
        key, _, weight = rest.rpartition(": ")
        assert key == f"{as_json(WORDS[0])} (0)"
        assert float(weight) == pytest.approx(float(made[0]["map"][row, 0]), rel=0.06)
    assert frames[1].locator(".sk-tip").is_hidden()
    assert page.problems == [] and page.strangers == []


def test_a_map_is_gone_through_by_keys_alone(page):
    made = made_map()
    (frame,) = displayed(page, show(made))
    canvas, tip, here = (frame.locator(name) for name in (".sk-map", ".sk-tip", ".sk-here"))
    canvas.focus()
    newest = len(WORDS) - 1
    for keys, row, column in (
        (["ArrowLeft"], newest, 0),
        (["ArrowUp"] * 2, newest - 2, 0),
        # The first tokens stand at the left, and all of them after these.
        (["ArrowRight", "ArrowRight"], newest - 2, 2),
        (["ArrowRight"] * 40 + ["ArrowDown"] * 40, newest, newest),
        (["ArrowLeft", "ArrowUp"], newest - 1, newest - 1),
    ):
        for key in keys:
            canvas.press(key)
        query, _, rest = tip.inner_text().partition(" → ")
        key, _, weight = rest.rpartition(": ")
        assert (query, key) == (f"{as_json(WORDS[row])} ({row})", f"{as_json(WORDS[column])} ({column})")
        assert float(weight) == pytest.approx(float(made["map"][row, column]), rel=0.06)
        at, whole = here.bounding_box(), canvas.bounding_box()
        assert whole["y"] <= at["y"] < whole["y"] + whole["height"] and here.is_visible()
    canvas.blur()
    assert tip.is_hidden() and here.is_hidden()
    assert page.problems == [] and page.strangers == []


def as_json(text: str) -> str:
    return '"' + text.replace('"', '\\"').replace("\n", "\\n") + '"'


def test_a_frame_is_light_or_dark_as_the_notebook_is(browser):
    # As a browser that nobody tells what to prefer.
    context = browser.new_context(color_scheme="null")
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    frames = displayed(page, show(made_map()), show(made_up(300, FOUR[:2])))
    for light in (True, False, True):
        page.evaluate("light => { document.body.dataset.jpThemeLight = light; }", light)
        for frame in frames:
            wait_until(
                frame, f"document.querySelector('.sk').classList.contains('sk-dark') === {str(not light).lower()}"
            )
            red = re.findall(r"\d+", frame.evaluate("getComputedStyle(document.body).backgroundColor"))[0]
            assert (int(red) > 128) is light
    context.close()
