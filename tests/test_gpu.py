"""On a GPU: the numbers that a processor gives, kernels and graphs as they are there, and nothing that waits.

These run where they are asked for, with `-m gpu`.
"""

import copy

import numpy as np
import pytest
import torch

from analysis.engine.attention import flash, graph
from analysis.engine.check import adapt
from analysis.engine.stream import open_lanes
from analysis.policies import parse

from .reading import read
from .test_decoding import FAMILIES, WITHIN, begun, decode, of_family
from .test_flash import naive

pytestmark = pytest.mark.gpu
BANDS = ["dense", "window:window=20", "streaming:sinks=4,window=16", "shift:window=16,keep=2"]
RANKED = [
    *(f"{name}:budget=20,interval=4" for name in ("tova", "knorm", "keydiff", "expected-attention", "pyramid")),
    *(f"{name}:budget=20,interval=4,recent=4" for name in ("h2o", "snapkv", "adakv", "scissorhands", "cam", "random")),
    "lagkv:budget=20,interval=4,sinks=2,recent=4",
    "late:budget=200,start=30",
]
OTHERS = ["recompute:window=12,stride=5", "duo:full=50,sinks=2,window=12"]
PACKED = [
    "streaming:sinks=4,window=16,cache=int4,exact=4,residual=8,group=4",
    "h2o:budget=20,interval=4,recent=4,cache=int8,exact=4,residual=8,group=4",
]


@pytest.fixture(scope="module")
def on_gpu(tiny_llama):
    """The tiny llama on the GPU, in float32."""
    return adapt(copy.deepcopy(tiny_llama).to("cuda"))


@pytest.fixture(scope="module")
def half(tiny_llama):
    """The same in half precision."""
    return adapt(copy.deepcopy(tiny_llama).to("cuda", torch.bfloat16))


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 97, 150)


@pytest.mark.parametrize("policy", [*BANDS, *RANKED, *OTHERS, *PACKED])
def test_a_gpu_equals_a_processor(tiny_llama, on_gpu, tokens, policy):
    expected, got = (read(model, tokens, policy, 17) for model in (tiny_llama, on_gpu))
    # In few bits, a number that stands in the middle between two steps goes to either, by its last digit.
    nearly = 10 if policy in PACKED else 1
    np.testing.assert_allclose(got.nll, expected.nll, atol=1e-4 * nearly)
    np.testing.assert_allclose(got.sink_mass, expected.sink_mass, atol=1e-5 * nearly)
    assert got.cache_tokens.tolist() == expected.cache_tokens.tolist()
    assert got.cache_bytes.tolist() == expected.cache_bytes.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (8, 2, 128), (8, 1, 256), (6, 2, 40)])
@pytest.mark.parametrize(
    ("queries", "slots", "reach"), [(1, 300, 256), (64, 64, None), (100, 900, 255), (33, 500, None), (40, 30, 7)]
)
def test_the_kernel_equals_whole_matrices(dtype, heads, kv_heads, dim, queries, slots, reach):
    torch.manual_seed(queries + dim)
    q, k, v = (torch.randn(1, n, t, dim) for n, t in ((heads, queries), (kv_heads, slots), (kv_heads, slots)))
    given = [x.to(dtype) for x in (q, k, v)]
    out, lse = flash.windowed(*(x.cuda() for x in given), reach, dim**-0.5)
    expected, total = naive(*(x.float() for x in given), reach, dim**-0.5)
    torch.testing.assert_close(lse.cpu(), total, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(out.float().cpu(), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    "policy", [*BANDS, "duo:full=50,sinks=2,window=12", "streaming:sinks=4,window=16,positions=text"]
)
def test_half_precision_by_the_kernel_is_as_near_as_without(half, tiny_llama, tokens, policy, monkeypatch):
    exact = read(tiny_llama, tokens, policy, 17)
    fused = read(half, tokens, policy, 17)
    monkeypatch.setattr(flash, "serves", lambda call, band: False)
    plain = read(half, tokens, policy, 17)
    off = [np.abs(of.nll - exact.nll).mean() for of in (fused, plain)]
    assert off[0] <= 1.3 * off[1]
    off = [np.abs(of.sink_mass - exact.sink_mass).mean() for of in (fused, plain)]
    assert off[0] <= 1.3 * off[1]


@pytest.mark.parametrize("policy", BANDS)
@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_a_graph_equals_a_token_alone(tiny_llama, tokens, family, policy, monkeypatch):
    made, captured = [], graph.captured
    monkeypatch.setattr(graph, "captured", lambda *given: made.append(1) or captured(*given))
    network = tiny_llama if family is None else of_family(family)
    model = adapt(copy.deepcopy(network).to("cuda"))
    lanes = [begun(model, tokens[:30], parse(policy), history=64) for _ in range(2)]
    lanes[1].context.trace()
    assert lanes[1].context.graphs is (family != "mixture of experts")
    checked = len(made)
    expected, got = (decode(lane, tokens[30:]) for lane in lanes)
    np.testing.assert_allclose(got[0], expected[0], **WITHIN)
    np.testing.assert_allclose(got[1], expected[1], atol=3e-6)
    assert (len(made) > checked) is lanes[1].context.graphs


@pytest.mark.parametrize("policy", [*BANDS, *RANKED, *OTHERS])
def test_nothing_waits_for_the_gpu_until_a_chunk_is_read(on_gpu, tokens, policy):
    lane = open_lanes(on_gpu, tokens, [parse(policy)])[0]
    while lane.position < 80:
        lane.read(16)
    lane.settle()
    torch.cuda.set_sync_debug_mode("error")
    try:
        lane.store.read(lane.position, 16, len(tokens))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("policy", [*BANDS, *RANKED])
def test_nothing_waits_for_the_gpu_until_a_token_is_chosen(on_gpu, tokens, policy, graphs):
    lane = begun(on_gpu, tokens[:60], parse(policy))
    if graphs:
        lane.context.trace()
    decode(lane, tokens[60:64])
    torch.cuda.set_sync_debug_mode("error")
    try:
        lane.store.decode(lane.position, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
