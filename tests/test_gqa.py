"""Fewer KV heads: a smaller cache, averaged weights, and a model that says so."""

import copy

import pytest
import torch
from transformers.integrations.bitnet import AutoBitLinear

from analysis.engine.check import adapt
from analysis.models.gqa import pool
from analysis.models.language_model import LanguageModel
from analysis.models.loading import load

from . import causal
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


@pytest.mark.parametrize("family", ["gpt_neox", "gemma3n_text", "bert"])
def test_a_family_without_matrices_of_keys_and_values_is_refused(family):
    with pytest.raises(ValueError, match="has no plain matrices k_proj and v_proj in each of its layers"):
        pool(causal.build(causal.config_of(family)), 1)


@pytest.mark.parametrize("name", ["k_proj", "v_proj"])
def test_matrices_that_do_more_than_multiply_are_not_averaged(name):
    """Those of a BitNet are rounded while they multiply, or have a scale beside their weights."""
    model = tiny("bitnet")
    for layer in model.model.layers:
        setattr(layer.self_attn, name, AutoBitLinear(32, 16, bias=False))
    with pytest.raises(ValueError, match="has no plain matrices k_proj and v_proj in each of its layers"):
        pool(model, 1)


def test_a_family_whose_layers_count_their_kv_heads_reads_with_fewer():
    model, tokens = tiny("stablelm"), words()
    pool(model, 1)
    assert adapt(model).kv_heads == 1
    torch.testing.assert_close(our_nll(model, tokens, 16), own_nll(model, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_family_that_has_a_norm_for_each_head_is_refused(kv_heads):
    model = tiny("stablelm", qk_layernorm=True, num_key_value_heads=kv_heads)
    with pytest.raises(ValueError, match="'stablelm' normalises each head by itself, so its KV heads are not averaged"):
        pool(model, 1)
    assert model.config.num_key_value_heads == kv_heads


def test_a_family_whose_norms_span_all_heads_is_told_what_is_at_fault(tmp_path):
    # Its norm of keys has a weight for each channel of each KV head.
    tiny("olmo2").save_pretrained(tmp_path / "olmo")
    assert load(str(tmp_path / "olmo"), device="cpu").adapted
    with pytest.raises(ValueError, match="olmo cannot be read with its KV heads averaged to 1: leave kv-heads as"):
        load(str(tmp_path / "olmo"), device="cpu", kv_heads=1)


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


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [
        (4, 4, [("MHA", 4, True), ("GQA", 2, False), ("MQA", 1, False)]),
        (8, 8, [("MHA", 8, True), ("GQA", 2, False), ("MQA", 1, False)]),
        (6, 6, [("MHA", 6, True), ("GQA", 2, False), ("MQA", 1, False)]),
        (8, 4, [("MHA", 8, False), ("GQA", 4, True), ("MQA", 1, False)]),
        (8, 1, [("MHA", 8, False), ("GQA", 2, False), ("MQA", 1, True)]),
        (2, 2, [("MHA", 2, True), ("MQA", 1, False)]),
        (1, 1, [("MQA", 1, True)]),
    ],
)
def test_what_the_cache_would_cost_is_said_of_any_grouping(heads, kv_heads, expected):
    network = tiny("llama", num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=8, hidden_size=8 * heads)
    model = LanguageModel("tiny", network, None, [])
    assert [(c.name, c.kv_heads, c.own) for c in model.cache_costs] == expected
