"""Costs are counted, and grow with the power that they are made of."""

import numpy as np
import pytest

from analysis import texts
from analysis.costs import Counted, exponent, windows
from analysis.models import load


@pytest.fixture(scope="module")
def ids(text):
    return texts.tokenize(texts.read(text), None)


def test_a_power_is_found_whatever_it_is_multiplied_by():
    size = np.arange(100, 5000, 100)
    for power in (0.5, 1, 2):
        assert exponent(size, 7 * size.astype(float) ** power) == pytest.approx(power)
    # What is small at first is left behind.
    assert exponent(size, 1e-3 * size + 1e-4 * size**2.0) == pytest.approx(2, abs=0.01)
    assert np.isnan(exponent(np.array([1, 2]), np.array([1.0, 2.0])))
    assert np.isnan(exponent(np.array([]), np.array([])))


def test_counting_changes_no_number(model, ids):
    from analysis.policies import parse
    from analysis.stream import stream

    network = load(model, device="cpu")
    counted = Counted(network, ids, "streaming:sinks=4,window=28")
    while not counted.lane.done:
        counted.read(64)
    steps = list(stream(network, ids, [parse("streaming:sinks=4,window=28")], chunk=64))
    assert [c.cached for c in counted.costs] == [s.cache_bytes[-1] for s in steps]
    assert counted.costs[-1].tokens == len(ids)
    seconds, attention = np.array([(c.seconds, c.attention) for c in counted.costs]).T
    assert (np.diff(seconds) > 0).all() and (np.diff(attention) > 0).all() and (attention < seconds).all()


def test_a_window_is_encoded_afresh_for_each_size(model, ids):
    found = list(windows(load(model, device="cpu"), ids, [16, 64]))
    assert [c.tokens for c in found] == [16, 64]
    # Keys and values of 3 layers, 2 KV heads of 8 numbers, 4 bytes each, for every token of the window.
    assert [c.cached for c in found] == [2 * 3 * 2 * 8 * 4 * n for n in (16, 64)]
    assert all(0 < c.attention < c.seconds for c in found)
