"""Weights that are packed once for their products: the same numbers, for those who gain by it and have the memory."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from analysis.families import ADAPTERS, prepacked
from analysis.families.fused import _Part
from analysis.families.prepacked import ALL, FEW, Product, prepack, worth
from analysis.families.rotary import adapt

from .families import our_nll, own_nll, tiny, words

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def processor(monkeypatch):
    """A processor whose `name` says what it can do, and `maker` whose it is: AVX2 gains by all of it."""
    one = SimpleNamespace(name="AVX2", maker="Intel")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: one.name)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": f"{one.maker} 1"} if one.maker else {})
    return one


def products(network):
    """What multiplies in the place of layers."""
    return [m.forward for m in network.modules() if isinstance(vars(m).get("forward"), Product)]


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("beside", [False, True], ids=["inputs", "outputs"])
@pytest.mark.parametrize("shape", [(1, 40), (2, 40), (1, 1, 40), (1, 17, 40), (2, 300, 40), (0, 40)])
@torch.inference_mode()
def test_products_are_those_of_the_layer(shape, beside, bias):
    layer, x = nn.Linear(40, 88, bias), torch.randn(shape)
    if beside:
        layer.weight.data = layer.weight.data.T.contiguous().T
    product = Product(layer.weight, layer.bias, ALL)
    for given in (x, x, torch.randn(*shape[:-1], 80)[..., ::2]):
        torch.testing.assert_close(product(given), layer(given), atol=1e-5, rtol=0)
    assert (product._packed is not None) == (x.numel() > 40)


@needs_onednn
@torch.inference_mode()
def test_weights_are_packed_for_a_few_rows_alone():
    layer = nn.Linear(40, 88)
    product = Product(layer.weight, layer.bias, 4)
    for rows, packed in ((1, False), (5, False), (4, True), (5, True), (2, True), (1, True)):
        given = torch.randn(rows, 40)
        torch.testing.assert_close(product(given), layer(given), atol=1e-5, rtol=0)
        assert (product._packed is not None) == packed


@needs_onednn
@pytest.mark.parametrize("family", ["llama", "phi", "gpt2", "bloom"])
def test_a_family_is_read_with_the_same_numbers(family, processor):
    text, read = words(40), {}
    for processor.name in ("AVX2", "AVX512", "DEFAULT"):
        network = tiny(family)
        # GPT-2 has layers of a kind of its own, but for the last.
        assert bool(products(adapt(network, ADAPTERS).network)) == (processor.name != "DEFAULT")
        read[processor.name] = [our_nll(network, text, chunk) for chunk in (1, 7, 39)]
        np.testing.assert_allclose(read[processor.name], [own_nll(network, text)] * 3, atol=1e-4, rtol=0)
    np.testing.assert_allclose(read["AVX2"], read["DEFAULT"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(read["AVX512"], read["DEFAULT"], atol=1e-5, rtol=0)


@needs_onednn
@pytest.mark.parametrize("most", [0, 1 << 30])
def test_all_layers_of_a_family_are_packed_or_none_is(most, processor, monkeypatch):
    monkeypatch.setattr(prepacked, "MOST", most)
    network = adapt(tiny("llama"), ADAPTERS).network
    fused = {part.fused.product for m in network.modules() if isinstance(part := vars(m).get("forward"), _Part)}
    assert len(products(network)) == (most > 0) * (1 + 2 * network.config.num_hidden_layers)
    assert fused and all(product.rows == (most > 0) * ALL for product in (*fused, *products(network)))


@needs_onednn
def test_others_than_float32_layers_of_a_processor_stay_as_they_were():
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8, device="meta"))
    changed: Any = network[0].forward
    network[0].forward = changed
    prepack(network, ALL)
    assert network[0].forward is changed and not any(product.rows for product in products(network))


@pytest.mark.parametrize(
    ("name", "maker", "gains"),
    [
        ("AVX2", "Intel", ALL),
        ("AVX2", "AMD", ALL),
        ("AVX2", "", ALL),
        ("AVX512", "AMD", ALL),
        ("AVX512", "Intel", FEW),
        ("AVX512", "", FEW),
        ("DEFAULT", "AMD", 0),
    ],
)
def test_processors_that_gain_by_it(name, maker, gains, processor):
    processor.name, processor.maker = name, maker
    assert prepacked.gained() == gains


@needs_onednn
@pytest.mark.parametrize(
    ("name", "most", "available", "gains"),
    [
        ("AVX2", 256, 512, ALL),
        ("AVX2", 255, 512, 0),
        ("AVX2", 256, 511, 0),
        ("AVX512", 256, 512, FEW),
        ("AVX512", 255, 512, 0),
        ("DEFAULT", 256, 512, 0),
    ],
)
def test_layers_are_packed_where_that_is_worth_it_and_there_is_room(
    name, most, available, gains, processor, monkeypatch
):
    processor.name, network = name, nn.Sequential(nn.Linear(8, 8))
    monkeypatch.setattr(prepacked, "MOST", most)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    assert worth(network) == gains
