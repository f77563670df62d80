"""Maps of a model in half precision are what float32 makes of the queries and keys that it computed."""

import copy

import numpy as np
import pytest
import torch

from analysis.engine.check import adapt
from analysis.engine.stream import open_lanes
from analysis.maps.atlas import Atlas
from analysis.maps.attention_row import attend
from analysis.maps.passage import Passage
from analysis.maps.recent import head_map, head_row
from analysis.maps.region import Region
from analysis.policies import parse
from analysis.runs.codec import levels_of

from .families import few_layers, words
from .naive import standing
from .reading import read
from .test_atlas import captured_by
from .test_decoding import begun, decode

TOKENS = 70
HALVES = [torch.bfloat16, torch.float16]


def half(family, dtype):
    network = copy.deepcopy(few_layers(family)).to(dtype)
    return network, adapt(network)


def expected(twin, stretch, layer, head, policy):
    """Weights [queries, keys] of one query after the other, each over the list of tokens that it keeps."""
    attention, settings, sinks = twin.attentions[layer], twin.settings[layer], getattr(policy, "sinks", 0)
    angles = standing(twin, attention, TOKENS)
    queries, keys = (torch.from_numpy(np.array(x)) for x in (stretch.queries[layer], stretch.keys[layer]))
    keys, found = keys[head // (len(queries) // len(keys))], np.full((TOKENS, TOKENS), np.nan, np.float32)
    for t in range(TOKENS):
        kept = [j for j in range(t + 1) if j < sinks or policy.window is None or j >= t - policy.window]
        slots = torch.arange(len(kept))
        q = twin.rotate(attention, queries[head, t].view(1, 1, 1, -1), angles(slots[-1:]))
        k = twin.rotate(attention, keys[None, None, kept], angles(slots))
        scores = (q @ k.transpose(-1, -2))[0, 0, 0] * (settings.get("scaling") or q.shape[-1] ** -0.5)
        if cap := settings.get("softcap"):
            scores = cap * torch.tanh(scores / cap)
        sees = settings.get("sliding_window") or TOKENS
        scores[[j <= t - sees for j in kept]] = float("-inf")
        extra = [settings["s_aux"][head].float()] if settings.get("s_aux") is not None else []
        extra += [torch.tensor(policy.logit)] if policy.softmax == "logit" else []
        weights = torch.softmax(torch.cat((scores, *(e[None] for e in extra))), -1)[: len(kept)]
        found[t, kept] = weights.masked_fill(scores == float("-inf"), float("nan"))
    return found


def drawn_by_atlas(atlas, layer, head):
    # In pieces too: what a query gives in all must not depend on where one looks.
    count = atlas.stretch.tokens
    whole = atlas.draw(layer, head, Region((0, count), (0, count)))
    part = atlas.draw(layer, head, Region((33, 60), (21, 50)))
    np.testing.assert_allclose(part, whole[33:60, 21:50], atol=1e-6)
    return whole


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("family", "policy"),
    [
        ("llama", "dense"),
        ("llama", "streaming:sinks=4,window=12"),
        ("llama", "streaming:sinks=4,window=12,softmax=logit,logit=2.5"),
        ("gemma2", "window:window=30"),
        ("gpt_oss", "dense"),
        ("gpt_oss", "streaming:sinks=4,window=12,softmax=logit,logit=2.5"),
        ("gpt_neox", "window:window=12"),
        ("phi", "streaming:sinks=4,window=12"),
        ("bloom", "streaming:sinks=4,window=12"),
    ],
)
def test_maps_are_what_float32_makes_of_what_was_captured(family, policy, dtype, tmp_path):
    network, adapted = half(family, dtype)
    tokens, policy = words(TOKENS + 1), parse(policy)
    stretch = captured_by(adapted, tokens, policy, tmp_path / "s")
    atlas, twin = Atlas(stretch, adapted), adapt(copy.deepcopy(network).float())
    lane = open_lanes(adapted, tokens, [policy], history=TOKENS)[0]
    while not lane.done:
        lane.read(16)
    whole = policy.softmax == "ordinary" and family != "gpt_oss"
    for layer, head in ((0, 1), (1, 2), (adapted.layers - 1, 3)):
        wanted, drawn = expected(twin, stretch, layer, head, policy), drawn_by_atlas(atlas, layer, head)
        np.testing.assert_allclose(drawn, wanted, atol=2e-5)
        live = head_map(lane, layer, head, TOKENS)
        both = live.weights.copy()
        both[:, :4] = live.sinks
        np.testing.assert_allclose(both, wanted, atol=2e-5)
        if whole:
            np.testing.assert_allclose(np.nansum(drawn, 1), 1, atol=1e-5)
        np.testing.assert_array_equal(levels_of(drawn) == 0, np.isnan(wanted))
        row = head_row(lane, layer, head, 50)
        np.testing.assert_allclose(row.weights, wanted[50][~np.isnan(wanted[50])], atol=2e-5)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_coarse_cells_have_no_weight_above_one(dtype, tmp_path):
    _, adapted = half("llama", dtype)
    atlas = Atlas(captured_by(adapted, words(TOKENS + 1), parse("dense"), tmp_path / "s"), adapted)
    for scale in (2, 8):
        region = Region((0, TOKENS), (0, TOKENS), scale)
        for layer, head in np.ndindex(adapted.layers, 4):
            drawn = atlas.draw(layer, head, region)
            assert np.nanmax(drawn) <= 1 + 1e-6
            fine = atlas.draw(layer, head, Region((0, TOKENS), (0, TOKENS)))
            assert np.nanmax(drawn) == pytest.approx(np.nanmax(fine), abs=1e-6)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_row_in_full_is_consistent_with_its_weights(dtype):
    network, adapted = half("llama", dtype)

    passage = Passage(adapted, words(20))
    twin = adapt(copy.deepcopy(network).float())
    attended = passage.attended
    for layer, head in ((0, 1), (1, 2)):
        row, attention = passage.row(layer, head), twin.attentions[layer]
        q, k = attended.queries[layer][:, head : head + 1].float(), attended.keys[layer][:, [head // 2]].float()
        angles = twin.angles(attention, torch.arange(20))
        q, k = twin.rotate(attention, q, angles), twin.rotate(attention, k, angles)
        logits = (q[0, 0, -1] @ k[0, 0].T) * q.shape[-1] ** -0.5
        found, values = torch.from_numpy(row.logits), torch.from_numpy(row.values)
        torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-5)
        out = torch.from_numpy(attend(row))
        torch.testing.assert_close(out, torch.softmax(logits, -1) @ values, atol=1e-4, rtol=1e-4)


LANES = [
    "dense",
    "streaming:sinks=4,window=16",
    "h2o:budget=16,recent=5",
    "duo:sinks=4,window=16,scores=1 0; 0 1",
    "recompute:window=20,stride=3",
]


@pytest.fixture(scope="module")
def both():
    """One model twice: in bfloat16, and the same numbers in float32."""
    small = copy.deepcopy(few_layers("llama")).to(torch.bfloat16)
    return small, copy.deepcopy(small).float()


@pytest.mark.parametrize(
    "changed", ["knockout=weights", "knockout=values,softmax=off-by-one", "softmax=logit,logit=2.5"]
)
@pytest.mark.parametrize("lane", LANES)
def test_attention_is_changed_in_half_precision_as_in_float32(both, lane, changed):
    """Read and decoded; measured: 0.016 apart at most."""
    policy, tokens, (small, full) = parse(f"{lane}{',' if ':' in lane else ':'}{changed}"), words(60), both
    expected = read(full, tokens, policy)[0]
    np.testing.assert_allclose(read(small, tokens, policy)[0], expected, atol=0.05)
    np.testing.assert_allclose(decode(begun(small, tokens[:30], policy), tokens[30:])[0], expected[29:], atol=0.05)
    assert np.abs(expected - read(full, tokens, parse(lane))[0]).max() > 0.1


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("policy", ["scissorhands:budget=64", "adakv:budget=64"])
def test_what_a_query_hardly_looked_at_is_not_what_it_did_not_reach(policy, dtype):
    """A weight that float16 rounds to 0 is still one that is less than an even share."""
    network = copy.deepcopy(few_layers("llama"))
    for layer in network.model.layers:
        layer.self_attn.q_proj.weight.data *= 400
    lane = open_lanes(adapt(network.to(dtype)), words(TOKENS), [parse(policy)])[0]
    while not lane.done:
        lane.read(30)
    for layer in lane.store.layers:
        given = layer.recent_attention
        queries = torch.arange(TOKENS - 1)[-given.shape[1] :, None]
        assert torch.equal(given > 0, (layer.positions[:, None] <= queries).expand_as(given))
