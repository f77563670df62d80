"""Charts say what they are given: blank where nothing is known, and the same scale for more and less."""

import numpy as np
import pytest

from analysis.experiments.ablation import Effect
from analysis.figures import parse
from app.panels import charts
from app.panels.verdict_results import quality_label

from .verdicts import VERDICT


def test_effects_are_where_their_heads_are():
    figure = charts.effects([Effect(2, 1, 0.3, 0.1), Effect(0, 0, -0.1, 0.1)], 3, 2)
    cost = np.array(figure.data[0].z, float)
    assert cost.shape == (2, 3) and cost[1, 2] == 0.3 and cost[0, 0] == -0.1 and np.isnan(cost).sum() == 4
    assert figure.data[0].zmax == -figure.data[0].zmin == 0.3
    assert charts.effects([], 3, 2).data[0].zmax > 0


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
    assert list(told.data[1].y) == [0, 0.5] and told.layout.yaxis.type == "linear"
