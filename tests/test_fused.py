"""Layers that read the same input are one product: the same numbers, and no weight twice in memory."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from analysis.families.fused import fusing
from analysis.families.rotary import adapt
from analysis.models.quantization import Int4, Int8

from .families import tiny


class Gated(nn.Module):
    """Two layers that read one input, a third that reads another, and a fourth that is asked only sometimes."""

    def __init__(self, bias):
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(8, n, bias) for n in (12, 20, 8))
        self.rare = nn.Linear(8, 4, bias)

    def forward(self, x, rare=False):
        hidden = torch.cat((self.gate(x), self.up(x)), -1)[..., :8]
        return self.down(hidden) + (self.rare(x).sum() if rare else 0)


class Packed(nn.Module):
    """Layers of packed weights that read one input, and one that reads another."""

    def __init__(self, kind, sizes, bias):
        super().__init__()
        self.together = nn.ModuleList(kind(nn.Linear(64, size, bias).requires_grad_(False)) for size in sizes)
        self.alone = kind(nn.Linear(sum(sizes), 64, bias).requires_grad_(False))

    def forward(self, x):
        return self.alone(torch.cat([layer(x) for layer in self.together], -1))


def storages(network):
    """Bytes of all memory that weights stand in."""
    weights = (*network.parameters(), *network.buffers())
    return sum({s.data_ptr(): s.nbytes() for s in (w.untyped_storage() for w in weights)}.values())


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_what_reads_one_input_is_one_matrix(bias):
    network, x = Gated(bias).requires_grad_(False), torch.randn(3, 8)
    wanted, before = [network(x), network(x, rare=True)], storages(network)
    with fusing(network):
        network(x)
    assert storages(network) == before
    assert network.gate.weight.untyped_storage().data_ptr() == network.up.weight.untyped_storage().data_ptr()
    assert "forward" not in vars(network.down) and "forward" not in vars(network.rare)
    for rare, expected in enumerate(wanted):
        torch.testing.assert_close(network(x, rare=bool(rare)), expected)
    # In another order, with other inputs, and one of them alone.
    other = torch.randn(5, 8)
    for module, given in ((network.up, x), (network.gate, other), (network.up, other), (network.up, x)):
        torch.testing.assert_close(module(given), nn.functional.linear(given, module.weight, module.bias))


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kind", "sizes", "one"),
    [
        (Int8, (64, 16, 32), True),
        (Int4, (128, 64, 64), True),
        # The last may end within a block of the kernel.
        (Int4, (192, 64, 96), True),
        (Int4, (64, 32, 64), False),
    ],
)
@torch.inference_mode()
def test_packed_layers_that_read_one_input_are_one_product(kind, sizes, one, bias, rows):
    network, x = Packed(kind, sizes, bias), torch.randn(2, rows, 64)
    wanted, parts, before = network(x), [layer(x) for layer in network.together], storages(network)
    for _ in range(2):
        twin = copy.deepcopy(network, {id(t): t for t in (*network.parameters(), *network.buffers())})
        with fusing(twin):
            twin(x)
        assert all(("forward" in vars(layer)) is one for layer in twin.together)
        assert "forward" not in vars(twin.alone)
        assert torch.equal(twin(x), wanted)
        # Their own products, with weights that now are parts, are what they were.
        assert all(torch.equal(layer(x), part) for layer, part in zip(network.together, parts, strict=True))
        assert storages(network) == before
        places = [layer.weight.untyped_storage().data_ptr() for layer in network.together]
        assert len(set(places)) == (1 if one else 3)


@pytest.mark.parametrize("tied", [False, True])
@torch.inference_mode()
def test_one_weight_that_is_asked_twice_is_not_put_beside_itself(tied):
    """Whether a layer is asked twice, or two layers have one weight: it would be held twice."""
    network, x = Gated(False).requires_grad_(False), torch.randn(3, 8)
    network.up = nn.Linear(8, 12, bias=False).requires_grad_(False) if tied else network.gate
    network.up.weight = network.gate.weight
    wanted, before = network(x), storages(network)
    with fusing(network):
        network(x)
    assert storages(network) == before and "forward" not in vars(network.gate) | vars(network.up)
    assert torch.equal(network(x), wanted)


def test_a_pass_that_fails_changes_nothing():
    network = Gated(False)
    with pytest.raises(RuntimeError), fusing(network):
        network(torch.randn(3, 7))
    assert not any("forward" in vars(m) for m in network.modules())


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "mixtral"])
@torch.inference_mode()
def test_twins_of_a_network_share_its_matrices_and_leave_it_alone(family):
    network = tiny(family).eval().requires_grad_(False)
    ids, before = torch.arange(7)[None], storages(network)
    own = network(ids).logits
    twins = [adapt(network) for _ in range(2)]
    assert storages(network) == before
    torch.testing.assert_close(network(ids).logits, own)
    fused = [
        [vars(m)["forward"].fused for m in t.network.modules() if hasattr(vars(m).get("forward"), "fused")]
        for t in twins
    ]
    assert len(fused[0]) == len(fused[1]) > 2 * twins[0].layers
    assert {f.product.weight.data_ptr() for f in fused[0]} == {f.product.weight.data_ptr() for f in fused[1]}


@torch.inference_mode()
def test_two_threads_do_not_get_one_anothers_products():
    network = Gated(True).requires_grad_(False)
    with fusing(network):
        network(torch.randn(3, 8))
    inputs = [torch.randn(2, 8) for _ in range(40)]
    wanted = [network(x) for x in inputs]

    def read(x):
        with torch.inference_mode():
            return [network(x) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for expected, got in zip(wanted, pool.map(read, inputs), strict=True):
            assert all(torch.equal(one, expected) for one in got)
