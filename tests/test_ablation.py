"""One head after the other, each as if it had been knocked out alone."""

import numpy as np
import pytest

from analysis.ablation import knock_out_each
from analysis.metrics import excess
from analysis.policies import Dense, Streaming

from .families import our_nll, tiny, words


@pytest.mark.parametrize("kind", ["values", "weights"])
def test_each_head_costs_what_it_costs_alone(kind):
    model, tokens = tiny("llama"), np.resize(words(), 600)
    effects = list(knock_out_each(model, tokens, Streaming(4, 60), kind))
    assert [(e.layer, e.head) for e in effects] == [(layer, head) for layer in range(4) for head in range(4)]
    plain = our_nll(model, tokens, 64, Streaming(4, 60))
    for layer, head in ((0, 0), (2, 3)):
        alone = our_nll(model, tokens, 64, Streaming(4, 60, knockout=kind, heads=f"{layer}.{head}"))
        np.testing.assert_allclose(effects[4 * layer + head][2:], excess(alone, plain), rtol=1e-3, atol=1e-6)
    assert len({round(e.excess, 7) for e in effects}) > 8


def test_heads_that_are_asked_for_come_one_by_one():
    told = knock_out_each(tiny("llama"), words(), Dense(), "values", [(3, 1), (0, 2)])
    first = next(told)
    assert (first.layer, first.head) == (3, 1) and np.isnan(first.error)


def test_what_cannot_be_knocked_out_is_said():
    with pytest.raises(ValueError, match=r"there is no head 4\.0"):
        list(knock_out_each(tiny("llama"), words(), Dense(), "values", [(4, 0)]))
    with pytest.raises(ValueError, match="knockout must be one of"):
        list(knock_out_each(tiny("llama"), words(), Dense(), "keys", [(0, 0)]))
