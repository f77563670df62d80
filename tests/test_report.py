"""A report stands alone; the notebook runs; and both say what was computed."""

import base64
import gzip
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from analysis.engine.step import Step
from analysis.figures import parse
from analysis.figures.export import export
from analysis.figures.inputs import FigureInput, open_input
from analysis.figures.report import page, report
from analysis.figures.site import site
from analysis.figures.thumbnails import sink_grid, sparkline
from analysis.runs.folder import save
from analysis.runs.library import GALLERY, entries
from analysis.runs.maps import MOST, SIDE, MapsFile, RecordedMap
from analysis.runs.player import ALONE, BOARD, CONVERSATION, script
from analysis.runs.recording import recording
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.runs.summary import mean_sink_mass

from .recordings import FOUR, decoded, made_up
from .test_figures import places, poppler  # noqa: F401

pytestmark = pytest.mark.whole


def long_run(model, count):
    """A run of two lanes with made-up numbers, as long as a play."""
    policies = ("dense", "streaming:sinks=4,window=252,positions=cache")
    run, random = Run(Spec(model, "random.npy", policies), 1), np.random.default_rng(0)
    from analysis.policies import parse

    for lane, policy in enumerate(policies):
        for start in range(1, count, 500):
            n = min(500, count - start)
            held = np.arange(start, start + n, dtype=np.int32)
            run.append(
                Step(
                    lane, parse(policy), start, random.integers(0, 97, n).astype(np.int32),
                    random.gamma(2, 1.5, n).astype(np.float32), held, held.astype(np.int64) * 100, 0.1,
                    random.random((3, 4, n), np.float32),
                )
            )  # fmt: skip
    return run


def test_a_report_of_thirty_thousand_tokens_stands_alone_and_is_small(model, tmp_path):
    run = long_run(model, 30_000)
    save(run, tmp_path / "run", text_sha256="t" * 64, weights_sha256="w" * 64)
    out = report(tmp_path / "run", tmp_path / "report.html", lane=1)
    text = out.read_text(encoding="utf-8")
    assert out.stat().st_size < 15e6
    # Nothing is loaded from anywhere: no source, no link.
    assert not re.search(r"<(script|img|link|iframe)[^>]+(src|href)=[\"']?(https?:)?//", text)
    assert text.count('<span class="n') == 29_999
    # It replays: the whole recording stands in it, and the board that the app has.
    assert packed(text)[1]["total"] == 30_000 and script(*BOARD, ALONE) in text
    assert "python -m analysis stream" in text and "t" * 64 in text
    assert html.escape(run.spec.command()) in text and "read 30,000 tokens" in text
    nll = run.tracks[1].nll.view()
    assert f"{np.exp(nll.mean(dtype=np.float64)):.3f}" in text


def test_texts_that_a_run_does_not_have_are_numbers_and_no_model_is_asked_for_them(tmp_path):
    """A process that is killed in the middle of an answer leaves texts of some tokens alone."""
    run = long_run("some-org/some-model", 12)
    run.take_pieces(-1, 0, [f"w{i}" for i in range(7)])
    save(run, tmp_path / "run", text_sha256="t", weights_sha256="w")
    said = ["w3", "w4", "w5", "w6", *(f" {i}" for i in run.tracks[1].token_ids.view()[6:])]
    shown = report(tmp_path / "run", tmp_path / "report.html", lane=1).read_text(encoding="utf-8")
    assert re.findall(r'<span class="n\d+">(.*?)</span>', shown)[2:] == said
    strip = parse("strip:lane=1,begin=3").numbers(open_input(tmp_path / "run", "run").data)
    assert strip["text"].tolist() == said and strip["nll"].tolist() == run.tracks[1].nll.view()[2:].tolist()


@pytest.mark.parametrize("lane", [-1, 2])
def test_a_lane_that_is_not_there_is_said(lane, tmp_path):
    save(long_run("tiny", 12), tmp_path / "run", text_sha256="t", weights_sha256="w")
    with pytest.raises(ValueError, match=f"lane must be one of the run, 0 to 1, not {lane}"):
        report(tmp_path / "run", tmp_path / "report.html", lane=lane)
    with pytest.raises(ValueError, match=f"the run has lanes 0 to 1, and not {lane}"):
        mean_sink_mass(long_run("tiny", 12), lane)


@pytest.mark.parametrize("lacking", ["policy", "lane", "position", "seconds"])
def test_a_run_is_shown_whose_events_say_less_than_they_do_here(tmp_path, lacking):
    save(made_up(300, switches={1: (200, "window:window=64")}), tmp_path / "run", text_sha256="", weights_sha256="")
    file = tmp_path / "run" / "events.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in e.items() if k != lacking}) + "\n" for e in events))
    marks = decoded(gzip.decompress(recording(tmp_path / "run")))[0]["marks"]
    assert any(mark["kind"] == "switch" for mark in marks) == (lacking == "seconds")
    report(tmp_path / "run", tmp_path / "a.html")
    for figure in ("memory", "perplexity"):
        said = export(parse(figure), tmp_path / "run", tmp_path / f"{figure}.csv")["caption"]
        # The tables know what was read with.
        assert "Window 64" in said


def test_a_report_is_named_as_a_page(tmp_path):
    for name in ("report.txt", "report", "a.htmlx"):
        with pytest.raises(ValueError, match=rf"name it \w+\.html, and not {name}"):
            report(GALLERY / "four", tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_report_says_how_many_lanes_there_are(tmp_path):
    for policies, said in ((FOUR[:1], "1 lane"), (FOUR, "4 lanes")):
        save(made_up(40, policies), tmp_path / said, text_sha256="", weights_sha256="")
        report(tmp_path / said, tmp_path / "a.html")
        assert f" · {said} · " in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_report_of_a_conversation_replays_in_the_lanes_of_the_chat_page(tmp_path):
    text = report(GALLERY / "breakdown", tmp_path / "report.html").read_text(encoding="utf-8")
    view, told = packed(text)
    assert script(*CONVERSATION, ALONE) in text and told["kind"] == "chat" and len(told["lanes"]) == 2
    assert view["view"].keys() == {"chosen", "head", "token", "paint"}
    assert "python -m analysis chat" in text and "a conversation with SmolLM2-135M" in text
    assert not re.search(r"<(script|img|link|iframe)[^>]+(src|href)=[\"']?(https?:)?//", text) and len(text) < 15e6


@pytest.mark.parametrize("story", ["four", "breakdown"])
def test_no_page_says_of_a_colour_that_it_is_darker(tmp_path, story):
    """On a dark page, what is most surprising is brightest."""
    assert "darker" not in report(GALLERY / story, tmp_path / "report.html").read_text(encoding="utf-8")


def packed(text: str) -> tuple[dict, dict]:
    """What is looked at when a page opens, and the header of the recording in it."""
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    recording = gzip.decompress(base64.b64decode(data.pop("recording")["packed"]))
    return data, decoded(recording)[0]


def test_what_was_typed_is_text_and_never_markup(model, tmp_path):
    run = long_run(model, 600)
    run.spec = Spec(model, "<b>&.txt", run.spec.policies)
    save(run, tmp_path / "run", text_sha256="", weights_sha256="")
    text = page(open_input(tmp_path / "run", "run"))
    assert "<title>&lt;b&gt;&amp;.txt" in text and "<b>&.txt" not in text


def test_a_report_has_the_maps_that_are_named(places, tmp_path, run):  # noqa: F811
    asked = ["report", "--run", str(places["run"]), "--out", str(tmp_path / "r.html")]
    code, said, _ = run(*asked, "--stretch", str(places["stretch"]), "--head", "1.2", "--head", "0.3")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert code == 0 and "r.html" in said and text.count("<figure><img") == 2
    assert "Layer 1, head 2" in text and "while it read" in text
    for more, says in (
        (["--head", "1.2"], "--stretch"),
        (["--lane", "9"], "--lane must be one of the run, 0 to 2, not 9"),
        (["--stretch", str(places["stretch"]), "--head", "one"], "layer.head"),
    ):
        code, _, said = run(*asked, *more)
        assert code == 2 and says in said


def test_a_text_cannot_end_the_script_that_it_stands_in(tmp_path):
    run = made_up(300)
    run.take_pieces(-1, 0, ["</script><b>"] * 300)
    text = page(FigureInput(tmp_path, run, {"status": "</script><i>"}))
    assert text.count("</script>") == 3 and "<b>" not in text and "<i>" not in text.partition("<main>")[2]


def test_a_report_of_thirty_thousand_tokens_of_four_lanes_with_maps_is_small(tmp_path):
    run, random = made_up(30_000, layers=30, heads=9), np.random.default_rng(0)
    maps = MapsFile(tmp_path, 4, 30_000)
    for i in range(MOST):
        weights = np.where(np.tri(SIDE, dtype=bool), random.random((SIDE, SIDE)) ** 8, np.nan).astype(np.float32)
        maps.add(RecordedMap.of(i % 4, 1, i // 4, 30_000, 30_000 - SIDE, weights, weights[:, :4]))
    assert len(page(FigureInput(tmp_path, run, {}))) < 15e6


def test_a_site_has_a_page_for_each_recording_and_relative_links_only(tmp_path):
    for name, policies in (("one", FOUR[:2]), ("two", FOUR[2:])):
        save(made_up(400, policies), tmp_path / "gallery" / name, text_sha256="", weights_sha256="")
    pages = site(tmp_path / "site", tmp_path / "gallery")
    assert [p.name for p in pages] == ["one.html", "two.html"]
    there = {p.name for p in (tmp_path / "site").iterdir()}
    assert there == {"index.html", "one.html", "two.html", "plotly.min.js"}
    for name in ("index.html", "one.html", "two.html"):
        text = (tmp_path / "site" / name).read_text(encoding="utf-8")
        links = re.findall(r'<(?:script|img|link|iframe|a)[^>]+(?:src|href)="([^"]*)"', text)
        # A picture that stands in the page itself is no link.
        assert links and {link for link in links if not link.startswith("data:image/")} <= there
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "Recompute 128 / 16" in index
    # The pictures that the page of runs has stand in it, with words for who does not see them.
    for entry in entries(tmp_path / "gallery"):
        assert entry.preview and sparkline(entry.preview) in index and sink_grid(entry.preview) in index
    assert len(re.findall(r'<img [^>]*src="data:image/[^>]* alt="[^"]+"', index)) == 4


def test_a_site_leads_to_the_documentation_where_that_was_written(tmp_path):
    save(made_up(400, FOUR[:1]), tmp_path / "gallery" / "one", text_sha256="", weights_sha256="")
    there = tmp_path / "site" / "docs" / "index.html"
    there.parent.mkdir(parents=True)
    there.write_text("documentation")
    site(tmp_path / "site", tmp_path / "gallery")
    assert 'href="docs/index.html"' in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert there.read_text() == "documentation"


def test_the_documents_say_how_many_stories_a_site_plays():
    played = sum(entry.kind in ("reading", "chat") for entry in entries(GALLERY))
    said = (Path(__file__).parents[1] / "docs" / "index.md").read_text(encoding="utf-8")
    assert played == 7 and "`make site` writes seven recorded runs" in said


def test_a_site_without_recordings_says_so(tmp_path):
    with pytest.raises(ValueError, match="has no recordings"):
        site(tmp_path / "site", tmp_path)
    assert not (tmp_path / "site").exists()


def test_an_empty_run_has_nothing_to_tell(model):
    with pytest.raises(ValueError, match="nothing to tell"):
        page(FigureInput(Path("x"), Run(Spec(model, "t", ("dense",))), {}))


@pytest.mark.real
def test_the_notebook_runs_from_its_first_cell_to_its_last(capsys):
    import matplotlib.pyplot as plt

    path = Path(__file__).parent.parent / "assets" / "examples" / "first-steps.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    space: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
    kept, lost = (float(n) for n in re.findall(r"perplexity ([\d.]+)", capsys.readouterr().out))
    assert lost > 2 * kept
    assert np.nanmin(space["mass"]) >= 0 and space["ax"].get_xlabel() == "Layer"
    drawn = space["map_of"](space["model"], space["words"], layer=20, head=3)["map"]
    np.testing.assert_allclose(np.nansum(drawn, 1), 1, atol=1e-4)
    assert len(drawn) > 15
    plt.close("all")


def test_five_lines_are_enough():
    path = Path(__file__).parent.parent / "assets" / "examples" / "first-steps.ipynb"
    first = next(c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")
    assert len([line for line in first["source"] if line.strip() and not line.startswith(("import matplotlib",))]) <= 5
