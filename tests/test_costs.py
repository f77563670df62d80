"""Costs are counted, and grow with the power that they are made of."""

import numpy as np
import pytest

from analysis import texts
from analysis.experiments.costs import CountedLane, window_costs
from analysis.experiments.growth import Cost, exponent, growth
from analysis.models.loading import load


@pytest.fixture(scope="module")
def ids(text):
    return texts.tokenize(texts.read(text), None)


def test_a_power_is_found_whatever_it_is_multiplied_by():
    size = np.arange(100, 5000, 100)
    for power in (0.5, 1, 2):
        assert exponent(size, 7 * size.astype(float) ** power) == pytest.approx(power)
    assert np.isnan(exponent(np.array([1, 2]), np.array([1.0, 2.0])))


def test_the_power_of_a_text_is_found_under_a_fixed_cost_and_in_noise():
    tokens, chance = np.arange(128, 4097, 128.0), np.random.default_rng(0)

    def total(each):
        slow = 1 + 0.1 * chance.random(len(tokens)) + (chance.random(len(tokens)) < 0.05)
        return np.cumsum(each * 128 * slow)

    dense = growth(tokens, total(0.5e-3 + 0.6e-6 * tokens))
    assert dense.exponent == pytest.approx(2, abs=0.15) and dense.fixed == pytest.approx(0.6e-3, rel=0.3)
    window = growth(tokens, total(np.full(32, 0.3e-3)))
    assert window.exponent == pytest.approx(1, abs=0.1) and window.fixed == 0
    assert np.isnan(growth(tokens[:4], tokens[:4]).exponent)


def test_a_fixed_cost_is_told_where_a_token_has_come_to_cost_twice_as_much_and_is_never_below_zero():
    tokens = np.arange(128, 16_385, 128.0)

    def of(each):
        return growth(tokens, np.cumsum(each * 128))

    thrice = of(1 + 2 * (tokens / tokens[-1]) ** 2)
    assert thrice.exponent == pytest.approx(3, abs=0.05) and thrice.fixed == pytest.approx(1, rel=0.05)
    assert of(tokens - 100).fixed == 0


def test_the_power_of_a_cost_that_hardly_grows_is_that_of_the_later_part():
    tokens = np.geomspace(16, 4096, 200)
    each = np.sqrt(np.maximum(tokens, tokens[-1] / 4))
    total = np.cumsum(np.diff(tokens, prepend=0) * each)
    assert growth(tokens, total).exponent == pytest.approx(1.5, abs=0.02)


def test_counting_changes_no_number(model, ids):
    from analysis.engine.stream import stream
    from analysis.policies import parse

    network = load(model, device="cpu")
    counted = CountedLane(network, ids, "streaming:sinks=4,window=28")
    for reading in range(2):
        if reading:
            first = counted.costs
            counted.restart()
        while not counted.lane.done:
            counted.read(64)
    # The faster reading of each chunk counts.
    assert len(counted.costs) == len(first)
    assert all(b.seconds <= a.seconds and b.attention <= a.attention for a, b in zip(first, counted.costs, strict=True))
    steps = list(stream(network, ids, [parse("streaming:sinks=4,window=28")], chunk=64))
    assert [c.cache_bytes for c in counted.costs] == [s.cache_bytes[-1] for s in steps]
    assert counted.costs[-1].tokens == len(ids)
    seconds, attention = np.array([(c.seconds, c.attention) for c in counted.costs]).T
    assert (np.diff(seconds) > 0).all() and (np.diff(attention) > 0).all() and (attention < seconds).all()


def test_attention_is_counted_where_tokens_go_through_a_trace(model, ids):
    policy = "h2o:budget=24,recent=4,cache=int4,group=8,residual=8"
    counted = CountedLane(load(model, device="cpu"), ids, policy)
    while not counted.lane.done:
        counted.read(64)
    assert counted.lane.context.traced
    assert all(0 < attention < seconds for _, seconds, attention, _ in counted.took)


def test_a_window_is_encoded_from_nothing_for_each_size(model, ids):
    found = list(window_costs(load(model, device="cpu"), ids, [16, 64]))
    assert [c.tokens for c in found] == [16, 64]
    # Keys and values of 3 layers, 2 KV heads of 8 numbers, 4 bytes each, for every token of the window.
    assert [c.cache_bytes for c in found] == [2 * 3 * 2 * 8 * 4 * n for n in (16, 64)]
    assert all(0 < c.attention < c.seconds for c in found)


def test_a_window_costs_what_its_fastest_encoding_takes_without_those_before(model, ids, monkeypatch):
    spent = [Cost(16, 0.5, 0.1, 8), Cost(17, 2.5, 1.1, 8), Cost(18, 3.5, 1.6, 8), Cost(19, 5.0, 1.9, 8)]
    monkeypatch.setattr(CountedLane, "costs", spent)
    (found,) = window_costs(load(model, device="cpu"), ids, [16])
    assert (found.seconds, found.attention) == pytest.approx((1.0, 0.3))
