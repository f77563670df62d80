"""Laws of the metrics, against references of a few lines."""

import numpy as np
import pytest

from analysis import metrics


@pytest.fixture
def nll():
    return np.random.default_rng(0).gamma(2, 1.5, 1000).astype(np.float32)


def test_perplexity_is_the_exponential_of_the_mean(nll):
    # In float64, however the NLL is kept.
    assert metrics.perplexity(nll) == pytest.approx(np.exp(np.mean([float(v) for v in nll])), rel=1e-12)
    assert np.isnan(metrics.perplexity(nll[:0]))


@pytest.mark.parametrize("n", [1, 7, 256, 5000])
def test_rolling_mean_is_the_mean_of_the_last_n(nll, n):
    ends = np.arange(1, len(nll) + 1)
    expected = [nll[max(0, end - n) : end].astype(np.float64).mean() for end in ends]
    np.testing.assert_allclose(metrics.rolling_mean(metrics.prefix(nll), ends, n), expected, rtol=1e-9)


def test_rolling_mean_stays_exact_behind_a_million_tokens():
    nll = np.random.default_rng(1).gamma(2, 1.5, 1_000_000)
    mean = metrics.rolling_mean(metrics.prefix(nll), np.array([len(nll)]), 64)
    np.testing.assert_allclose(mean, nll[-64:].mean(), rtol=1e-9)


def test_curves_are_means_from_the_first_tokens_on(nll):
    nll = nll.astype(np.float64)
    sums, other = metrics.prefix(nll), metrics.prefix(nll[::-1][:900])
    of = {
        "relative": lambda end: (nll[:900] - nll[::-1][:900])[max(0, end - 100) : end],
        "rolling": lambda end: nll[max(0, end - 100) : end],
        "cumulative": lambda end: nll[:end],
    }
    for mode in metrics.MODES:
        ends, means = metrics.curve(sums, mode, reference=other, roll=100, first=10)
        assert np.array_equal(ends, np.arange(10, 901 if mode == "relative" else 1001))
        np.testing.assert_allclose(means, [of[mode](e).mean() for e in ends], rtol=1e-9, atol=1e-12)
    assert not any(map(len, metrics.curve(sums[:10], first=10)))
    with pytest.raises(ValueError, match="reference"):
        metrics.curve(sums, "relative")


def test_curves_of_what_is_not_known_of_every_token_are_means_of_the_rest():
    values = np.random.default_rng(3).gamma(2, 1.5, 500)
    values[[0, 3, *range(100, 330), 499]] = np.nan
    ends, means = metrics.curve_of_known(values, roll=100, first=10)
    last = [values[max(0, end - 100) : end] for end in ends]
    expected = [np.nan if np.isnan(some).all() else np.nanmean(some) for some in last]
    np.testing.assert_allclose(means, expected, rtol=1e-9)
    assert np.array_equal(ends, np.arange(10, 501)) and np.isnan(means).sum() == 131
    assert not any(map(len, metrics.curve_of_known(values[:9], first=10)))


def test_excess_is_the_mean_difference_and_its_error_that_of_block_means(nll):
    reference = np.random.default_rng(2).gamma(2, 1.5, 900).astype(np.float32)
    difference = nll[:900].astype(np.float64) - reference
    blocks = [difference[i : i + 256].mean() for i in (0, 256, 512)]
    mean, error = metrics.excess(nll, reference)
    assert mean == pytest.approx(difference.mean())
    assert error == pytest.approx(np.std(blocks, ddof=1) / np.sqrt(3))


def test_excess_cancels_the_difficulty_of_the_text(nll):
    mean, error = metrics.excess(nll.astype(np.float64) + 0.5, nll)
    assert mean == pytest.approx(0.5)
    assert error == pytest.approx(0, abs=1e-9)


def test_two_whole_blocks_are_enough_for_an_error(nll):
    reference = nll[:512] - np.repeat([1.0, 3.0], 256)
    assert metrics.excess(nll[:512], reference) == pytest.approx((2, 1))


@pytest.mark.parametrize("tokens", [1, 511])
def test_excess_has_no_error_before_two_whole_blocks(nll, tokens):
    mean, error = metrics.excess(nll[:tokens], nll)
    assert mean == 0
    assert np.isnan(error)


def test_excess_of_nothing_shared_is_unknown(nll):
    assert np.isnan(metrics.excess(nll, nll[:0])).all()


def test_predicted_bytes_of_the_embedded_model():
    assert metrics.predicted_bytes(layers=30, kv_heads=3, head_dim=64, tokens=128, itemsize=4) == 5_898_240


def test_uniform_causal_attention_has_the_alpha_of_the_paper():
    uniform = np.tril(np.ones((64, 64))) / np.arange(1, 65)[:, None]
    alpha = metrics.alpha(uniform[None, None, None])
    assert alpha[0, 0, 0] == pytest.approx(sum(1 / t for t in range(1, 65)) / 64) == pytest.approx(0.0741, abs=5e-5)
    assert metrics.sink_rate(alpha) == ([0], 0)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_sink_rate_equals_its_definition(k):
    samples, layers, heads, tokens = 5, 2, 3, 20
    weights = np.tril(np.random.default_rng(3).gamma(0.3, 1, (samples, layers, heads, tokens, tokens)))
    weights /= weights.sum(-1, keepdims=True)
    found = metrics.alpha(weights, k)
    threshold = float(np.median(found))
    by_layer, rate = metrics.sink_rate(found, threshold)
    above = np.zeros((samples, layers, heads))
    for at in np.ndindex(above.shape):
        alpha = sum(weights[at][i - 1, k - 1] for i in range(k, tokens + 1)) / (tokens - k + 1)
        assert found[at] == pytest.approx(alpha)
        above[at] = alpha > threshold
    assert rate == pytest.approx(above.sum() / above.size)
    for layer in range(layers):
        assert by_layer[layer] == pytest.approx(above[:, layer].sum() / (samples * heads))


def test_sink_rate_holds_each_sample_against_the_threshold():
    # One head, above in one of two samples; the mean of both is above too.
    assert metrics.sink_rate(np.array([[[0.9]], [[0.1]]]))[1] == 0.5


def test_a_head_at_the_threshold_is_no_sink():
    assert metrics.sink_rate(np.array([[[0.3, 0.4]]]), 0.3) == ([0.5], 0.5)


@pytest.mark.parametrize("count", [1, 2, 1499, 1500, 1501, 30_000, 750 * 64, 65_000])
def test_decimated_curve_keeps_its_ends_its_spikes_and_its_order(count):
    y = np.random.default_rng(4).normal(size=count)
    y[count // 3], y[count // 2] = 50, -50
    kept = metrics.decimate(y, 1500)
    assert min(count, 1500 // 4) < len(kept) <= 1500 or len(kept) == count
    assert (np.diff(kept) > 0).all()
    assert {0, count - 1, int(y.argmax()), int(y.argmin())} <= set(kept.tolist())


def test_curve_of_no_more_points_than_asked_for_is_whole():
    np.testing.assert_array_equal(metrics.decimate(np.zeros(1500), 1500), np.arange(1500))


def test_every_spike_survives_also_beside_a_gap():
    y = np.random.default_rng(7).normal(size=20_000)
    y[150::700], y[499::700] = 50, -50
    y[5000:9000] = np.nan
    y[[4999, 9000]] = 60, -60
    kept = metrics.decimate(y, 500)
    spikes = np.flatnonzero(np.abs(np.nan_to_num(y)) >= 50)
    assert set(spikes.tolist()) <= set(kept.tolist())


def test_decimated_curve_shows_a_gap():
    y = np.random.default_rng(5).normal(size=20_000)
    y[5000:9000] = np.nan
    kept = metrics.decimate(y, 500)
    inside = (kept >= 5100) & (kept < 8900)
    assert inside.any()
    assert np.isnan(y[kept[inside]]).all()
    assert not np.isnan(y[kept[(kept < 4900) | (kept >= 9100)]]).any()


def test_decimated_curve_stays_put_as_it_grows():
    y = np.random.default_rng(6).normal(size=20_000)
    early, late = metrics.decimate(y[:18_000], 1500), metrics.decimate(y, 1500)
    np.testing.assert_array_equal(early[early < 17_000], late[late < 17_000])


@pytest.mark.parametrize("step", [1, 7, 2**20])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 1001, 4096])
def test_median_of_sizes_is_that_of_numpy(count, step):
    chance = np.random.default_rng(count)
    if step == 1 and count > 10:
        count = 11
    for values in (
        np.abs(chance.normal(size=count)),
        np.exp(chance.normal(size=count) * 20),
        chance.integers(0, 3, count),
        np.where(chance.random(count) < 0.6, 0, 1e-30),
        np.full(count, 2**-140),
    ):
        values = values.astype(np.float32)
        got = metrics.median_size(values, step)
        assert got.dtype == np.float32 and got == np.median(values)
