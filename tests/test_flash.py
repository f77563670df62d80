"""What the fused kernel of a GPU tells is joined with the first tokens as one softmax would.

The kernel itself needs a GPU (test_gpu.py); here a naive one stands in its place.
"""

import numpy as np
import pytest
import torch

from analysis.engine.attention import flash

from .reading import read
from .test_decoding import FAMILIES, of_family


def naive(query, keys, values, reach, scaling):
    """Whole matrices: queries stand at the end of the keys.  A query that sees none gets nothing, and plus infinity."""
    heads, queries, slots = query.shape[1], query.shape[2], keys.shape[2]
    keys, values = (x.repeat_interleave(heads // x.shape[1], 1) for x in (keys, values))
    t, j = torch.arange(slots - queries, slots)[:, None], torch.arange(slots)
    seen = (j <= t) & ((j >= t - reach) if reach is not None else True)
    scores = (scaling * query @ keys.transpose(2, 3)).masked_fill(~seen, float("-inf"))
    out, lse = torch.softmax(scores, -1) @ values, torch.logsumexp(scores, -1)
    empty = ~seen.any(-1)
    return out.masked_fill(empty[:, None], 0).transpose(1, 2), lse.masked_fill(empty, float("inf"))


@pytest.fixture
def fused(monkeypatch):
    """How often the kernel was asked."""
    count = []

    def kernel(*given):
        count.append(1)
        return naive(*given)

    def would(call, band):
        knocked = call.interventions is not None and call.interventions.knockout != "none"
        return call.softcap is None and band.step == 1 and not knocked

    monkeypatch.setattr(flash, "serves", would)
    monkeypatch.setattr(flash, "windowed", kernel)
    return count


@pytest.mark.parametrize("sink_tokens", [1, 4, 9])
@pytest.mark.parametrize(
    "policy",
    [
        "dense",
        "window:window=20",
        "streaming:sinks=4,window=16",
        # A chunk begins among its sinks and ends behind them.
        "streaming:sinks=40,window=16",
        "streaming:sinks=4,window=16,positions=text",
        "streaming:sinks=4,window=16,positions=naive",
        "streaming:sinks=4,window=16,softmax=off-by-one",
        "streaming:sinks=4,window=16,knockout=weights",
        "shift:window=16,keep=2",
        "duo:full=50,sinks=2,window=12",
        "streaming:sinks=4,window=16,cache=int4,exact=4,residual=8,group=4",
    ],
)
def test_fused_equals_one_softmax(tiny_llama, policy, sink_tokens, request):
    tokens = np.random.default_rng(0).integers(0, 97, 150)
    expected = read(tiny_llama, tokens, policy, 17, sink_tokens=sink_tokens)
    count = request.getfixturevalue("fused")
    got = read(tiny_llama, tokens, policy, 17, sink_tokens=sink_tokens)
    np.testing.assert_allclose(got.nll, expected.nll, rtol=2e-5, atol=3e-5)
    np.testing.assert_allclose(got.sink_mass, expected.sink_mass, atol=3e-6)
    changed = any(word in policy for word in ("knockout", "shift", "int4"))
    assert bool(count) is not changed


@pytest.mark.parametrize("policy", ["dense", "window:window=20", "streaming:sinks=4,window=16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_equals_one_softmax_in_families_with_their_own_ways(family, policy, request):
    tokens = np.random.default_rng(0).integers(0, 97, 80)
    expected = read(of_family(family), tokens, policy, 17)
    count = request.getfixturevalue("fused")
    got = read(of_family(family), tokens, policy, 17)
    np.testing.assert_allclose(got.nll, expected.nll, rtol=2e-5, atol=3e-5)
    np.testing.assert_allclose(got.sink_mass, expected.sink_mass, atol=3e-6)
    assert bool(count) is (family != "softcap")
