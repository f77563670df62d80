"""Maps on paper: no column is lost, however few dots a page has; what stands beside maps and sizes can be read."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from analysis.figures import parse
from analysis.figures.cells import pooled
from analysis.figures.head_map import EVICTED
from analysis.figures.sheet import Layout, drawn, rendered, table

from . import nasty
from .test_figure_texts import VENUES

YELLOW = (253, 231, 36)
"""Of a weight of 1."""


def sink(cells):
    """A map in which every token looks at the first one alone, under a window of a quarter of the text."""
    row, column = np.indices((cells, cells))
    weights = np.where(column == 0, 1, 1e-6).astype(np.float32)
    weights[(column > row) | ((column > 0) & (column < row - cells // 4))] = np.nan
    return weights


def has(figure, data, venue, dpi, colour):
    """Of each column of a picture how many dots have a colour, from the left."""
    layout = Layout(venue, 8, dpi)
    picture = np.asarray(Image.open(io.BytesIO(rendered(figure, data, "png", layout, {}))).convert("RGB"), dtype=int)
    return (abs(picture - np.array(colour)).max(-1) < 12).sum(0) / len(picture)


@pytest.mark.parametrize("dpi", [72, 150, 300])
@pytest.mark.parametrize("venue", ["acl", "icml", "neurips"])
def test_the_column_of_a_sink_is_drawn_on_every_page(venue, dpi):
    data = {"map": sink(512), "begin": np.array(0), "scale": np.array(2)}
    columns = has(parse("head-map"), data, venue, dpi, YELLOW)
    # The bar of colours has hardly any of the brightest.
    assert columns.max() > 0.6


@pytest.mark.parametrize("kind", ["weights", "logits"])
def test_every_map_of_a_grid_has_its_sink_and_what_was_evicted(kind):
    data = {"maps": np.tile(sink(128), (6, 9, 1, 1)), "layers": np.arange(6), "heads": np.arange(9)}
    figure = parse(f"map-grid:cells={kind}")
    assert (has(figure, data, "acl", 100, YELLOW) > 0.3).sum() >= 9
    assert has(figure, data, "acl", 100, tuple(bytes.fromhex(EVICTED[1:]))).max() > 0.1


@pytest.mark.parametrize("mean", [False, True])
def test_cells_that_share_a_dot_are_pooled(mean):
    values = sink(23)
    edges = [n * 23 // 7 for n in range(8)]
    of = np.nanmean if mean else np.nanmax
    for i in range(7):
        for j in range(7):
            block = values[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
            wanted = np.nan if np.isnan(block).all() else of(block)
            np.testing.assert_allclose(pooled(values, 7, mean=mean)[i, j], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("head-map", "≤ 10⁻⁴", "10⁰"),
        ("map-grid", "≤ 10⁻⁴", "10⁰"),
        ("attention-strip", "≤ 10⁻⁴", "10⁰"),
        ("head-map:colour=linear", "0.0", "1.0"),
        ("strip", "0", "≥ 8"),
    ],
)
def test_a_colour_that_all_beyond_have_too_says_so(name, first, last):
    with drawn(parse(name), nasty.numbers(name.split(":")[0]), Layout("acl", 8, 72)) as sheet:
        low, high = sheet.axes[-1].get_ylim()
        ticks = zip(sheet.axes[-1].get_yticks(), sheet.axes[-1].get_yticklabels(), strict=True)
        said = [label.get_text() for at, label in ticks if low <= at <= high]
    assert (said[0], said[-1]) == (first, last) and not any("≤" in text or "≥" in text for text in said[1:-1])


def test_a_bar_says_that_weights_that_sum_to_anything_go_on_beyond_its_end():
    for most, last in ((1 + 1e-6, "1.0"), (2.5, "≥ 1.0")):
        data = {"map": np.array([[most, np.nan], [0.2, 0.1]], np.float32), "begin": np.array(0), "scale": np.array(1)}
        with drawn(parse("emergence-map"), data, Layout("acl", 8, 72)) as sheet:
            assert [label.get_text() for label in sheet.axes[-1].get_yticklabels()][-1] == last


def test_a_table_of_a_map_says_which_tokens_layers_and_heads_its_numbers_are_of():
    square = np.arange(4, dtype=np.float32).reshape(2, 2)
    tables = {
        "head-map": ({"map": square, "begin": np.array(60), "scale": np.array(8)}, "query,key,map", "68,60,2.0"),
        "sink-grid": ({"mass": square}, "layer,head,mass", "1,0,2.0"),
        "map-grid": (
            {"maps": np.stack([[square, square + 4]]), "layers": np.array([10]), "heads": np.array([3, 7])},
            "layer,head,query,key,maps",
            "10,7,1,0,6.0",
        ),
        "mean-logits": (
            {"maps": np.stack([square, square + 4]), "layers": np.array([0, 29])},
            "layer,query,key,maps",
            "29,1,0,6.0",
        ),
    }
    for name, (data, header, row) in tables.items():
        lines = rendered(parse(name), data, "csv", Layout(), {}).decode().splitlines()
        assert lines[0] == header and row in lines, name


@pytest.mark.whole
def test_what_grey_means_in_a_map_of_recall_stands_below_its_lengths_and_units_beside_it():
    policies = np.repeat(["dense", "streaming:sinks=4,window=60", "window:window=64"], 4)
    spots = {"length": np.tile([128, 256], 6), "depth": np.tile([5.0, 5.0, 95.0, 95.0], 3)}
    data = {"policy": policies, **spots, "recalled": np.zeros(12), "nll": np.ones(12)}
    for venue in VENUES.values():
        with drawn(parse("needle-map"), data, Layout(venue, 8, 100)) as sheet:
            assert not nasty.misplaced(sheet), venue
            label = sheet.axes[0].get_xlabel().replace("\n", " ")
            assert label == "Length of the text (tokens); grey: dense fails"
    for cells, unit in (("recalled", "Recalled"), ("nll", "NLL of answer (nats/token)")):
        for venue in VENUES.values():
            with drawn(parse(f"needle-map:cells={cells}"), data, Layout(venue, 8, 100)) as sheet:
                assert sheet.axes[1].get_ylabel().replace("\n", " ") == unit, venue


def test_grey_cells_of_a_map_of_recall_have_lines_that_no_number_has():
    """In grey print their colour is one of the scale's."""
    spots = {"length": np.tile([128, 256], 4), "depth": np.tile([5.0, 5.0, 95.0, 95.0], 2)}
    shares = np.array([1.0, 0.0, 1.0, 0.4, 1.0, 1.0, 0.0, 0.5])
    data = {"policy": np.repeat(["dense", "window:window=64"], 4), **spots, "recalled": shares, "nll": np.ones(8)}
    with drawn(parse("needle-map"), data, Layout()) as sheet:
        lined = [patch.get_xy() for patch in sheet.axes[0].patches if patch.get_hatch()]
    # Of the second block, where dense gives fewer than half: 256 tokens, at both depths.
    assert lined == [(3.5, -0.5), (3.5, 0.5)]


@pytest.mark.parametrize("heads", [(1, 100), (100, 100), (30, 9)])
def test_cells_of_a_sink_grid_are_seen_however_many_there_are(heads):
    for venue in ("acl", "neurips"):
        with drawn(parse("sink-grid"), {"mass": np.zeros(heads)}, Layout(venue, None, 150)) as sheet:
            canvas = FigureCanvasAgg(sheet)
            canvas.draw()
            left, low, right, high = sheet.axes[0].get_window_extent().extents.astype(int)
            picture = np.asarray(canvas.buffer_rgba())[::-1][low + 2 : high - 2, left + 2 : right - 2, :3]
        assert picture.mean() < 120, venue


@pytest.mark.parametrize("spec", ["sink-depth", "memory", "massive"])
def test_a_line_of_one_point_or_between_gaps_is_seen(spec):
    rank = {"rank": np.ones(4, int), "median": np.array([1.0, np.nan, 1, 1]), "head": np.zeros(4, int)}
    named = {"lane": np.zeros(4, int), "policy": np.repeat("dense", 4), "label": np.repeat("Dense", 4), **rank}
    at, y = np.arange(1, 5), np.array([0.5, np.nan, 0.5, 0.5])
    data = named | dict.fromkeys(("layer", "token"), at) | dict.fromkeys(("mass", "megabytes", "size"), y)
    for count, lonely in ((4, [0]), (1, [0])):
        with drawn(parse(spec), {name: column[:count] for name, column in data.items()}, Layout()) as sheet:
            for line in sheet.axes[0].lines:
                assert line.get_marker() in ("o", ".") and (line.get_marker() == "o" or line.get_markevery() == lonely)


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_no_tick_of_a_short_map_stands_within_a_token(tokens):
    data = {"map": np.full((tokens, tokens), 0.5, np.float32), "begin": np.array(7), "scale": np.array(1)}
    with drawn(parse("head-map"), data, Layout("acl")) as sheet:
        (low, high), ticks = sheet.axes[0].get_xlim(), sheet.axes[0].get_xticks()
        assert [at for at in ticks if low <= at <= high] == list(range(7, 8 + tokens))


@pytest.mark.whole
@pytest.mark.parametrize(("least", "most"), [(2, 9), (0.4, 8), (3, 3.2), (0.5, 2.5e4)])
def test_an_axis_of_activations_has_numbers_whatever_its_range(least, most):
    ranks = {"layer": np.repeat([0, 1], 3), "rank": np.tile([1, 2, 3], 2)}
    data = {**ranks, "size": np.full(6, float(most)), "median": np.full(6, float(least))}
    for venue in VENUES.values():
        with drawn(parse("massive"), data, Layout(venue, 8, 72)) as sheet:
            sheet.draw_without_rendering()
            axis, (low, high) = sheet.axes[0].yaxis, sheet.axes[0].get_ylim()
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            said = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]
            assert len(list(filter(None, said))) >= 3, venue
            assert any("⁴" in text for text in said) == (most > 1e4)


def test_mean_logits_say_of_which_layers_they_are_and_call_none_a_head():
    source: Any = SimpleNamespace(
        stretch=SimpleNamespace(tokens=3, layers=30, heads=2),
        draw=lambda layer, head, region, kind: np.full((3, 3), layer + 2 * head, np.float32),
    )
    data = parse("mean-logits:layers=4 29").numbers(source)
    assert {name: array.shape for name, array in data.items()} == {"maps": (2, 3, 3), "layers": (2,)}
    assert data["layers"].tolist() == [4, 29] and data["maps"][:, 0, 0].tolist() == [5, 30]
    with drawn(parse("mean-logits:layers=4 29"), data, Layout()) as sheet:
        assert [label.get_text() for label in sheet.axes[0].get_xticklabels()] == ["4", "29"]


def test_a_table_of_maps_names_tokens_and_not_cells():
    """Those of a longer stretch have several tokens in a cell, as that of one head has."""
    source: Any = SimpleNamespace(
        stretch=SimpleNamespace(tokens=300, mass=np.zeros((1, 1))),
        draw=lambda layer, head, region, kind: np.zeros((75, 75), np.float32),
    )
    data = parse("map-grid:layers=0,heads=0,tokens=300").numbers(source)
    lines = table(data).splitlines()
    assert data["scale"] == 4 and len(lines) == 1 + 75 * 75
    assert lines[1:3] == ["0,0,0,0,0.0", "0,0,0,4,0.0"] and lines[-1] == "0,0,296,296,0.0"
