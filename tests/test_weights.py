"""Packed weights say what the model says, as nearly as their digits allow; laid-out ones say exactly the same."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from analysis.models import load
from analysis.policies import Streaming
from analysis.stream import stream
from analysis.weights import GROUP, Int4, Int8, lay_out, pack


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(64, 48).requires_grad_(False)


@pytest.mark.parametrize(("kind", "most"), [(Int8, 0.02), (Int4, 0.15)])
def test_packed_layer_is_near_the_layer(linear, kind, most):
    x = torch.randn(3, 5, 64)
    expected, got = linear(x), kind(linear)(x)
    assert got.shape == expected.shape and got.dtype == x.dtype
    assert (got - expected).norm() / expected.norm() < most


def test_weights_of_a_q4_1_block_carry_over_one_to_one(linear):
    # 16 levels between the smallest and the largest of 32 weights, as the file has them.
    levels = torch.randint(0, 16, (48, 2, GROUP)).float()
    levels[..., 0], levels[..., 1] = 0, 15
    scale, low = torch.rand(48, 2, 1).half().float() + 0.01, -torch.rand(48, 2, 1).half().float()
    linear.weight.data = (levels * scale + low).flatten(1)
    linear.bias.data.zero_()
    got = Int4(linear)(torch.eye(64).bfloat16()).float().T
    # What is left is the rounding of two numbers a block to bfloat16.
    bound = (8 * scale + (low + 8 * scale).abs() + 15 * scale) * 2**-8
    assert ((got - linear.weight).unflatten(1, (2, GROUP)).abs() <= bound).all()


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_packing_replaces_what_fits_and_leaves_the_rest(tiny_llama, weights):
    model = copy.deepcopy(tiny_llama)
    pack(model, weights)
    kinds = {name: type(m) for name, m in model.named_modules() if isinstance(m, nn.Linear | Int8 | Int4)}
    # 97 outputs are no multiple of 16.
    assert kinds["lm_head"] is nn.Linear
    assert kinds["model.layers.0.mlp.up_proj"] is (Int8 if weights == "int8" else Int4)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in tiny_llama.parameters())


def test_packing_is_for_the_processor(tiny_llama):
    model = type(tiny_llama)(tiny_llama.config).to("meta")
    with pytest.raises(ValueError, match="for the CPU"):
        pack(model, "int4")


def test_laid_out_weights_say_the_same(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    lay_out(model)
    assert not model.model.layers[0].mlp.up_proj.weight.is_contiguous()
    ids = torch.arange(9)[None]
    torch.testing.assert_close(model(ids).logits, tiny_llama(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("weights", "most"), [("int8", 0.02), ("int4", 0.005)])
def test_packed_model_reads_nearly_as_well(embedded, oracle, weights, most):
    tokens = oracle(4, 124)[0][:1001]
    packed = load("embedded", device="cpu", weights=weights)
    assert packed.packed == weights and packed.sha256 == embedded.sha256
    a, b = (
        np.concatenate([s.nll for s in stream(m, tokens, [Streaming(4, 124)])], dtype=np.float64)
        for m in (embedded, packed)
    )
    assert np.expm1(b.mean() - a.mean()) < most


def test_weights_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="weights must be one of"):
        load("embedded", weights="int2")
