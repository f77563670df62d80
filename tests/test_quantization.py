"""Packed weights say what the model says, as nearly as their digits allow; laid-out ones say exactly the same."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from analysis.engine.stream import open_lanes, stream
from analysis.models import quantization as packing
from analysis.models.loading import load
from analysis.models.quantization import GROUP, Int4, Int8, Output, lay_out, make_linear, pack
from analysis.policies import Dense, Streaming

from . import causal
from .families import our_nll, own_nll, tiny, words


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


@pytest.mark.parametrize("digits", [True, False])
@pytest.mark.parametrize("rows", [1, 3, packing.ROWS - 1, packing.ROWS, 70])
@pytest.mark.parametrize("inputs", [64, 1000])
def test_logits_are_exact_products_with_the_packed_output_layer(inputs, rows, digits, monkeypatch):
    torch.manual_seed(1)
    layer = Output(nn.Linear(inputs, 1100, bias=False).requires_grad_(False))
    if not digits:
        monkeypatch.setattr(layer, "digits", False)
    x = torch.randn(rows, inputs)
    x[:, 5] *= 1000  # As a channel with massive activations.
    weight = layer.weight.double() * layer.scale.double()[:, None]
    got, expected = layer(x), x.double() @ weight.T
    # Float32's own bound for a sum of so many terms, in any order.
    bound = 2**-24 * (inputs + 4) * (x.double().abs() @ weight.abs().T)
    assert got.dtype == torch.float32 and ((got - expected).abs() <= bound).all()
    # Not multiples of anything coarser: as many different numbers as there would be.
    assert len(got[0].unique()) > 0.95 * len(expected[0].float().unique())


def test_packed_output_layer_is_the_layer_to_half_a_level(linear):
    layer = Output(linear)
    weight = layer.weight * layer.scale[:, None]
    assert ((weight - linear.weight).abs() <= linear.weight.abs().amax(1, keepdim=True) / 253).all()
    torch.testing.assert_close(layer(torch.zeros(2, 64)), linear.bias.expand(2, -1))
    # Half precision inputs do not make half precision logits.
    assert layer(torch.ones(1, 64).bfloat16()).dtype == torch.float32


def test_number_that_is_none_stays_none_in_the_output_layer(linear):
    x = torch.ones(3, 64)
    x[0, 3], x[1, 9] = float("nan"), float("inf")
    got = Output(linear)(x)
    assert not got[:2].isfinite().any() and got[2].isfinite().all()


def test_processor_that_cuts_sums_of_bytes_off_is_found_out(monkeypatch):
    weight = torch.randint(-127, 128, (40, 96), dtype=torch.int8)
    real = torch._int_mm
    # As processors without dot products of bytes do it: pairs of products, cut off at 16 bits.
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: real(a, b).clamp(-32768, 32767))
    assert not packing.sums_of_bytes_are_exact(weight)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.long() @ b.long()).int())
    assert packing.sums_of_bytes_are_exact(weight)


def test_tie_goes_to_the_smaller_id():
    from analysis.chat.sampling import Chooser
    from analysis.runs.spec import Sampling

    logits = torch.zeros(50_000)
    logits[[40_000, 123, 49_999]] = 7.0
    for sampling in (Sampling(), Sampling(repetition_penalty=1.5)):
        assert Chooser(sampling)(torch.tensor([5]), logits) == 123


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_packing_replaces_what_fits_and_leaves_the_rest(tiny_llama, weights):
    model = copy.deepcopy(tiny_llama)
    pack(model, weights)
    # 97 outputs are no multiple of 16: only the output layer may have so many.
    assert type(model.lm_head) is Output
    model = copy.deepcopy(tiny_llama)
    model.model.layers[0].mlp.gate_proj = nn.Linear(tiny_llama.config.hidden_size, 97)
    pack(model, weights)
    assert type(model.model.layers[0].mlp.gate_proj) is nn.Linear
    assert type(model.model.layers[0].mlp.up_proj) is (Int8 if weights == "int8" else Int4)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in tiny_llama.parameters())


def test_router_that_is_a_linear_layer_and_chooses_is_not_packed():
    model = causal.build(causal.config_of("phimoe", num_local_experts=16))
    router, attention = model.model.layers[0].mlp.router, model.model.layers[0].self_attn
    assert isinstance(router, nn.Linear)
    expected = own_nll(model, words())
    pack(model, "int8")
    assert model.model.layers[0].mlp.router is router and type(attention.q_proj) is Int8
    assert np.abs(our_nll(model, words(), 16) - expected).mean() < 0.05


class Bent(nn.Linear):
    """A linear layer that does more with what it is given, or with what it gives."""

    def __init__(self, before, after):
        super().__init__(64, 32)
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(super().forward(self.before(x)))


@pytest.mark.parametrize("after", [torch.sigmoid, lambda y: y * 1.02, lambda y: y.softmax(-1), lambda y: (y,)])
@pytest.mark.parametrize("before", [lambda x: x, lambda x: x / x.norm(dim=-1, keepdim=True)])
def test_linear_layer_that_does_more_than_multiply_is_not_packed(tiny_llama, before, after):
    model = copy.deepcopy(tiny_llama)
    model.plain, model.bent = Bent(lambda x: x, lambda y: y), Bent(before, after)
    pack(model, "int8")
    assert type(model.plain) is Int8 and type(model.bent) is Bent


def test_linear_layers_that_a_family_writes_anew_are_packed():
    model = tiny("falcon")
    kind = type(model.transformer.h[0].self_attention.dense)
    assert issubclass(kind, nn.Linear) and kind is not nn.Linear
    pack(model, "int8")
    assert type(model.transformer.h[0].self_attention.dense) is Int8


def test_packing_is_for_the_processor(tiny_llama):
    model = type(tiny_llama)(tiny_llama.config).to("meta")
    with pytest.raises(ValueError, match="for the CPU"):
        pack(model, "int4")


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_network_that_would_stay_as_it_was_is_not_called_packed(weights):
    network = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=24, n_layer=1, n_head=2))
    make_linear(network)
    with pytest.raises(ValueError, match="gpt2 has none before its output: choose weights model"):
        pack(network, weights)
    assert type(network.lm_head) is nn.Linear


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A GPT-2 on disk, whose layers have transposed weights."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=64, n_layer=2, n_head=2, initializer_range=0.1)
    network, folder = GPT2LMHeadModel(config).eval(), tmp_path_factory.mktemp("models") / "gpt2"
    network.save_pretrained(folder)
    return network, folder


def test_transposed_layers_become_linear_ones_with_their_weights_where_they_lie(gpt2):
    network = copy.deepcopy(gpt2[0])
    before = {name: m.weight.data_ptr() for name, m in network.named_modules() if isinstance(m, Conv1D)}
    held = network.transformer.h[1].mlp.c_fc
    held.forward = held.forward  # As what sees to devices does.
    make_linear(network)
    after = {name: network.get_submodule(name) for name in before}
    assert len(after) == 8 and {n for n, m in after.items() if type(m) is not nn.Linear} == {"transformer.h.1.mlp.c_fc"}
    assert {name: m.weight.data_ptr() for name, m in after.items()} == before
    ids = torch.arange(9)[None]
    torch.testing.assert_close(network(ids).logits, gpt2[0](ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("weights", "most"), [("model", 1e-5), ("int8", 0.05), ("int4", 0.3)])
def test_gpt2_is_packed_as_others_are(gpt2, weights, most):
    network, folder = gpt2
    model = load(str(folder), device="cpu", weights=weights)
    kinds = [type(m) for m in model.network.modules() if hasattr(m, "weight")]
    assert kinds.count({"model": nn.Linear, "int8": Int8, "int4": Int4}[weights]) >= 8
    ids = np.random.default_rng(0).integers(97, size=40)
    expected = -torch.log_softmax(network(torch.as_tensor(ids)[None]).logits[0], -1)[torch.arange(39), ids[1:]]
    got = np.concatenate([step.nll for step in stream(model, ids, [Dense()], chunk=16)])[-39:]
    assert np.abs(got - expected.detach().numpy()).mean() < most


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


@pytest.mark.parametrize("traced", [False, True])
def test_packed_model_answers_with_logits_of_float32(embedded, traced):
    lane = open_lanes(load("embedded", device="cpu", weights="int4"), np.arange(5, 30), [Streaming(4, 12)])[0]
    layer, hidden, seen = lane.context.model.network.get_output_embeddings(), [], []
    lane.read(64)
    if traced:
        lane.context.trace()
        assert lane.context.traced
    handle = layer.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0][0, -1].clone()))
    step = lane.next(lambda logits: seen.append(logits) or 7)
    handle.remove()
    # As many different logits as there are in float32: in bfloat16 there were some hundreds.
    assert len(seen[0].unique()) > 40_000
    assert step.nll[0] == pytest.approx(float(-torch.log_softmax(seen[0].double(), -1)[7]), abs=1e-5)
    if not traced:
        expected = hidden[0].double() @ (layer.weight.double() * layer.scale.double()[:, None]).T
        assert (seen[0] - expected).abs().max() < 1e-4


def test_weights_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="weights must be one of"):
        load("embedded", weights="int2")
