"""Charts say what they are given: blank where nothing is known, and the same scale for more and less."""

import math
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import msgspec
import numpy as np
import pytest

from analysis.experiments.ablation import Effect
from analysis.experiments.measures import Measured
from analysis.figures import parse
from analysis.palette import LOOKS, lines
from analysis.policies import parse as policy
from app.panels import charts
from app.panels.measures import massive_in
from app.panels.recall_map import points_told
from app.panels.verdict_results import quality_label

from .verdicts import VERDICT, entry


def test_effects_are_where_their_heads_are():
    figure = charts.effects([Effect(2, 1, 0.3, 0.1), Effect(0, 0, -0.1, 0.1)], 3, 2)
    cost = np.array(figure.data[0].z, float)
    assert cost.shape == (2, 3) and cost[1, 2] == 0.3 and cost[0, 0] == -0.1 and np.isnan(cost).sum() == 4
    assert figure.data[0].zmax == -figure.data[0].zmin == 0.3
    assert charts.effects([], 3, 2).data[0].zmax > 0


@pytest.mark.parametrize(("layers", "step"), [(1, 1), (2, 1), (30, 5)])
def test_layers_are_counted_in_whole_numbers(layers, step):
    values = np.ones((3, layers, 4))
    for figure in (charts.effects([], layers, 4), charts.cells(values[0], ""), charts.depth(values, "")):
        assert figure.layout.xaxis.dtick == step


@pytest.mark.parametrize("layers", [1, 2, 3, 30])
def test_figures_on_paper_count_layers_in_whole_numbers(layers):
    each = {"layer": np.arange(layers)}
    massive = each | {"rank": np.ones(layers), "size": np.full(layers, 5.0), "median": np.full(layers, 0.5)}
    text = {"policy": np.full(layers, "dense"), "label": np.full(layers, "Dense")}
    depth = each | text | {"lane": np.zeros(layers, int), "head": np.zeros(layers, int), "mass": np.full(layers, 0.5)}
    for name, data in (("massive", massive), ("sink-depth", depth)):
        ax = parse(name).draw(data, ax=plt.figure(figsize=(3.25, 2)).subplots())
        low, high = ax.get_xlim()
        ticks = [at for at in ax.get_xticks() if low <= at <= high]
        assert ticks and all(at == int(at) for at in ticks)
        plt.close(ax.figure)


@pytest.mark.parametrize(
    ("layers", "said"),
    [((), "no layer"), ((1,), "layer 1"), ((1, 2, 3), "layers 1–3"), ((0, 3, 4, 5), "layers 0, 3–5"), ((1, 5), "1, 5")],
)
def test_only_layers_with_massive_activations_are_said_to_have_them(layers, said):
    """On a text of numbers the embedded model has them in layer 2 and then from layer 11 on."""
    size = np.full((2, 6, 3), 50.0, np.float32)
    size[:, layers] = 500
    at = np.tile(np.array([0, 7]), (2, 6, 1))
    measured = Measured({}, np.zeros((2, 3, 6, 2), np.float32), size, np.full((2, 6), 0.1, np.float32), at)
    where = ", most often at token 0, channel 7" if layers else ""
    assert massive_in(measured).removeprefix("layers " if said[0] == "1" else "") == f"{said}{where}"


def test_a_ranking_is_drawn_in_its_order():
    figure = charts.ranking([Effect(2, 1, 0.3, 0.1), Effect(0, 0, -0.1, float("nan"))])
    assert list(figure.data[0].y) == ["2.1", "0.0"] and list(figure.data[0].x) == [0.3, -0.1]


def test_an_error_that_is_not_known_is_not_drawn_as_none_at_all():
    some = charts.ranking([Effect(2, 1, 0.3, 0.1), Effect(0, 0, -0.1, float("nan"))])
    # Null, as a list's NaN is written, is drawn as 0.
    assert "null" not in some.to_json() and "± standard error" in some.layout.xaxis.title.text
    assert "±" not in charts.ranking([Effect(2, 1, 0.3, float("nan"))]).layout.xaxis.title.text
    low, high, mean = (np.array(trace.y) for trace in charts.depth(np.ones((1, 3, 4)), "x").data)
    assert np.isnan(low).all() and np.isnan(high).all() and list(mean) == [1, 1, 1]


def test_depth_has_the_spread_of_samples():
    values = np.random.default_rng(0).random((5, 3, 4))
    low, high, mean = (np.array(trace.y) for trace in charts.depth(values, "x").data)
    np.testing.assert_allclose(mean, values.mean((0, 2)))
    np.testing.assert_allclose(high - low, 2 * values.mean(2).std(0, ddof=1))
    assert np.array(charts.cells(values.mean(0), "x").data[0].z).shape == (4, 3)


def test_a_pareto_picture_has_a_line_for_each_policy_over_its_budgets():
    figure = charts.pareto(parse("pareto:cost=tokens").numbers(VERDICT), "Cached tokens", "Perplexity", share=False)
    dense, window, sinks, front = figure.data
    assert [trace.name for trace in figure.data] == ["Dense", "Window", "Sinks + window", "Pareto front"]
    assert list(dense.x) == [64, 128] and set(dense.y) == {1.0} and list(window.x) == list(sinks.x) == [64, 128]
    np.testing.assert_allclose(window.y, np.exp([3, 2]))
    assert list(front.x) == [64, 128] and list(front.y) == list(sinks.y) and figure.layout.yaxis.type == "log"
    # Dense's divergence from itself is 0, which no logarithm has; of shares 0 is drawn.
    assert quality_label("streameval:back=5;every=2") == "Recalled: StreamEval, back=5, every=2"
    with pytest.raises(ValueError, match="quality must be one of"):
        quality_label("smell:back=5")
    kl = charts.pareto(parse("pareto:measure=kl,cost=tokens").numbers(VERDICT), "", "", share=False)
    assert [trace.name for trace in kl.data] == ["Window", "Sinks + window", "Pareto front"]
    told = charts.pareto(parse("pareto:measure=passkey,cost=tokens").numbers(VERDICT), "", "", share=True)
    assert list(told.data[1].y) == [0, 50] and told.layout.yaxis.type == "linear"
    assert told.layout.yaxis.ticksuffix == " %" and told.data[1].hovertemplate.endswith("%{y:.0f} %")


def test_a_divergence_of_nothing_or_of_rounding_stands_at_the_foot_of_a_pareto_picture():
    """A cache that holds the whole text: 0 under one policy, rounding under another, and both on the front."""
    columns = {
        "policy": np.array(["dense", "window:window=64", "window:window=1024", "snapkv:budget=64", "snapkv"]),
        "title": np.array(["Dense", "Window", "Window", "SnapKV", "SnapKV"]),
        "cost": np.array([np.nan, 64, 1024, 64, 1024]),
        "value": np.array([0, 2.0, 0, 0.25, 2e-7]),
        "front": np.array([False, False, True, True, False]),
    }
    kl = parse("pareto:measure=kl,cost=tokens")
    ax = kl.draw(columns, ax=plt.figure().subplots())
    drawn = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    assert drawn == {"Window": [2.0, 1e-4], "SnapKV": [0.25, 1e-4], "Pareto front": [1e-4, 0.25]}
    assert 0 < ax.get_ylim()[0] < 1e-4 and ax.yaxis.get_major_formatter()(1e-4, 0) == "≤ 10⁻⁴"
    plt.close(ax.figure)
    window, snapkv, front = charts.pareto(columns, "", "", share=False).data
    assert [list(trace.y) for trace in (window, snapkv, front)] == [[2.0, 1e-4], [0.25, 1e-4], [1e-4, 0.25]]
    assert list(snapkv.customdata) == [0.25, 2e-7], "what a pointer is told is the number itself"
    axis = charts.pareto(columns, "", "", share=False).layout.yaxis
    assert list(zip(axis.tickvals, axis.ticktext, strict=True))[:2] == [(1e-4, "≤ 0.0001"), (1e-3, "0.001")]
    assert "A divergence below 0.0001 nats/token is drawn at 0.0001." in kl.seen()
    assert (
        "below" not in parse("pareto").seen()
        and charts.pareto(
            parse("pareto:measure=kl,cost=tokens").numbers(VERDICT), "", "", share=False
        ).layout.yaxis.tickvals
        is None
    )


def test_points_of_a_curve_of_recall_are_told_with_their_policies_and_distances():
    columns = {
        "policy": np.array(["dense", "dense", "window:window=64"]),
        "distance": np.array([40.2, 1203.0, 40.2]),
        "recalled": np.array([1.0, 0.5, 0.0]),
    }
    assert points_told(columns) == "Dense at 40: 100 %; Dense at 1,203: 50 %; Window 64 at 40: 0 %"


@pytest.mark.parametrize("cost", [(64, 1024), (4096, 6144), (2.1, 3.4), (0.0328, 0.0655), (64, 64)])
@pytest.mark.parametrize("value", [(0.784, 0.777), (1.0021, 1.0007), (1.9, 1.01), (6.3, 1.02)])
def test_both_axes_of_a_pareto_picture_have_numbers_that_tell_points_apart(cost, value):
    columns = {
        "policy": np.array(["dense", "window:window=64", "window:window=128"]),
        "title": np.array(["Dense", "Window", "Window"]),
        "cost": np.array([np.nan, *cost]),
        "value": np.array([1, *value]),
        "front": np.array([False, True, True]),
    }
    ax = parse("pareto").draw(columns, ax=plt.figure().subplots())
    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        ticks = [at for at in axis.get_majorticklocs() if low <= at <= high]
        said = [axis.get_major_formatter()(at, 0).replace(",", "") for at in ticks]
        assert len(ticks) > 1 and all("e" not in text for text in said)
        np.testing.assert_allclose([float(text) for text in said], ticks, rtol=5e-3 if ticks[0] < 1 else 1e-5)
    plt.close(ax.figure)
    across = charts.pareto(columns, "", "", share=False).layout.xaxis
    between = [at for at in across.tickvals or () if min(cost) <= at <= max(cost)]
    assert len(between) > 1 or across.tickvals is None or cost[0] == cost[1]
    assert all("e" not in text for text in across.ticktext or ())


def test_policies_that_differ_in_more_than_their_size_have_lines_of_their_own():
    named = {
        "h2o:budget=64,recent=32": "Heavy hitters, interval 1",
        "h2o:budget=128,recent=64": "Heavy hitters, interval 1",
        "h2o:budget=64,recent=32,interval=16": "Heavy hitters, interval 16",
        "streaming:sinks=4,window=60": "Sinks + window, sinks 4",
        "streaming:sinks=4,window=124": "Sinks + window, sinks 4",
        "streaming:sinks=8,window=56": "Sinks + window, sinks 8",
        "streaming:sinks=4,window=60,first=newlines": "Sinks + window, first tokens newlines",
        "snapkv:budget=32,recent=8": "Observation window",
        "snapkv:budget=256,recent=32": "Observation window",
        "scissorhands:budget=64": "Persistence",
        "scissorhands:budget=256": "Persistence",
        "tova:budget=64,recent=2": "Last query, recent 2",
        "tova:budget=64,recent=3": "Last query, recent 3",
    }
    assert lines([policy(p) for p in named]) == [*named.values()]
    columns = {"policy": np.array([*named]), "cached": np.full(13, 64), "perplexity": np.full(13, 20.0)}
    ax = parse("budget").draw(columns, ax=plt.figure().subplots())
    drawn = {line.get_label(): len(line.get_xdata()) for line in ax.lines}
    plt.close(ax.figure)
    assert drawn == Counter(named.values())
    found = msgspec.structs.replace(VERDICT, entries=[entry(p, 64, 0.5, 1) for p in named])
    assert parse("pareto:cost=tokens").numbers(found)["title"].tolist() == [*named.values()]


def test_numbers_on_logarithmic_axes_are_written_whole():
    columns = {
        "policy": np.array(["dense", "window:window=64"]),
        "title": np.array(["Dense", "Window"]),
        "cost": np.array([np.nan, 64]),
        "value": np.array([1, 14.8]),
        "front": np.array([False, True]),
    }
    curve = [("Window", "#000000", "solid", np.arange(9), np.linspace(0, 3, 9))]
    layers = np.ones((1, 6, 3), np.float32)
    size, at = np.ones((1, 6, 3), np.float32), np.zeros((1, 6, 2), np.int64)
    measured = Measured({"mass": layers}, np.ones((1, 3, 6, 2), np.float32), size, np.ones((1, 6), np.float32), at)
    figures = [charts.pareto(columns, "", "", share=False), charts.norms(measured)]
    for figure in (*figures, charts.overlay(curve, "relative"), charts.overlay(curve, "rolling")):
        axis = figure.layout.yaxis
        # By itself plotly writes 0.9 and 20 as a small 9 and 2.
        assert axis.type == "log" and axis.tickformat == ",~g"
        assert figure.layout.legend.yanchor == "bottom" and figure.layout.legend.y >= 1
    assert figures[0].layout.yaxis.dtick == "D2"
    columns["value"][1] = 1.02
    assert charts.pareto(columns, "", "", share=False).layout.yaxis.dtick is None
    assert charts.pareto(columns, "", "", share=True).layout.yaxis.ticksuffix == " %"


def test_a_share_is_written_one_way_everywhere():
    """With a space before its sign, as the words of all pages have it."""
    columns = {"policy": ["dense"], "distance": [40.0], "recalled": [0.5], "low": [0.25], "high": [0.75]}
    figure = charts.recall({name: np.array(values) for name, values in columns.items()})
    (line,), axis = figure.data, figure.layout.yaxis
    assert (*line.y, *line.error_y.array, *line.error_y.arrayminus) == (50, 25, 25)
    assert line.hovertemplate.endswith("%{y:.0f} % recalled") and (axis.ticksuffix, *axis.range) == (" %", -3, 103)
    root = Path(charts.__file__).parents[2]
    sources = [path for room in ("app", "analysis") for path in (root / room).rglob("*.py")]
    # A style sheet has none.
    written = re.compile(r"(?<!--share: )\{[^{}]+:\.\d%\}|\"\.\d%\"")
    assert [path.name for path in sources if written.search(path.read_text(encoding="utf-8"))] == []


def test_the_level_of_dense_is_seen_where_all_policies_cost_the_same():
    columns = {name: of[[0, 1]] for name, of in parse("pareto:cost=tokens").numbers(VERDICT).items()}
    dense, window, _ = charts.pareto(columns, "", "", share=False).data
    assert columns["policy"][0] == "dense" and list(window.x) == [64]
    assert list(dense.x) == [32, 128] and set(dense.y) == {1.0}


def seen_by_a_deuteranope(colour: str) -> tuple[float, float, float]:
    """L*a*b* of a colour without green cones (Machado et al. 2009, severity 1)."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    deuteranope = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = to_xyz @ np.clip(deuteranope @ linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_policies_whose_lines_have_one_shape_have_colours_that_a_deuteranope_tells_apart():
    apart = {
        (one, other): math.dist(*(seen_by_a_deuteranope(LOOKS[name][0]) for name in (one, other)))
        for one, other in combinations(LOOKS, 2)
        if LOOKS[one][1] == LOOKS[other][1]
    }
    assert min(apart.values()) > 17, min(apart, key=apart.get)
