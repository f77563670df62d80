"""Figures draw what they are given where they are told to, and every file says where it comes from."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import msgspec
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure as Sheet
from PIL import Image

from analysis import metrics
from analysis.experiments import grid
from analysis.experiments.papers import EXPERIMENTS
from analysis.experiments.recall import cells
from analysis.figures import FIGURES, parse
from analysis.figures.export import export, provenance
from analysis.figures.inputs import open_input
from analysis.figures.needle_map import GREY
from analysis.figures.sheet import KINDS, WIDTHS, Layout, drawn, rendered
from analysis.lab.folder import write
from analysis.lab.recipe import Recipe
from analysis.lab.training import Training
from analysis.maps.capture import capture
from analysis.models.loading import load
from analysis.runs.folder import save
from analysis.runs.spec import Spec

from .test_comparison import IDS, run_of
from .verdicts import VERDICT

pytestmark = pytest.mark.whole

SMALL = {
    "head-map": "layer=1,head=2,tokens=64",
    "map-grid": "layers=0 2,heads=1 3,tokens=40",
    "mean-logits": "layers=0 2",
    "attention-strip": "layer=1,head=2,query=90",
}


def small(name):
    return parse(f"{name}:{SMALL[name]}" if name in SMALL else name)


@pytest.fixture(scope="module")
def places(model, text, tmp_path_factory):
    """A run with a switch, a captured stretch and a grid of the tiny model, and two trainings."""
    from analysis import texts
    from analysis.engine.stream import open_lanes
    from analysis.runs.folder import Folder
    from analysis.runs.run import Run

    root = tmp_path_factory.mktemp("figures")
    network = load(model, device="cpu")
    ids = texts.tokenize(texts.read(text), None, limit=300)
    policies = ("dense", "window:window=32", "streaming:sinks=4,window=28")
    spec = Spec(model, text, policies, 300, device="cpu")
    folder = Folder(root / "run", Run(spec, int(ids[0])), text_sha256="t" * 64, weights_sha256=network.sha256)
    for lane in open_lanes(network, ids, [parse_policy(p) for p in policies]):
        folder.append(lane.read(150))
        if lane.index == 1:
            lane.switch(parse_policy("streaming:sinks=4,window=28"), pin=True)
            folder.event("switch", lane=1, position=lane.position, policy="streaming:sinks=4,window=28", how="")
        while not lane.done:
            folder.append(lane.read(64))
    folder.finish("finished")
    for _ in capture(network, ids, Spec(model, text, ("dense",), 300, device="cpu"), root / "stretch"):
        pass
    list(grid.run(EXPERIMENTS["sinks"].cells(Spec(model, text, ("dense",), 120, device="cpu"), 16), root / "grid"))
    for i, attention in enumerate(("softmax", "relu")):
        training = Training(Recipe(attention, width=16, vocabulary=24, length=24, batch=8, steps=4))
        moments = [training.measure()]
        training.advance(4)
        write(
            root / "trainings" / str(i), training.recipe, [*moments, training.measure()], training.example, "finished"
        )
    recalled(root / "recall", model)
    shutil.copytree(root / "recall", root / "verdict")
    (root / "verdict" / "verdict.json").write_bytes(msgspec.json.encode(VERDICT))
    return {kind: root / kind for kind in ("run", "stretch", "grid", "trainings", "recall", "verdict")}


def recalled(place, model):
    """A map of recall as cells write it: dense gives two answers of three, a window none."""
    rows = []
    for policy in ("dense", "window:window=32"):
        for length, depth in ((256, 5.0), (256, 95.0), (512, 5.0)):
            hit, far = policy == "dense" and length == 256, int(length * (1 - depth / 100))
            more = {"distance": far, "wrong": None if hit else 0, "kept": float(hit), "nll": 0.1 if hit else 2.5}
            rows.append(cells.Row("passkey", policy, length, depth, 0, 0, hit, answer="1", said="1", **more))
    (place / "cell").mkdir(parents=True)
    about = {"spec": asdict(Spec(model, "passkey", ("dense",), device="cpu")), "kind": "recall", "status": "finished"}
    (place / "cell" / "run.json").write_text(json.dumps(about))
    cells.write_table(rows, place)


def parse_policy(text):
    from analysis.policies import parse

    return parse(text)


@pytest.fixture(scope="session")
def poppler():
    """Tools that read PDF files.  Without them those tests are skipped, but where CI is set they fail."""
    if all(map(shutil.which, ("pdfinfo", "pdffonts", "pdftotext"))):
        return lambda *words: subprocess.run(words, capture_output=True, text=True, check=True).stdout
    reason = "no poppler on the PATH: install it (apt-get install poppler-utils) to have PDF files checked"
    return pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_draws_on_the_axes_it_is_given_and_returns_them(name, places):
    figure = small(name)
    data = figure.numbers(open_input(places[figure.needs], figure.needs).data)
    given = Sheet().subplots()
    before = plt.get_fignums()
    assert figure.draw(data, ax=given) is given
    assert given.has_data() or given.texts or given.images
    assert plt.get_fignums() == before
    labels = given.get_xlabel() + given.get_ylabel() + "".join(t.get_text() for t in given.texts)
    assert labels, "a figure without a word"


@pytest.mark.parametrize("name", FIGURES)
def test_every_file_opens_with_its_size_its_words_and_its_provenance(name, places, tmp_path, poppler):
    figure, layout = small(name), Layout("icml", 7, 200)
    source = open_input(places[figure.needs], figure.needs)
    data = figure.numbers(source.data)
    with drawn(figure, data, layout) as sheet:
        width, height = sheet.get_size_inches()
        words = drawn_words(sheet)
    # What is written above or in the axes may make it higher.
    assert width == layout.size(figure)[0] and height >= layout.size(figure)[1]
    for kind in KINDS:
        out = tmp_path / f"a.{kind}"
        about = provenance(figure, source, out, layout)
        out.write_bytes(rendered(figure, data, kind, layout, about))
        assert about["model"] and about["command"].startswith("python -m analysis figure ")
    info = poppler("pdfinfo", str(tmp_path / "a.pdf"))
    size = [float(n) / 72 for n in re.search(r"Page size:\s+([\d.]+) x ([\d.]+)", info).groups()]
    assert size == pytest.approx([width, height], abs=0.02) and "python -m analysis figure" in info
    fonts = poppler("pdffonts", str(tmp_path / "a.pdf")).splitlines()[2:]
    assert fonts and all("TrueType" in f and re.search(r"\byes\s+(yes|no)\s+(yes|no)", f) for f in fonts)
    text = poppler("pdftotext", str(tmp_path / "a.pdf"), "-")
    assert any(word in text for word in words)
    svg = ElementTree.parse(tmp_path / "a.svg").getroot()
    texts = ["".join(node.itertext()) for node in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert any(word in text for word in words for text in texts)
    described = next(svg.iter("{http://purl.org/dc/elements/1.1/}description")).text
    assert json.loads(described)["figure"] == str(figure)
    with Image.open(tmp_path / "a.png") as png:
        assert png.size == pytest.approx((width * 200, height * 200), abs=1)
        assert png.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert json.loads(png.info["Description"])["spec"] == about["spec"]
    with np.load(tmp_path / "a.npz") as held:
        for key, array in data.items():
            np.testing.assert_array_equal(held[key], array)
    rows = list(csv.reader(io.StringIO((tmp_path / "a.csv").read_text())))
    largest = max(np.asarray(a).size for a in data.values())
    assert len(rows) == largest + 1


def drawn_words(sheet):
    ax = sheet.axes[0]
    words = [ax.get_xlabel(), ax.get_ylabel(), *(t.get_text() for t in ax.texts)]
    return [w.strip() for w in words if len(w.strip()) > 1]


@pytest.mark.parametrize("name", ["head-map", "perplexity", "sink-grid", "budget"])
@pytest.mark.parametrize("kind", ["pdf", "svg", "png", "csv"])
def test_the_command_that_a_file_names_makes_the_same_bytes(name, kind, places, tmp_path, run):
    figure, out = small(name), tmp_path / f"a.{kind}"
    export(figure, places[figure.needs], out, Layout("acl", 8, 150))
    about = provenance(figure, open_input(places[figure.needs], figure.needs), out, Layout("acl", 8, 150))
    first = out.read_bytes()
    out.unlink()
    code, said, _ = run(*shlex.split(about["command"])[3:])
    assert code == 0 and figure.title in said
    assert out.read_bytes() == first
    if kind == "csv":
        assert json.loads(out.with_suffix(".csv.json").read_text())["command"] == about["command"]


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory):
    """A captured stretch of 20 tokens of a model with two layers of two heads, the whole in a folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("two")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=97, **sizes)).save_pretrained(root / "model")
    spec = Spec(str(root / "model"), "random", ("dense",), device="cpu")
    ids = np.random.default_rng(1).integers(0, 97, 21)
    for _ in capture(load(spec.model, device="cpu"), ids, spec, root / "stretch"):
        pass
    return root / "stretch"


@pytest.mark.parametrize("name", [n for n, f in FIGURES.items() if f.needs == "stretch"])
def test_defaults_of_a_figure_fit_the_smallest_model(name, two_layers, tmp_path, run):
    source = open_input(two_layers, "stretch")
    figure = parse(name).resolved(source.data)
    mass = source.data.stretch.mass
    if hasattr(figure, "head"):
        # The figure says which head it is of, and that is the one with the largest sink mass.
        assert (figure.layer, figure.head) == np.unravel_index(mass.argmax(), mass.shape)
        assert parse(f"{name}:layer=1").resolved(source.data).head == mass[1].argmax()
        assert parse(f"{name}:head=1").resolved(source.data).layer == mass[:, 1].argmax()
    if hasattr(figure, "layers"):
        assert figure.layers == "0 1"
    if hasattr(figure, "tokens"):
        # What a caption says of tokens and colours is so.
        assert figure.tokens == min(type(figure).tokens, 20)
    if name == "head-map":
        assert parse("head-map:begin=9,cells=logits").resolved(source.data).tokens == 11
        assert parse("head-map:cells=logits").resolved(source.data).colour == "linear"
    assert parse(str(figure)) == figure == figure.resolved(source.data)
    code, _, wrong = run("figure", name, "--run", str(two_layers), "--out", str(tmp_path / "a.csv"))
    assert code == 0, wrong
    about = json.loads((tmp_path / "a.csv.json").read_text())
    assert about["figure"] == str(figure) and "on random (20 tokens, float32)." in about["caption"]


def test_report_shows_the_head_with_the_largest_sink_mass(two_layers, places, tmp_path, run):
    out = tmp_path / "r.html"
    code, _, wrong = run("report", "--run", str(places["run"]), "--stretch", str(two_layers), "--out", str(out))
    assert code == 0, wrong
    mass = open_input(two_layers, "stretch").data.stretch.mass
    layer, head = np.unravel_index(mass.argmax(), mass.shape)
    told = out.read_text(encoding="utf-8")
    assert f"Layer {layer}, head {head}" in told
    # The stretch is of its own model and text, which here are not those of the run.
    seen = told.partition("<figcaption>")[2].partition("</figcaption>")[0]
    assert f"layer {layer}, head {head}" in seen and " model on random (20 tokens, float32)." in seen


def test_figure_of_a_run_says_how_the_run_was_made(places, tmp_path):
    export(parse("memory"), places["run"], tmp_path / "a.csv")
    about = json.loads((tmp_path / "a.csv.json").read_text())
    assert about["run"] == Spec(**about["spec"]).command()


def test_venues_are_as_wide_as_their_columns():
    assert WIDTHS["icml"] == 3.25 and WIDTHS["neurips"] == 5.5
    assert Layout("slides").size(small("perplexity")) == (13.333, 7.5)
    assert [Layout(*at).text_size for at in (("icml",), ("slides",), ("slides", 8))] == [8, 14, 8]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["nothing", "--run", "{run}", "--out", "a.pdf"], "there is no figure 'nothing'; choose one of: head-map"),
        (["perplexity", "--run", "{run}", "--out", "a.doc"], "ends in none of: pdf, svg, png, csv, npz"),
        (["perplexity", "--run", "nowhere", "--out", "a.pdf"], "nowhere holds no run"),
        (["head-map", "--run", "{run}", "--out", "a.pdf"], "holds no captured stretch"),
        (["head-map:layer=9", "--run", "{stretch}", "--out", "a.pdf"], "there is no head 9.0"),
        (["head-map:layer=1,begin=900", "--run", "{stretch}", "--out", "a.pdf"], "choose a smaller begin"),
        (["sink-grid:lane=7", "--run", "{run}", "--out", "a.pdf"], "the run has lanes 0 to 2, and not 7"),
        (["perplexity:mode=fast", "--run", "{run}", "--out", "a.pdf"], "mode must be one of relative"),
        (["attention-strip:layer=1,query=900", "--run", "{stretch}", "--out", "a.pdf"], "choose a smaller one"),
        (["budget", "--run", "{run}", "--out", "a.pdf"], "holds no runs"),
        (["perplexity", "--run", "{run}", "--out", "a.pdf", "--venue", "nature"], "choose one of: neurips"),
        (["perplexity", "--run", "{run}", "--out", "a.pdf", "--points", "99"], "--points must be 4 to 40"),
    ],
)
def test_what_is_wrong_with_a_figure_is_one_line_and_status_2(wrong, says, places, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = run("figure", *(word.format(**places) for word in wrong))
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert says in said
    assert not list(tmp_path.glob("a.*"))


def test_a_stretch_is_captured_by_a_command(run, model, text, tmp_path):
    asked = ["capture", "--model", model, "--text", text, "--device", "cpu", "--tokens", "100"]
    code, said, _ = run(
        *asked,
        "--policy",
        "streaming:sinks=4,window=20",
        "--switch",
        "50=window:window=20",
        "--out",
        str(tmp_path / "s"),
    )
    assert code == 0 and "The stretch lies in" in said
    from analysis.maps.stretch import Stretch

    stretch = Stretch(tmp_path / "s")
    assert stretch.tokens == 100 and stretch.segments[-1].policy == "window:window=20"
    for wrong, says in (("fifty", "POSITION=policy"), ("²=window", "POSITION=policy"), ("101=window", "before 101")):
        code, _, said = run(*asked, "--switch", wrong, "--out", str(tmp_path / "t"))
        assert code == 2 and says in said and not (tmp_path / "t").exists()
    code, _, said = run(*asked, "--switch", "50=dense", "--switch", "50=window", "--out", str(tmp_path / "t"))
    assert code == 2 and "position is given to --switch twice" in said and not (tmp_path / "t").exists()


def test_figures_are_listed(run):
    code, said, _ = run("figures")
    assert code == 0 and all(name in said for name in FIGURES)


def test_the_list_of_figures_is_shown_without_a_model():
    listing = "from analysis.cli.main import main; main()"
    heavy = "print(*{'torch', 'transformers', 'pandas'} & sys.modules.keys(), file=sys.stderr)"
    code = f"import atexit, sys; sys.argv = ['analysis', 'figures']; atexit.register(lambda: {heavy}); {listing}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "attention-strip" in done.stdout and done.stderr.strip() == ""


def test_a_needle_map_has_dense_first_and_greys_what_dense_cannot_do(places):
    figure = parse("needle-map")
    data = figure.numbers(open_input(places["recall"], "recall").data)
    assert data["policy"].tolist() == ["dense"] * 3 + ["window:window=32"] * 3
    assert data["recalled"].tolist() == [1, 1, 0, 0, 0, 0] and data["texts"].tolist() == [1] * 6
    given = Sheet().subplots()
    shown = figure.draw(data, ax=given).images[0].get_array()
    # Two depths down; two lengths of dense, a gap, two of the window across.
    grey = np.array(to_rgba(GREY))
    assert shown.shape == (2, 5, 4)
    assert [tuple(at) for at in np.argwhere((shown == grey).all(-1))] == [(0, 4)]
    words = [text.get_text() for text in given.texts]
    assert words == ["Dense", "Window 32"]


def test_a_recall_curve_counts_answers_at_like_distances(places):
    data = parse("recall-curve:points=2").numbers(open_input(places["recall"], "recall").data)
    assert data["policy"].tolist() == ["dense"] * 2 + ["window:window=32"] * 2
    assert data["answers"].tolist() == [2, 1, 2, 1] and data["recalled"].tolist() == [1, 0, 0, 0]
    assert data["distance"].tolist() == [(243 + 12) / 2, 486, (243 + 12) / 2, 486]
    assert (data["low"] <= data["recalled"]).all() and (data["recalled"] <= data["high"]).all()


def test_texts_that_say_no_answer_make_no_figure_of_recall():
    row = cells.Row("arc", "dense", 256, None, 0, 0, True, 0.1, "a", "a", None, None, None)
    for name in ("needle-map", "recall-curve"):
        with pytest.raises(ValueError, match="choose another task"):
            parse(name).numbers([row])


def test_each_switch_of_a_lane_begins_where_the_one_before_ended():
    sinks, window = "streaming:sinks=4,window=28", "window:window=32"
    marks = {"token": np.array([10, 60, 20, 40]), "mark": np.array(["", "", window, sinks])}
    lane = {"lane": np.zeros(4, int), "policy": np.array([sinks] * 4), "perplexity": np.array([3, 2, np.nan, np.nan])}
    ax = parse("perplexity").draw({**lane, **marks}, ax=plt.figure().subplots())
    said = [line.get_label() for line in ax.lines]
    plt.close(ax.figure)
    assert said[1:] == ["Sinks + window 4 + 28 → Window 32 at 20", "Window 32 → Sinks + window 4 + 28 at 40"]


def test_perplexities_against_budgets_are_of_the_same_tokens(tmp_path):
    runs = {w: run_of(IDS[:80], ("dense", f"window:window={w}")) for w in (16, 32)}
    for window, run in runs.items():
        save(run, tmp_path / f"a{window}", text_sha256="", weights_sha256="")
    data = parse("budget").numbers(tmp_path)
    assert data["policy"].tolist() == ["dense", "window:window=16", "window:window=32"]
    wanted = [metrics.perplexity(run.tracks[1].nll.view()) for run in runs.values()]
    np.testing.assert_allclose(data["perplexity"][1:], wanted)
    for other in (run_of(IDS[1:81]), run_of(IDS[:60])):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        save(other, tmp_path / "c", text_sha256="", weights_sha256="")
        with pytest.raises(ValueError, match="c has other tokens or another model than other runs"):
            parse("budget").numbers(tmp_path)


def test_the_pareto_front_has_what_nothing_beats_at_its_cost(places):
    data = parse("pareto").numbers(open_input(places["verdict"], "verdict").data)
    assert data["title"].tolist() == ["Dense", "Window", "Window", "Sinks + window", "Sinks + window"]
    np.testing.assert_allclose(data["value"], np.exp([0, 3, 2, 0.5, 0.01]))
    assert data["front"].tolist() == [True, False, False, True, True]
    told = parse("pareto:measure=passkey,cost=tokens").numbers(VERDICT)
    assert told["value"].tolist() == [1, 0, 0.5, 0, 0.5] and np.isnan(told["cost"][0])
    assert told["cost"].tolist()[1:] == [64, 128, 64, 128]
    assert told["front"].tolist() == [False, True, True, True, True]
    settings = {"streameval:back=5,every=2": 1, "streameval:every=2": 0}
    passkey, changed = VERDICT.entries[0].recall["passkey"], msgspec.structs.replace
    recall = {task: changed(passkey, hits=hits) for task, hits in settings.items()}
    source = changed(VERDICT, entries=[changed(e, recall=recall) for e in VERDICT.entries])
    for task, hits in settings.items():
        told = parse(f"pareto:cost=tokens,measure={task.replace(',', ';')}").numbers(source)
        assert told["value"].tolist() == [hits / 2] * 5
    with pytest.raises(ValueError, match="one of streameval:back=5;every=2, streameval:every=2"):
        parse("pareto:measure=streameval").numbers(source)
    assert parse("pareto:measure=kl").numbers(VERDICT)["value"].tolist() == [0, 1.5, 1, 0.25, 0.005]
    with pytest.raises(ValueError, match="needle was not measured: choose one of perplexity, kl, passkey"):
        parse("pareto:measure=needle").numbers(VERDICT)
