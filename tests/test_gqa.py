"""Fewer KV heads: a smaller cache, averaged weights, and a model that says so."""

import copy

import pytest
import torch

from analysis.engine.check import adapt
from analysis.models.gqa import pool
from analysis.models.loading import load

from .families import our_nll, own_nll, tiny, words


def test_pooled_heads_are_the_mean_of_their_group(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    before = model.model.layers[0].self_attn.k_proj.weight.view(2, 8, 32).clone()
    pool(model, 1)
    torch.testing.assert_close(model.model.layers[0].self_attn.k_proj.weight, before.mean(0))
    assert adapt(model).kv_heads == 1
    tokens = words()
    torch.testing.assert_close(our_nll(model, tokens, 16), own_nll(model, tokens), atol=1e-4, rtol=0)


def test_equal_heads_may_be_pooled_for_nothing(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    for layer in model.model.layers:
        for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.weight.data = linear.weight.data[:8].repeat(2, 1)
    expected = own_nll(model, words())
    pool(model, 1)
    torch.testing.assert_close(own_nll(model, words()), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("heads", [0, 3, 4])
def test_heads_that_do_not_divide_are_refused(tiny_llama, heads):
    with pytest.raises(ValueError, match="choose one of 1, 2"):
        pool(copy.deepcopy(tiny_llama), heads)


def test_a_family_with_one_matrix_is_refused():
    with pytest.raises(ValueError, match="in one matrix"):
        pool(tiny("gpt_neox"), 1)


def test_the_card_says_what_the_cache_costs():
    model = load("embedded", device="cpu", kv_heads=1)
    assert model.grouping == "MQA" and model.bytes_per_token == 2 * 30 * 64 * 4
    assert model.card["Heads"] == "9 query, 1 KV (MQA)"
    assert model.card["Cached token"] == "15.4 kB"
    assert model.card["Computed in"] == "float32"
    model.packed = "int4"
    assert model.card["Computed in"] == "int4 weights, bfloat16 products, float32 elsewhere"
    costs = [(c.name, c.kv_heads, c.token, c.own) for c in model.cache_costs]
    assert costs == [("MHA", 9, 138_240, False), ("GQA", 3, 46_080, False), ("MQA", 1, 15_360, True)]
    assert {c.length for c in model.cache_costs} == {8192}
    assert model.card["Positions"] == "rotary"
