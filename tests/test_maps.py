"""A map on demand equals the attention weights that were used."""

import numpy as np
import pytest
import torch

from analysis.engine.stream import open_lanes
from analysis.maps.recent import head_map, head_row
from analysis.policies import Dense, Recompute, Streaming, Window, parse


@pytest.fixture
def tokens():
    return np.random.default_rng(2).integers(0, 97, 200)


def read_all(model, tokens, policy, chunk=13, history=64):
    lane = open_lanes(model, tokens, [policy], history=history)[0]
    mass = []
    while not lane.done:
        mass.append(lane.read(chunk).sink_mass)
    return lane, np.concatenate(mass, -1)


@pytest.mark.parametrize("chunk", [1, 16, 200])
@pytest.mark.parametrize("history", [50, 1000])
def test_map_equals_eager_weights(tiny_llama, tokens, chunk, history):
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        weights = tiny_llama(torch.as_tensor(tokens)[None], output_attentions=True).attentions
    lane, _ = read_all(tiny_llama, tokens, Dense(), chunk, history)
    for layer, head in ((0, 0), (2, 3)):
        drawn = head_map(lane, layer, head, 40)
        expected = weights[layer][0, head].numpy()
        rows = slice(drawn.first, len(tokens) - 1)
        below = np.tril(np.ones_like(drawn.weights, bool))
        np.testing.assert_allclose(drawn.weights[below], expected[rows, rows][below], atol=1e-5)
        np.testing.assert_allclose(drawn.sinks, expected[rows, :4], atol=1e-5)
        assert np.isnan(drawn.weights[~below]).all()


@pytest.mark.parametrize("policy", [Window(20), Streaming(4, 16), Streaming(4, 16, "text"), Streaming(1, 30), Dense()])
def test_map_agrees_with_the_sink_mass_of_the_pass(tiny_llama, tokens, policy):
    lane, mass = read_all(tiny_llama, tokens, policy)
    drawn = head_map(lane, 1, 2, 64)
    np.testing.assert_allclose(np.nansum(drawn.sinks, 1), mass[1, 2, -len(drawn.sinks) :], atol=1e-5)


def test_evicted_pairs_are_nan_not_zero(tiny_llama, tokens):
    lane, _ = read_all(tiny_llama, tokens, Streaming(4, 16))
    drawn = head_map(lane, 0, 0, 64)
    n = len(drawn.weights)
    distance = np.arange(n)[:, None] - np.arange(n)[None]
    np.testing.assert_array_equal(np.isnan(drawn.weights), (distance < 0) | (distance > 16))
    rows = np.nansum(drawn.weights, 1) + np.nansum(drawn.sinks, 1)
    np.testing.assert_allclose(rows[16:], 1, atol=1e-5)


def test_recompute_shows_its_newest_window(tiny_llama, tokens):
    lane, _ = read_all(tiny_llama, tokens, Recompute(16, 5))
    drawn = head_map(lane, 1, 1)
    np.testing.assert_allclose(np.nansum(drawn.weights, 1), 1, atol=1e-5)
    assert drawn.first + len(drawn.weights) == len(tokens) - 1


def test_map_stays_exact_across_a_switch(tiny_llama, tokens):
    lane = open_lanes(tiny_llama, tokens, [Window(20)], history=64)[0]
    while lane.position < 150:
        lane.read(10, upto=150)
    lane.switch(parse("streaming:sinks=4,window=16"), pin=True)
    mass = np.concatenate([lane.read(10).sink_mass for _ in range(2)], -1)
    drawn = head_map(lane, 2, 0, 64)
    np.testing.assert_allclose(np.nansum(drawn.sinks, 1)[-20:], mass[2, 0], atol=1e-5)
    assert np.isnan(drawn.sinks[:-20]).all()
    np.testing.assert_allclose((np.nansum(drawn.weights, 1) + np.nansum(drawn.sinks, 1))[-20:], 1, atol=1e-5)


def rows(lane):
    """The rows of one head that can be drawn, by token."""
    return {t: row for t in range(lane.position) if (row := head_row(lane, 1, 2, t)) is not None}


SMALL = "group=4,residual=6"
SWITCHES = [
    ("streaming:sinks=4,window=30", "dense", False),
    ("streaming:sinks=4,window=30", f"streaming:sinks=2,window=20,cache=int4,{SMALL}", False),
    (f"dense:cache=int4,{SMALL}", "dense", False),
    (f"dense:cache=int4,{SMALL}", f"dense:cache=int8,{SMALL}", False),
    ("h2o:budget=30,recent=8", f"h2o:budget=30,recent=8,cache=int2,{SMALL}", False),
    (f"h2o:budget=30,recent=8,cache=int2,{SMALL}", "h2o:budget=30,recent=8", False),
    (f"h2o:budget=30,recent=8,cache=int2,{SMALL}", f"h2o:budget=30,recent=8,cache=int8,{SMALL}", False),
    (f"h2o:budget=30,recent=8,cache=int2,{SMALL}", f"h2o:budget=20,recent=8,cache=int2,{SMALL}", False),
    ("tova:budget=30", "tova:budget=20,sinks=4", True),
    ("random:budget=30,sinks=0,recent=8", "random:budget=30,sinks=4,recent=8", True),
    ("adakv:budget=30,recent=8", "adakv:budget=30,recent=8,sinks=4", True),
    ("duo:full=50,sinks=2,window=12", "duo:full=25,sinks=2,window=12", True),
]


@pytest.mark.parametrize(("old", "new", "pin"), SWITCHES)
def test_a_map_shows_of_older_tokens_what_it_showed_before_a_switch_or_nothing(tiny_llama, tokens, old, new, pin):
    lane = open_lanes(tiny_llama, tokens, [parse(old)], history=12)[0]
    while lane.position < 61:
        lane.read(7, upto=61)
    known = rows(lane)
    assert len(known) >= 12
    lane.switch(parse(new), pin=pin)
    for count in (0, 1, 5):
        mass = lane.read(count, upto=lane.position + count).sink_mass[1, 2] if count else ()
        after = rows(lane)
        assert after.keys() >= set(range(60, lane.position - 1))
        for t, given in enumerate(mass, lane.position - 1 - len(mass)):
            assert after[t].weights[after[t].positions < 4].sum() == pytest.approx(given, abs=1e-5)
        for t, row in after.items():
            before = known.setdefault(t, row)
            assert row.positions.tolist() == before.positions.tolist()
            np.testing.assert_allclose(row.weights, before.weights, atol=1e-5)
            assert row.weights.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("policy", [Dense(), Window(20), Streaming(2, 20), Streaming(9, 20)], ids=str)
def test_a_switch_to_the_same_first_tokens_takes_no_map_away(tiny_llama, tokens, policy):
    lane = open_lanes(tiny_llama, tokens, [Streaming(4, 30)], history=200)[0]
    lane.read(60)
    before = [head_row(lane, 1, 1, token) for token in (3, 20, 59)]
    lane.switch(policy)
    for row, token in zip(before, (3, 20, 59), strict=True):
        after = head_row(lane, 1, 1, token)
        assert np.array_equal(after.positions, row.positions) and np.array_equal(after.weights, row.weights)


def test_attention_received_is_the_mean_over_the_queries_that_reached(tiny_llama, tokens):
    lane, _ = read_all(tiny_llama, tokens, Dense())
    drawn = head_map(lane, 0, 1, 64)
    np.testing.assert_allclose(drawn.received(), np.nanmean(drawn.weights, 0), atol=1e-6)


def test_held_queries_are_bounded(tiny_llama, tokens):
    lane, _ = read_all(tiny_llama, tokens, Streaming(4, 16), chunk=10, history=40)
    assert sum(p.stop - p.start for p in lane.view.chunks if p.queries) <= 40 + 10
    assert sum(p.stop - p.start for p in lane.view.chunks) <= 40 + 16 + 10
    for policy in (Dense(), Streaming(4, 16)):
        lane, _ = read_all(tiny_llama, tokens[:60], policy, chunk=1, history=40)
        assert len(rows(lane)) == 40


def test_queries_that_were_read_again_are_held_once(tiny_llama, tokens):
    """Where slots are ranked, tokens that came in smaller passes are read again with all that one eviction ends."""
    lane, _ = read_all(tiny_llama, tokens[:100], parse("h2o:budget=64,recent=4"), chunk=10, history=200)
    chunks = lane.view.chunks
    assert [c.start for c in chunks] == [0, *(c.stop for c in chunks[:-1])] and chunks[-1].stop == 99


def test_held_queries_of_decoded_tokens_are_bounded(tiny_llama, tokens):
    lane = open_lanes(tiny_llama, tokens[:30], [Streaming(4, 16)], history=64)[0]
    lane.read(29)
    for _ in range(150):
        lane.next(lambda logits: int(logits.argmax()))
    assert 64 <= sum(p.stop - p.start for p in lane.view.chunks if len(p.queries)) <= 2 * 64


def test_no_map_before_the_first_token_and_a_sentence_for_a_head_that_is_not_there(tiny_llama, tokens):
    lane = open_lanes(tiny_llama, tokens, [Dense()], history=64)[0]
    assert head_map(lane, 0, 0) is None and lane.first == 0
    lane.read(5)
    with pytest.raises(ValueError, match="layers are 0 to 2"):
        head_map(lane, 3, 0)


def test_no_first_token_has_a_column_before_it_is_read(tiny_llama, tokens):
    lane = open_lanes(tiny_llama, tokens, [Dense()], history=64)[0]
    lane.read(2)
    assert head_map(lane, 0, 0).sinks.shape == (2, 2)
    lane.read(5)
    assert head_map(lane, 0, 0).sinks.shape == (7, 4)
