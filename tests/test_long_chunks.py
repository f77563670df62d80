"""A chunk of more tokens than the queries that share a piece of the band gives what short chunks give."""

import numpy as np
import pytest

from analysis.policies import parse

from .families import few_layers, our_nll, words


@pytest.mark.parametrize(
    "policy",
    [
        "window:window=16,block=2",
        "window:window=16,block=6",
        "window:window=16,cache=int4,group=4,residual=6",
        "streaming:sinks=4,window=16,knockout=values",
        "streaming:sinks=4,window=16,knockout=weights",
        "streaming:sinks=2,window=16,knockout=weights",
    ],
)
def test_a_long_chunk_gives_what_short_ones_give(policy):
    model, tokens, policy = few_layers("llama"), words(150), parse(policy)
    short, long = (our_nll(model, tokens, chunk, policy) for chunk in (13, 200))
    np.testing.assert_allclose(long, short, atol=2e-4)
