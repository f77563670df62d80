"""Maps at any scale equal the whole matrix, where that can be had; what was evicted is not drawn as zero."""

import shutil
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from analysis.engine.attention.band import Band
from analysis.engine.attention.banded import BandedPass
from analysis.engine.check import adapt
from analysis.engine.stream import open_lanes
from analysis.experiments.measures import measure
from analysis.maps.atlas import Atlas
from analysis.maps.capture import LARGE, capture, needed, tokenized
from analysis.maps.recent import head_map
from analysis.maps.region import Region
from analysis.maps.stretch import Stretch
from analysis.models.loading import load
from analysis.policies import Dense, Streaming, Window, parse
from analysis.runs.spec import Spec
from analysis.texts import Text

from .families import shared, tiny, twin, words


class Named:
    """A tiny model as the library loads one."""

    def __init__(self, adapted):
        self.adapted, self.sha256, self.tokenizer = adapted, "", None


def captured_by(adapted, tokens, policy, path, chunk=16, **more):
    spec = Spec("tiny", "words", (str(policy),))
    read = list(capture(Named(adapted), np.asarray(tokens, np.int32), spec, path, chunk=chunk, **more))
    assert read[-1] == len(tokens) - 1
    return Stretch(path)


def captured(network, tokens, policy, path, chunk=16, **more):
    adapted = twin(network)
    stretch = captured_by(adapted, tokens, policy, path, chunk, **more)
    return Atlas(stretch, adapted), stretch


def whole(atlas, layer, head, **more):
    count = atlas.stretch.tokens
    return atlas.draw(layer, head, Region((0, count), (0, count)), **more)


def eager(network, tokens):
    network.set_attn_implementation("eager")
    with torch.no_grad():
        out = network(torch.as_tensor(np.asarray(tokens)[None, :-1]), output_attentions=True, output_hidden_states=True)
    return torch.stack([a[0] for a in out.attentions]).numpy(), [h[0] for h in out.hidden_states]


@pytest.mark.parametrize("chunk", [7, 64])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "gpt_oss"])
def test_full_zoom_equals_eager_attention(family, chunk, tmp_path):
    network, tokens = shared(family), words(70)
    weights, _ = eager(network, tokens)
    atlas, stretch = captured(network, tokens, Dense(), tmp_path / "s", chunk)
    assert stretch.tokens == 69 and (stretch.layers, stretch.heads) == weights.shape[:2]
    for layer, head in np.ndindex(*weights.shape[:2]):
        drawn = whole(atlas, layer, head)
        seen = weights[layer, head] > 0
        np.testing.assert_allclose(drawn[seen], weights[layer, head][seen], atol=1e-5)
        assert np.isnan(drawn[np.triu_indices(69, 1)]).all()
    part = atlas.draw(1, 2, Region((30, 47), (10, 40)))
    np.testing.assert_allclose(part, whole(atlas, 1, 2)[30:47, 10:40], atol=1e-6)


@pytest.mark.parametrize(
    "policy", [Dense(), Window(12), Streaming(4, 12), Streaming(4, 12, "text"), Streaming(2, 9, "none")], ids=str
)
def test_full_zoom_equals_the_maps_of_the_live_page(policy, tiny_llama, tmp_path):
    tokens = words(90)
    atlas, _ = captured(tiny_llama, tokens, policy, tmp_path / "s")
    lane = open_lanes(tiny_llama, tokens, [policy], history=128)[0]
    while not lane.done:
        lane.read(16)
    for layer, head in ((0, 1), (2, 3)):
        live = head_map(lane, layer, head, 128)
        drawn = whole(atlas, layer, head)
        both = live.weights.copy()
        both[:, : live.sinks.shape[1]] = live.sinks
        np.testing.assert_allclose(drawn, both, atol=1e-5)
        rows = np.nansum(drawn, 1)
        np.testing.assert_allclose(rows, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("policy", "kv_heads", "chunk"),
    [
        ("dense:cache=int2,exact=3,group=4,residual=6", 4, 11),
        ("window:window=12,cache=int4,group=4,residual=6", 2, 89),
        ("streaming:sinks=4,window=12,cache=int4,exact=4,group=4,residual=6", 1, 30),
        ("streaming:sinks=6,window=13,positions=text,cache=int2,exact=1,group=4,residual=6", 2, 11),
        ("streaming:sinks=4,window=12,block=3,cache=int4,group=3,residual=5", 4, 30),
        ("shift:window=16,keep=2,cache=int2,group=4,residual=6", 1, 89),
    ],
)
def test_full_zoom_of_a_quantized_cache_equals_the_maps_of_the_live_page(policy, kv_heads, chunk, tmp_path):
    network, tokens = shared("llama", num_key_value_heads=kv_heads), words(90)
    atlas, stretch = captured(network, tokens, parse(policy), tmp_path / "s", chunk)
    lane = open_lanes(network, tokens, [parse(policy)], history=128)[0]
    while not lane.done:
        lane.read(chunk)
    for layer, head in ((0, 1), (3, 3)):
        live = head_map(lane, layer, head, 128)
        both = live.weights.copy()
        both[:, : live.sinks.shape[1]] = live.sinks
        np.testing.assert_allclose(whole(atlas, layer, head), both, atol=2e-5)
        np.testing.assert_allclose(atlas.draw(layer, head, Region((30, 47), (3, 40))), both[30:47, 3:40], atol=2e-5)
    size = sum(np.load(path, mmap_mode="r").nbytes for path in map(stretch.path.joinpath, LARGE))
    assert size == needed(4, 4, kv_heads, 8, 89, quantized=True)


@pytest.mark.parametrize("scale", [2, 5, 16])
@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("policy", [Dense(), Window(12), Streaming(4, 12)], ids=str)
def test_coarse_cells_pool_the_full_matrix(policy, pool, scale, tiny_llama, tmp_path):
    atlas, _ = captured(tiny_llama, words(90), policy, tmp_path / "s")
    for region in (Region((0, 89), (0, 89), scale), Region((32, 80), (16, 64), scale)):
        for kind in ("weights", "logits"):
            fine = atlas.draw(1, 2, Region(region.rows, region.columns), kind=kind)
            padded = np.full([-(-n // scale) * scale for n in fine.shape], np.nan, np.float32)
            padded[: fine.shape[0], : fine.shape[1]] = fine
            cells = padded.reshape(padded.shape[0] // scale, scale, -1, scale).swapaxes(1, 2)
            with warnings.catch_warnings():
                # Cells above the diagonal hold nothing.
                warnings.simplefilter("ignore", RuntimeWarning)
                wanted = (np.nanmax if pool == "max" else np.nanmean)(cells, (2, 3))
            drawn = atlas.draw(1, 2, region, pool=pool, kind=kind)
            np.testing.assert_allclose(drawn, wanted, atol=1e-5)


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("policy", [Dense(), Window(12), Streaming(4, 12)], ids=str)
def test_first_tokens_stay_apart_at_any_scale(policy, pool, tiny_llama, tmp_path):
    atlas, _ = captured(tiny_llama, words(90), policy, tmp_path / "s")
    for kind in ("weights", "logits"):
        fine = whole(atlas, 1, 2, kind=kind)[:, :4]
        np.testing.assert_allclose(atlas.first(1, 2, (0, 89), 1, pool=pool, kind=kind), fine, atol=1e-6)
        coarse = atlas.first(1, 2, (16, 89), 8, pool=pool, kind=kind)
        assert coarse.shape == (10, 4)
        for i, cell in enumerate(coarse):
            rows = fine[16 + 8 * i : 24 + 8 * i]
            for got, column in zip(cell, rows.T, strict=True):
                met = column[~np.isnan(column)]
                wanted = (met.max() if pool == "max" else met.mean()) if len(met) else np.nan
                np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(("asked", "has", "wanted"), [(20, 50, 20), (50, 50, 50), (80, 50, 50)])
def test_a_stretch_has_as_many_tokens_as_were_asked_for(asked, has, wanted, tiny_llama, tmp_path):
    """Of a text that has them: its last token asks too, though nothing comes behind it."""
    ids = np.asarray(words(51), np.int32)
    text = Text("words", "words", None, ids[:has], "")
    spec = Spec("tiny", "words", ("dense",), asked)
    read = tokenized(text, None, spec)
    stretch = captured_by(twin(tiny_llama), read.ids, Dense(), tmp_path / "s")
    assert stretch.tokens == wanted
    whole_of, _ = captured(tiny_llama, ids, Dense(), tmp_path / "all")
    mine = Atlas(stretch, twin(tiny_llama)).draw(1, 2, Region((0, wanted), (0, wanted)))
    np.testing.assert_allclose(mine, whole_of.draw(1, 2, Region((0, wanted), (0, wanted))), atol=1e-5)


def test_each_of_several_who_look_at_once_gets_what_he_asked_for(tiny_llama, tmp_path):
    """What one view has rotated is kept for its next look, and is never another view's."""
    atlas, stretch = captured(tiny_llama, words(90), Dense(), tmp_path / "s")
    views = [
        (layer, head, Region((0, 80), (begin, 80)))
        for layer, head, begin in ((0, 0, 0), (2, 3, 0), (1, 1, 8), (1, 3, 40))
    ]
    wanted = [Atlas(stretch, atlas.model).draw(*view) for view in views]
    start = threading.Barrier(len(views))

    def look(view):
        start.wait(60)
        return [atlas.draw(*view) for _ in range(200)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(views)) as threads:
            found = list(threads.map(look, views))
    finally:
        sys.setswitchinterval(interval)
    for drawn, want in zip(found, wanted, strict=True):
        for one in drawn:
            np.testing.assert_allclose(one, want, atol=1e-6)


def test_what_was_evicted_is_told_from_what_got_nothing(tiny_llama, tmp_path):
    atlas, _ = captured(tiny_llama, words(90), Streaming(4, 12), tmp_path / "s")
    drawn = whole(atlas, 0, 0)
    assert np.isnan(drawn[60, 4:48]).all() and (drawn[60, 48:61] > 0).all() and (drawn[60, :4] > 0).all()


def test_a_switch_in_the_middle_changes_what_is_reached(tiny_llama, tmp_path):
    tokens = words(90)
    switches = [(40, Window(12)), (60, Streaming(4, 12))]
    atlas, stretch = captured(tiny_llama, tokens, Streaming(4, 12), tmp_path / "s", switches=switches)
    assert [s.start for s in stretch.segments if s.policy.startswith("window")] == [39]
    drawn = whole(atlas, 1, 1)
    assert np.isnan(drawn[50, :4]).all() and (drawn[30, :4] > 0).all() and (drawn[70, :4] > 0).all()
    np.testing.assert_allclose(np.nansum(drawn, 1), 1, atol=1e-5)


PINNED = [
    (Streaming(4, 12), [(40, Window(12)), (60, Streaming(4, 12))]),
    # The last of these sinks has met all others.
    (Window(3), [(40, Streaming(4, 12))]),
    # These have never left, so nothing is read again.
    (Streaming(4, 12), [(40, Streaming(4, 12, softmax="off-by-one"))]),
    (Streaming(2, 12, "none"), [(40, Streaming(2, 12))]),
    # Who comes in between has read none of them.
    (Streaming(4, 12, "none"), [(40, Window(12, softmax="off-by-one")), (60, Streaming(4, 12, "none"))]),
]


@pytest.mark.parametrize(("first", "switches"), PINNED, ids=str)
def test_after_a_switch_a_map_shows_what_the_lane_gave(first, switches, tiny_llama, tmp_path):
    tokens = words(90)
    atlas, _ = captured(tiny_llama, tokens, first, tmp_path / "s", switches=switches)
    drawn = whole(atlas, 1, 1)
    lane = open_lanes(tiny_llama, tokens, [first])[0]
    for upto, policy in (*switches, (90, None)):
        while lane.position < upto:
            step = lane.read(16, upto=upto)
            mass = np.nansum(drawn[step.start - 1 : step.stop - 1, :4], 1)
            np.testing.assert_allclose(step.sink_mass[1, 1], mass, atol=1e-5)
        if policy:
            lane.switch(policy, pin=True)


OTHERWISE = [
    (Window(4), [(40, Streaming(6, 12))]),
    (Window(4), [(40, Streaming(4, 12, softmax="off-by-one"))]),
    (Window(12), [(40, Streaming(4, 12, "none"))]),
    # First tokens leave under a policy in between, which has changed nothing about them.
    (Streaming(4, 12, softmax="off-by-one"), [(30, Window(12)), (40, Streaming(4, 12))]),
    (Streaming(4, 12, "none"), [(30, Window(12)), (40, Streaming(4, 12))]),
    (Dense(softmax="off-by-one"), [(30, Window(12)), (40, Streaming(4, 12))]),
]


@pytest.mark.parametrize(("first", "switches"), OTHERWISE, ids=str)
def test_pinned_sinks_that_were_captured_in_another_way_are_refused(first, switches, tiny_llama, tmp_path):
    with pytest.raises(ValueError, match="read again in another way than they were captured"):
        captured(tiny_llama, words(60), first, tmp_path / "s", switches=switches)


def test_a_part_of_a_map_counts_positions_as_the_whole_where_a_switch_counts_them_otherwise(tiny_llama, tmp_path):
    then = [(60, parse("streaming:sinks=4,window=80,positions=naive"))]
    atlas, _ = captured(tiny_llama, words(121), Streaming(4, 80), tmp_path / "s", switches=then)
    part = atlas.draw(1, 2, Region((0, 120), (0, 40)))
    np.testing.assert_allclose(part, whole(atlas, 1, 2)[:, :40], atol=1e-6)


def test_a_row_is_that_of_the_map(tiny_llama, tmp_path):
    atlas, _ = captured(tiny_llama, words(60), Streaming(4, 12), tmp_path / "s")
    drawn = whole(atlas, 2, 1)
    np.testing.assert_allclose(atlas.row(2, 1, 40), drawn[40], atol=1e-6)


def test_norms_and_massive_activations_are_those_of_the_network(tiny_llama, tmp_path):
    tokens = words(60)
    _, hidden = eager(tiny_llama, tokens)
    for chunk in (13, 64):
        _, stretch = captured(tiny_llama, tokens, Dense(), tmp_path / f"{chunk}", chunk)
        # What comes out of the last layer is normed before transformers tells it.
        for layer in range(stretch.layers - 1):
            out = hidden[layer + 1]
            np.testing.assert_allclose(stretch.norms[2, layer], out.norm(dim=-1), rtol=1e-4)
            size, token, channel = stretch.massive[layer, 0]
            assert size == pytest.approx(float(out.abs().max()), rel=1e-4)
            assert abs(float(out[int(token), int(channel)])) == pytest.approx(size, rel=1e-4)
        assert (np.diff(stretch.massive[..., 0], axis=1) <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_median_of_activations_is_that_of_the_whole_stretch(dtype, tmp_path):
    """And the same for any chunks, of which the last is smaller; it is what `measure` says of the same text."""
    adapted, tokens = adapt(tiny("llama").to(dtype)), words(84)
    (alone,) = measure(adapted, tokens[None, :-1])
    seen, reader = {}, BandedPass(adapted, 0, 0, Band(0, 0, None, "text"), None)
    adapted.forward(torch.as_tensor(tokens)[None, :-1], reader, outputs=seen)
    wanted = [np.median(seen[layer].float().abs().numpy()) for layer in range(4)]
    for chunk in (1, 13, 41, 83):
        stretch = captured_by(adapted, tokens, Dense(), tmp_path / f"{chunk}", chunk)
        # Chunks of other sizes round otherwise, and by no more than that.
        near = 1e-5 if dtype == torch.float32 else 1e-2
        np.testing.assert_allclose(stretch.median, wanted, rtol=near)
        np.testing.assert_allclose(stretch.median, alone.median[0], rtol=near)
        assert not list(stretch.path.glob("*.part"))


def test_a_stretch_outlasts_the_files_of_its_model_and_names_the_weights_that_read_it(model, tmp_path):
    tokens, spec = np.asarray(words(60), np.int32), Spec("tiny", "words", ("dense",))
    shutil.copytree(model, tmp_path / "model")
    reading = capture(load(str(tmp_path / "model"), device="cpu"), tokens, spec, tmp_path / "s", chunk=16)
    next(reading)
    shutil.rmtree(tmp_path / "model")
    assert [*reading][-1] == 59
    assert Stretch(tmp_path / "s").about["weights_sha256"] == load(model, device="cpu").sha256


def test_a_stretch_says_what_it_needs_and_what_it_cannot_be(tiny_llama, tmp_path):
    tokens, model = words(60), Named(twin(tiny_llama))
    _, stretch = captured(tiny_llama, tokens, Dense(), tmp_path / "s")
    size = sum(np.load(p).nbytes for p in (tmp_path / "s").glob("*.npy") if p.stem in ("queries", "keys", "norms"))
    assert size == needed(3, 4, 2, 8, 59)
    spec = Spec("tiny", "words", ("dense",))
    with pytest.raises(ValueError, match="holds a stretch already"):
        list(capture(model, tokens, spec, tmp_path / "s"))
    few_bits, switch = Spec("tiny", "words", ("dense:cache=int4",)), [(20, Window(12))]
    with pytest.raises(ValueError, match="a switch may give it more: capture it without switches"):
        list(capture(model, tokens, few_bits, tmp_path / "t", switches=switch))
    with pytest.raises(ValueError, match="a switch may give it more: capture it without switches"):
        list(capture(model, tokens, spec, tmp_path / "t", switches=[(20, parse("dense:cache=int4"))]))
    for policy in ("h2o:budget=16,recent=5", "recompute:window=12", "dense:first=newlines"):
        with pytest.raises(ValueError, match="captured under dense, window"):
            list(capture(model, tokens, Spec("tiny", "words", (policy,)), tmp_path / "t"))
    with pytest.raises(ValueError, match="at most 65,536 tokens"):
        list(capture(model, np.zeros(70_000, np.int32), spec, tmp_path / "t"))
    learned = Named(twin(shared("gpt2")))
    with pytest.raises(ValueError, match="at most 512 tokens, and this would have 513: read fewer"):
        list(capture(learned, np.resize(tokens, 514), spec, tmp_path / "t"))
    with pytest.raises(ValueError, match=r"no readable stretch\.json"):
        Stretch(tmp_path / "t")
    atlas = Atlas(stretch, model.adapted)
    with pytest.raises(ValueError, match=r"there is no head 3\.0"):
        atlas.draw(3, 0, Region((0, 5), (0, 5)))
    with pytest.raises(ValueError, match="do not lie in this stretch of 59"):
        atlas.draw(0, 0, Region((0, 60), (0, 5)))
    with pytest.raises(ValueError, match="a cell is at least 1 token wide, not 0"):
        atlas.draw(0, 0, Region((0, 9), (0, 5), 0))
    with pytest.raises(ValueError, match="pool must be max or mean, not 'typo'"):
        atlas.draw(0, 0, Region((0, 9), (0, 5)), pool="typo")
    with pytest.raises(ValueError, match="kind must be weights or logits, not 'difference'"):
        atlas.draw(0, 0, Region((0, 9), (0, 5)), kind="difference")
    assert parse(stretch.spec.policies[0]) == Dense()
