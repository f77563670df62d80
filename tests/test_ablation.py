"""One head after the other, each as if it had been knocked out alone."""

from inspect import signature

import numpy as np
import pytest

from analysis.cli.experiments import knockout
from analysis.experiments import ablation
from analysis.experiments.ablation import Effect, knock_out_each, knock_outs
from analysis.metrics import excess
from analysis.policies import Dense, Streaming
from app.panels.knockouts import PANEL

from .families import our_nll, shared, words


@pytest.mark.parametrize("kind", ["values", "weights"])
def test_each_head_costs_what_it_costs_alone(kind):
    model, tokens = shared("llama"), np.resize(words(), 600)
    effects = list(knock_out_each(model, tokens, Streaming(4, 60), kind))
    assert [(e.layer, e.head) for e in effects] == [(layer, head) for layer in range(4) for head in range(4)]
    plain = our_nll(model, tokens, 64, Streaming(4, 60))
    for layer, head in ((0, 0), (2, 3)):
        alone = our_nll(model, tokens, 64, Streaming(4, 60, knockout=kind, heads=f"{layer}.{head}"))
        np.testing.assert_allclose(effects[4 * layer + head][2:], excess(alone, plain), rtol=1e-3, atol=1e-6)
    assert len({round(e.excess, 7) for e in effects}) > 8


def test_whoever_watches_hears_of_every_part_and_gets_the_same(monkeypatch):
    """Passes are cut by the clock, and all at the same places."""
    monkeypatch.setattr(ablation, "PASS_SECONDS", 0.02)
    model, tokens, heads = shared("llama"), np.resize(words(), 600), [(0, 0), (2, 3)]
    results = list(knock_outs(model, tokens, Streaming(4, 60), "values", heads))
    shares = [t for t in results if not isinstance(t, Effect)]
    assert (
        shares == sorted(shares) and shares[-1] == 3 and all(sum(n < s <= n + 1 for s in shares) > 2 for n in range(3))
    )
    wanted = list(knock_out_each(model, tokens, Streaming(4, 60), "values", heads))
    np.testing.assert_allclose([t for t in results if isinstance(t, Effect)], wanted, rtol=1e-3, atol=1e-6)
    ends = [i for i, t in enumerate(results) if isinstance(t, Effect)]
    assert len(ends) == 2 and results[ends[0] - 1] == 2 and results[ends[1] - 1] == 3


@pytest.mark.parametrize("changed", [{"softmax": "off-by-one"}, {"knockout": "weights"}, {"knockout": "values"}])
def test_a_policy_that_changes_attention_is_refused(changed):
    """Its `heads` would name those that it changes and the one that is knocked out."""
    with pytest.raises(ValueError, match="one head at a time, and this policy changes attention itself"):
        next(knock_outs(shared("llama"), words(), Dense(**changed), "values", [(0, 0)]))


def test_heads_that_are_asked_for_come_one_by_one():
    results = knock_out_each(shared("llama"), words(), Dense(), "values", [(3, 1), (0, 2)])
    first = next(results)
    assert (first.layer, first.head) == (3, 1) and np.isnan(first.error)


@pytest.mark.parametrize("tokens", [signature(knockout).parameters["tokens"].default, PANEL.tokens])
def test_what_is_read_unless_said_has_a_standard_error(tokens):
    nll = np.random.default_rng(0).random(tokens - 1)
    assert np.isfinite(excess(nll, 0 * nll)).all()


def test_what_cannot_be_knocked_out_is_said():
    with pytest.raises(ValueError, match=r"there is no head 4\.0"):
        list(knock_out_each(shared("llama"), words(), Dense(), "values", [(4, 0)]))
    for kind in ("keys", "none"):
        with pytest.raises(ValueError, match=f"kind must be one of values, weights, not '{kind}'"):
            list(knock_out_each(shared("llama"), words(), Dense(), kind, [(0, 0)]))
