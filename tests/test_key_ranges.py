"""Ranges of keys by channel are those of what the model's own projection says, in the figure and on the board."""

import io

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Sheet
from PIL import Image
from streamlit.testing.v1 import AppTest

from analysis import metrics
from analysis.engine.stream import open_lanes
from analysis.experiments.presets import PRESETS
from analysis.figures import parse
from analysis.figures.key_ranges import FIRST
from analysis.figures.sheet import Layout, rendered
from analysis.maps.atlas import Atlas
from analysis.maps.recent import head_map
from analysis.policies import Dense
from analysis.policies import parse as parse_policy
from app.frames.reading import ReadingSender
from app.view import View

from .families import shared, twin, words
from .fuzz.addresses import MAIN
from .recordings import decoded
from .test_atlas import captured_by
from .test_jobs_reading import begin
from .waiting import until


def projected(network, tokens):
    """Keys as the network's own layers project them, [layers, kv_heads, tokens, dim]."""
    found, config = [], network.config
    hooks = [
        layer.self_attn.k_proj.register_forward_hook(lambda module, given, keys: found.append(keys[0]))
        for layer in network.model.layers
    ]
    with torch.no_grad():
        network(torch.as_tensor(tokens)[None])
    for hook in hooks:
        hook.remove()
    return torch.stack([k.unflatten(-1, (config.num_key_value_heads, -1)).transpose(0, 1) for k in found]).numpy()


def one_by_one(keys, first):
    """Least and greatest of each channel of keys [tokens, dim], token after token: at the first ones, and at others."""
    ends = {"first": [[np.inf] * keys.shape[1], [-np.inf] * keys.shape[1]]}
    ends["others"] = [list(end) for end in ends["first"]]
    for token, key in enumerate(keys):
        low, high = ends["first" if token < first else "others"]
        for channel, number in enumerate(key):
            low[channel], high[channel] = min(low[channel], number), max(high[channel], number)
    return np.array([ends["first"], ends["others"]])


def network_of(kv_heads):
    """Two layers of four query heads, which share so many KV heads."""
    return shared("llama", num_hidden_layers=2, num_key_value_heads=kv_heads)


@pytest.mark.parametrize(("kv_heads", "chunk"), [(4, 7), (2, 64), (1, 1)])
def test_a_figure_has_the_ranges_of_the_models_own_keys(kv_heads, chunk, tmp_path):
    network, tokens = network_of(kv_heads), words(41)
    adapted, keys = twin(network), projected(network, tokens[:-1])
    atlas = Atlas(captured_by(adapted, tokens, Dense(), tmp_path / "s", chunk), adapted)
    figure = parse(f"key-ranges:kv_head={kv_heads - 1},first=3")
    data = figure.numbers(atlas)
    assert data["layer"].tolist() == [0] * 8 + [1] * 8 and data["channel"].tolist() == [*range(8)] * 2
    for layer in range(2):
        expected = one_by_one(keys[layer, kv_heads - 1], 3).reshape(4, 8)
        rows = data["layer"] == layer
        got = [data[name][rows] for name in ("first_least", "first_greatest", "least", "greatest")]
        np.testing.assert_allclose(got, expected, atol=1e-5)
    *bands, lines = figure.draw(data, ax=Sheet().subplots()).collections
    assert [drawn.get_label() for drawn in (bands[0], lines)] == ["All others", "First 3 tokens"]
    for layer, band in enumerate(bands):
        corners = band.get_paths()[0].vertices[:, 1]
        rows = data["layer"] == layer
        assert (corners.min(), corners.max()) == (data["least"][rows].min(), data["greatest"][rows].max())
    for column, drawn in enumerate(("first_least", "first_greatest")):
        np.testing.assert_array_equal([line[column][1] for line in lines.get_segments()], data[drawn])


def test_one_first_token_is_drawn_in_every_channel():
    channels, ends = np.arange(16), np.ones(16)
    alone = {"first_least": ends / 2, "first_greatest": ends / 2, "least": -ends, "greatest": ends}
    data = {"layer": channels * 0, "channel": channels, **alone}
    made = rendered(parse("key-ranges:first=1"), data, "png", Layout("acl", 8, 300), {})
    picture = np.asarray(Image.open(io.BytesIO(made)).convert("RGB")) / 255
    # Below the names of what is drawn.
    inside = np.abs(picture[len(picture) // 3 :] - to_rgb(FIRST)).max(-1) < 0.1
    drawn = np.flatnonzero(inside.any(0))
    assert (np.diff(drawn) > 1).sum() + 1 == 16


def test_the_channels_at_the_edges_are_as_wide_as_the_others():
    channels, least = np.arange(6) % 3, -np.arange(1.0, 7)
    alone = {"first_least": least, "first_greatest": -least, "least": least, "greatest": -least}
    data = {"layer": np.arange(6) // 3, "channel": channels, **alone}
    *bands, _ = parse("key-ranges").draw(data, ax=Sheet().subplots()).collections
    for band, lows in zip(bands, (least[:3], least[3:]), strict=True):
        x, y = band.get_paths()[0].vertices.T
        wide = [np.ptp(x[y == low]) for low in lows]
        np.testing.assert_array_equal(wide, 1)


@pytest.mark.parametrize("chunk", [9, 100])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("policy", "held"),
    [
        ("dense", range(89)),
        ("streaming:sinks=4,window=16", [*range(4), *range(72, 89)]),
        ("streaming:sinks=4,window=16,cache=int8,exact=89,group=4,residual=6", [*range(4), *range(72, 89)]),
        ("window:window=16", range(72, 89)),
    ],
)
def test_the_board_has_the_ranges_of_the_keys_that_a_lane_holds(policy, held, kv_heads, chunk):
    network, tokens = network_of(kv_heads), words(90)
    keys = projected(network, tokens[:-1])
    lane = open_lanes(network, tokens, [parse_policy(policy)], history=32)[0]
    # The last pass is of one token, so that all queries meet the same keys.
    while lane.position < 89:
        lane.read(chunk, upto=89)
    lane.read(1)
    # Deeper keys depend on what has been evicted, those of the first layer on their own tokens alone.
    ranges = head_map(lane, 0, 3).ranges
    first = [t for t in held if t < 4]
    expected = one_by_one(keys[0, kv_heads - 1][list(held)], len(first))
    expected[np.isinf(expected)] = np.nan
    np.testing.assert_allclose(ranges, expected, atol=1e-5)
    assert np.isnan(metrics.widened(ranges)).all() == (not first)


def test_keys_that_are_quantized_have_the_range_that_they_were_rounded_to():
    network, tokens = network_of(2), words(90)
    plain, rough = (
        head_map(read_whole(network, tokens, policy), 0, 3).ranges
        for policy in ("dense", "dense:cache=int4,exact=4,group=4,residual=4")
    )
    np.testing.assert_array_equal(rough[0], plain[0])
    # A step of four bits is a fifteenth of the range of a group, and at most 9 % wider.
    off, step = np.abs(rough[1] - plain[1]), (plain[1, 1] - plain[1, 0]) / 15 * 1.1
    assert (off <= step).all() and (off > 0).any()


def read_whole(network, tokens, policy):
    lane = open_lanes(network, tokens, [parse_policy(policy)], history=32)[0]
    while not lane.done:
        lane.read(30)
    return lane


def test_how_many_times_as_wide_a_range_is_with_the_first_tokens():
    others = np.array([[0.0, -1, 2], [1, 1, 4]])
    assert metrics.widened(np.stack((np.array([[0.5, -3, 2], [0.6, 3, 12]]), others))).tolist() == [1, 3, 5]
    assert metrics.widened(np.stack((others, others))).tolist() == [1, 1, 1]
    assert np.isnan(metrics.widened(np.stack((np.full((2, 3), np.nan), others)))).all()


def test_the_embedded_models_first_tokens_have_other_ranges(embedded):
    """In some channels, from the layer on where activations are massive: a scale that others share with them is up to
    some times as wide."""
    from analysis import texts

    ids = texts.tokenize(texts.read("hamlet"), embedded.tokenizer, limit=129)
    lane = read_whole(embedded, ids, "dense")
    before, behind = (
        np.stack([metrics.widened(head_map(lane, layer, 0).ranges) for layer in layers])
        for layers in (range(6, 11), range(12, 22))
    )
    assert behind.max(1).min() > 1.5 > before.max() and (behind > 1).sum(1).min() > (before > 1).sum(1).max()


def test_ranges_are_sent_where_a_lane_has_a_cache_of_few_bits(registry, model):
    lanes = ("streaming:sinks=4,window=28", "streaming:sinks=4,window=28,cache=int4,group=4,residual=4")
    for policies, sent in ((lanes, True), (lanes[:1], False)):
        run = begin(registry, model, policies=policies)
        until(run, lambda run=run: run.status == "finished" and run.map(0, 1, 3) is not None)
        head, arrays = decoded(ReadingSender().frame(run, View(head=(1, 3))))
        assert ("key_ranges" in arrays) == ("kv_head" in head["map"]) == sent
        if sent:
            drawn = run.map(0, 1, 3).ranges
            np.testing.assert_array_equal(arrays["key_ranges"], drawn)
            assert head["map"]["kv_head"] == 3 * run.facts.kv_heads // 4
            times = metrics.widened(drawn)
            assert head["map"]["beyond"] == (times > 1).sum() > 0
            assert head["map"]["widened"] == pytest.approx(times.max())


def test_ranges_are_sent_once_there_is_something_to_compare_the_first_tokens_with(registry, model):
    lanes = ("streaming:sinks=4,window=28,cache=int4,group=4,residual=4",)
    for tokens, sent in ((5, False), (6, False), (7, True)):
        run = begin(registry, model, policies=lanes, count=tokens)
        until(run, lambda run=run: run.status == "finished" and run.map(0, 1, 3) is not None)
        head, arrays = decoded(ReadingSender().frame(run, View(head=(1, 3))))
        assert ("key_ranges" in arrays) == ("widened" in head["map"]) == sent
        assert not sent or head["map"]["widened"] >= 1


def test_the_story_of_few_bits_brings_a_head_and_takes_it_away(monkeypatch):
    monkeypatch.setattr("app.panels.run_panel.RunPanel.begin", lambda *_, **__: None)
    at = AppTest.from_file(MAIN, default_timeout=300).run()
    told, head = [], PRESETS["quantized"].head
    for story in ("quantized", "shift", "quantized"):
        at.sidebar.button(key=f"read-story-{story}").click().run()
        told.append(at.session_state["view"].head)
    # What a person has chosen stays.
    at.session_state["view"].head = (1, 2)
    at.sidebar.button(key="read-story-blocks").click().run()
    assert [*told, at.session_state["view"].head] == [head, None, head, (1, 2)] and not at.exception


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("layers=2", "layers are 0 to 1 and KV heads 0 to 1"),
        ("kv_head=2", "layers are 0 to 1 and KV heads 0 to 1"),
        ("first=40", "the stretch has 40 tokens, all of which are first ones: choose a smaller first"),
    ],
)
def test_ranges_that_are_not_there_are_refused_in_a_sentence(asked, sentence, tmp_path):
    network = network_of(2)
    atlas = Atlas(captured_by(twin(network), words(41), Dense(), tmp_path / "s"), twin(network))
    with pytest.raises(ValueError, match=sentence):
        parse(f"key-ranges:{asked}").numbers(atlas)
