"""How faithful lanes are to one of them: as a naive computation on whole logits says, whatever keeps the cache."""

import functools
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.engine.context import SharedContext
from analysis.engine.fidelity import Fidelity, Outputs, _errors
from analysis.engine.logits import Logits
from analysis.engine.stream import next_lane, open_lanes, stream
from analysis.policies import POLICIES as REGISTRY
from analysis.policies import Dense, Streaming, Window, parse

POLICIES = [
    "window:window=20",
    "streaming:sinks=4,window=16",
    "streaming:sinks=2,window=9,positions=text",
    "recompute:window=12,stride=5",
    "recompute:window=8,stride=1",
    "duo:full=50,sinks=2,window=10",
    "shift:window=16,keep=2",
    "h2o:budget=24,recent=8",
    "snapkv:budget=24,recent=8,interval=4",
]
FEW = 50
"""Tokens of a text that is longer than every cache here, and no longer."""
NAMED = {policy.partition(":")[0] for policy in POLICIES} | {"dense"}
ONE_BY_ONE = {*POLICIES, "adakv:budget=24,recent=4"}
"""Of every way to keep keys some policy, which is read in chunks of one token too."""
POLICIES += [f"{name}:budget=24,recent=4" for name in REGISTRY if name not in NAMED]


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(5).permutation(90)


@functools.cache
def logarithms(model, tokens, policy):
    """ln p of every token of the vocabulary, of a lane that is read alone and one token at a time, float64."""
    lane, rows = open_lanes(model, tokens, [parse(policy)])[0], []
    # Now, since DuoAttention measures its heads on the text that there is.
    lane.store.empty()
    lane.context.truncate(1)
    for token in tokens[1:]:
        lane.next(lambda logits, token=token: rows.append(logits.double()) or int(token))
    return torch.log_softmax(torch.stack(rows), -1)


def naive(model, tokens, reference, policy):
    """KL in nats and agreement of each token, from whole matrices."""
    p, q = (logarithms(model, tuple(tokens), of) for of in (reference, policy))
    return (p.exp() * (p - q)).sum(-1).numpy(), (p.argmax(-1) == q.argmax(-1)).numpy()


def read_on(lanes, chunk=32, upto=None):
    """KL and agreement of all lanes when all are done, each [lanes][tokens]."""
    kl, agree = [[] for _ in lanes], [[] for _ in lanes]
    while (lane := next_lane(lanes, upto)) is not None:
        step = lane.read(chunk, upto)
        assert len(step.kl) == len(step.agree) == len(step.nll)
        kl[lane.index].append(step.kl)
        agree[lane.index].append(step.agree)
    return [np.concatenate(of) for of in kl], [np.concatenate(of) for of in agree]


@pytest.mark.parametrize(
    ("policy", "chunk"), [(p, n) for p in POLICIES for n in (1, 7, 64) if n > 1 or p in ONE_BY_ONE]
)
def test_kl_and_agreement_equal_a_naive_computation_on_whole_logits(tiny_llama, tokens, policy, chunk):
    tokens = tokens[:FEW]
    expected, alike = naive(tiny_llama, tokens, "dense", policy)
    kl, agree = read_on(open_lanes(tiny_llama, tokens, [Dense(), parse(policy)], fidelity=True), chunk)
    np.testing.assert_allclose(kl[1], expected, atol=1e-5)
    np.testing.assert_array_equal(agree[1], alike)
    assert expected.max() > 0.05 and not alike.all(), "the policy changes what is predicted"
    assert not kl[0].any() and agree[0].all(), "the reference is itself"


@pytest.mark.parametrize("reference", ["window:window=9", "h2o:budget=24,recent=8", "recompute:window=12,stride=5"])
def test_any_policy_may_be_the_reference(tiny_llama, tokens, reference):
    lanes = open_lanes(tiny_llama, tokens, [parse(reference), Dense(), Streaming(4, 16)], fidelity=True)
    kl, agree = read_on(lanes)
    assert not kl[0].any() and (agree[0] == 1).all()
    for lane, policy in ((1, "dense"), (2, "streaming:sinks=4,window=16")):
        expected, alike = naive(tiny_llama, tokens, reference, policy)
        np.testing.assert_allclose(kl[lane], expected, atol=1e-5)
        np.testing.assert_array_equal(agree[lane], alike)


@pytest.mark.parametrize("policy", [Dense(), Window(500), Streaming(4, 500)])
def test_a_lane_that_evicts_nothing_is_at_no_distance_from_dense(tiny_llama, tokens, policy):
    kl, agree = read_on(open_lanes(tiny_llama, tokens, [Dense(), policy], fidelity=True))
    assert kl[1].max() < 1e-5 and agree[1].all()
    if policy == Dense():
        assert not kl[1].any()


def test_divergence_is_the_naive_sum_over_the_vocabulary():
    draw = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        p, q = (5 * torch.randn(130, 211, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
        got = Logits.of(p).divergence(Logits.of(q))
        ln_p, ln_q = (torch.log_softmax(x.double(), -1) for x in (p, q))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), (ln_p.exp() * (ln_p - ln_q)).sum(-1), atol=1e-5, rtol=1e-6)
        assert not Logits.of(p).divergence(Logits.of(p)).any()
        near = (p.double() + 1e-6 * q.double()).to(dtype)
        assert (Logits.of(p).divergence(Logits.of(near)) >= 0).all()


def steps_of(lanes, chunk=32, upto=None):
    """KL of each lane from where it stands, [lanes][tokens]."""
    kl = {lane.index: [] for lane in lanes}
    while (lane := next_lane(lanes, upto)) is not None:
        kl[lane.index].append(lane.read(chunk, upto).kl)
    return {lane: np.concatenate(of) if of else np.zeros(0) for lane, of in kl.items()}


@pytest.mark.parametrize("chunk", [16, 13])
def test_a_lane_that_stood_still_is_measured_once_it_has_caught_up(tiny_llama, tokens, chunk):
    """Its own chunks may end where that of the reference begins, or not."""
    lanes = open_lanes(tiny_llama, tokens, [Dense(), Window(20), Window(9)], fidelity=True)
    expected = [naive(tiny_llama, tokens, "dense", f"window:window={n}")[0] for n in (20, 9)]
    # As lanes do that run out of memory, and are then switched.
    before = [steps_of(lanes, 16, 20), steps_of(lanes[:2], 16, 60)]
    rest = steps_of(lanes, chunk)
    np.testing.assert_allclose(np.concatenate([*(b[1] for b in before), rest[1]]), expected[0], atol=1e-5)
    late = np.concatenate((before[0][2], rest[2]))
    missed = np.arange(19, 51)
    assert np.isnan(late[missed]).all(), "from where it stood to the chunk that the reference was in"
    known = np.setdiff1d(np.arange(len(late)), missed)
    np.testing.assert_allclose(late[known], expected[1][known], atol=1e-5)


def test_the_state_of_the_reference_is_of_when_its_newest_chunk_began(tiny_llama, tokens):
    """Other lanes may stand inside that chunk: whoever goes on from there reads it again."""
    lanes = open_lanes(tiny_llama, tokens, [Dense(), Streaming(4, 16)], fidelity=True)
    for read, expected in (((), (1, 1)), ((0, 1), (1, 17)), ((0,), (17, 17)), ((1,), (17, 33))):
        for i in read:
            lanes[i].read(16)
        assert tuple(lane.state().values["position"] for lane in lanes) == expected


def test_where_the_reference_stands_still_nothing_is_measured(tiny_llama, tokens):
    lanes = open_lanes(tiny_llama, tokens, [Dense(), Window(20)], fidelity=True)
    expected = naive(tiny_llama, tokens, "dense", "window:window=20")[0]
    steps_of(lanes, upto=40)
    assert np.isnan(steps_of(lanes[1:], upto=60)[1]).all()
    rest = steps_of(lanes)
    assert not rest[0].any() and len(rest[0]) == 50
    np.testing.assert_allclose(rest[1], expected[59:], atol=1e-5)


def test_switches_change_what_is_measured_from_there_on(tiny_llama, tokens):
    lanes = open_lanes(tiny_llama, tokens, [Dense(), Window(20), Dense()], fidelity=True)
    first = steps_of(lanes, 16, 50)
    lanes[1].switch(Streaming(4, 16))
    lanes[0].switch(Window(20))
    second = steps_of(lanes, 16)
    alone = {}
    for i, (before, after) in enumerate([(Dense(), Window(20)), (Window(20), Streaming(4, 16)), (Dense(), Dense())]):
        lane = open_lanes(tiny_llama, tokens, [before])[0]
        lane.context.fidelity = Keeping()
        while lane.position < 50:
            lane.read(16, 50)
        lane.switch(after)
        while not lane.done:
            lane.read(16)
        alone[i] = torch.log_softmax(torch.cat(lane.context.fidelity.rows).double(), -1)
    for lane in (1, 2):
        p, q = alone[0], alone[lane]
        expected = (p.exp() * (p - q)).sum(-1).numpy()
        np.testing.assert_allclose(np.concatenate((first[lane], second[lane])), expected, atol=1e-5)
    assert second[2].max() > 0.1, "dense is no longer the reference"


class Keeping(Fidelity):
    """Keeps all logits of a lane that reads alone."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def measure(self, lane, parts):
        self.rows += [part.logits.rows.clone() for part in parts]
        return super().measure(lane, parts)


def test_no_more_than_one_chunk_of_logits_is_kept(tiny_llama, tokens):
    """Whatever the reference has read before is gone when it reads on."""
    lanes = open_lanes(tiny_llama, tokens, [Dense(), Window(20)], fidelity=True)
    alive = []

    def measure(lane, parts, real=lanes[0].context.fidelity.measure):
        alive.extend(weakref.ref(part.logits.rows) for part in parts)
        assert sum(rows().shape[0] for rows in alive if rows() is not None) <= 2 * 16
        return real(lane, parts)

    lanes[0].context.fidelity.measure = measure
    steps_of(lanes, 16)
    assert len(alive) == 12


def test_nothing_is_measured_that_was_not_asked_for(tiny_llama, tokens):
    step = next(stream(tiny_llama, tokens, [Dense(), Window(20)]))
    assert step.kl is None and step.agree is None
    assert [s.lane for s in stream(tiny_llama, tokens, [Dense(), Window(20)], chunk=45, fidelity=True)] == [0, 1] * 2


def test_seconds_of_a_lane_are_those_of_reading_and_not_of_being_measured(tiny_llama, tokens, monkeypatch):
    """A policy that is measured against dense is held against dense that reads alone."""
    clock, measure = [0.0], Fidelity.measure

    def slow(self, lane, parts):
        clock[0] += 100
        return measure(self, lane, parts)

    monkeypatch.setattr("analysis.engine.lane.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Fidelity, "measure", slow)
    lanes = open_lanes(tiny_llama, tokens, [Dense(), Window(20)], fidelity=True)
    steps = [lane.read(32) for lane in lanes]
    assert clock == [200] and [step.seconds for step in steps] == [lane.seconds for lane in lanes] == [0, 0]


def test_a_step_cut_in_two_keeps_what_was_measured_of_its_rest(tiny_llama, tokens):
    lanes = open_lanes(tiny_llama, tokens, [Dense(), Window(4)], fidelity=True)
    lanes[0].read(32)
    step = lanes[1].read(32)
    assert step.since(20).kl.tolist() == step.kl[19:].tolist()
    assert step.since(20).agree.tolist() == step.agree[19:].tolist()


def attention_of(model, network, read, last=0):
    """Outputs of the attention of each layer while something is read, by hooks where they are projected: [layers] of
    [tokens, heads, dim]; `last`: of each pass only so many."""
    found = [[] for _ in network.model.layers]
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given, of=of: of.append(given[0][0, -last:].clone()))
        for layer, of in zip(network.model.layers, found, strict=True)
    ]
    try:
        read()
    finally:
        for hook in hooks:
            hook.remove()
    heads = model.config.num_attention_heads
    return [torch.cat(of).unflatten(-1, (heads, -1)).double() for of in found]


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if "recompute" not in policy])
def test_output_errors_equal_a_naive_computation_with_hooks(tiny_llama, tokens, policy):
    tokens = tokens[:FEW]
    lanes = open_lanes(tiny_llama, tokens, [Dense(), parse(policy)], fidelity=True)
    steps = []
    while (lane := next_lane(lanes)) is not None:
        step = lane.read(40)
        steps += [step] if lane.index else []
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        dense = attention_of(tiny_llama, tiny_llama, lambda: tiny_llama(torch.as_tensor(tokens)[None]))
    alone = open_lanes(tiny_llama, tokens, [parse(policy)])[0]
    alone.store.empty()
    alone.context.truncate(1)

    def read():
        for token in tokens[1:]:
            alone.next(lambda logits, token=token: int(token))

    # Tokens before an eviction may be read again together.
    own = attention_of(tiny_llama, alone.context.model.network, read, 1)
    for step in steps:
        cut = slice(step.start - 1, step.stop - 1)
        expected = [
            ((o[cut] - d[cut]).norm(dim=(0, 2)) / d[cut].norm(dim=(0, 2))) for o, d in zip(own, dense, strict=True)
        ]
        np.testing.assert_allclose(step.output_error, torch.stack(expected).numpy(), atol=1e-5)
    assert steps[-1].output_error.max() > 0.1


@pytest.mark.parametrize(("window", "stride"), [(12, 5), (8, 1)])
def test_output_errors_of_windows_encoded_anew_equal_fresh_passes(tiny_llama, tokens, window, stride):
    lanes = open_lanes(
        tiny_llama, tokens, [Dense(), parse(f"recompute:window={window},stride={stride}")], fidelity=True
    )
    steps = []
    while (lane := next_lane(lanes)) is not None:
        step = lane.read(40)
        steps += [step] if lane.index else []
    tiny_llama.set_attn_implementation("eager")

    def outputs(ids):
        with torch.no_grad():
            return attention_of(tiny_llama, tiny_llama, lambda: tiny_llama(torch.as_tensor(ids)[None]))

    dense, own = outputs(tokens), [[] for _ in tiny_llama.model.layers]
    for i in range(1, len(tokens)):
        start = 0 if i <= window else i - window - (i - window - 1) % stride
        for layer, of in zip(own, outputs(tokens[start:i]), strict=True):
            layer.append(of[-1])
    for step in steps:
        cut = slice(step.start - 1, step.stop - 1)
        pairs = [(torch.stack(o)[cut], d[cut]) for o, d in zip(own, dense, strict=True)]
        expected = torch.stack([(o - d).norm(dim=(0, 2)) / d.norm(dim=(0, 2)) for o, d in pairs])
        np.testing.assert_allclose(step.output_error, expected.numpy(), atol=1e-5)


def test_a_lane_that_evicts_nothing_has_no_output_error(tiny_llama, tokens):
    for step in stream(tiny_llama, tokens, [Dense(), Dense(), Window(500)], chunk=40, fidelity=True):
        assert step.output_error.shape == (3, 4)
        assert step.output_error.max() < 1e-5 and (step.lane == 2 or not step.output_error.any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_errors_of_half_precision_are_not_rounded_to_it(dtype):
    draw = torch.Generator().manual_seed(0)
    own = torch.randn(50, 3, 8, generator=draw).to(dtype)
    other = (own.float() + 0.01 * torch.randn(50, 3, 8, generator=draw)).to(dtype)
    exact = (other.double() - own.double()).pow(2).sum((0, 2)).sqrt() / own.double().pow(2).sum((0, 2)).sqrt()
    got = _errors([own], [other])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got[0].double(), exact, rtol=1e-5, atol=0)


def test_a_head_that_gives_nothing_has_no_relative_error(tiny_llama, tokens):
    """And where the reference has read nothing beside the lane, no head has one."""
    lanes = open_lanes(tiny_llama, tokens, [Dense(), Window(20)], fidelity=True)
    assert np.isnan(lanes[1].read(20).output_error).all()
    zero, some = torch.zeros(3, 2, 4), torch.ones(3, 2, 4)
    zero[:, 1] = 2
    fidelity, rows = lanes[0].context.fidelity, Logits.of(torch.zeros(3, 97))
    fidelity.begin(lanes[0], 4)
    fidelity.measure(lanes[0], [Outputs(rows, [zero] * 3)])
    lane = open_lanes(tiny_llama, tokens, [Dense(), Window(20)])[1]
    error = fidelity.measure(lane, [Outputs(rows, [some] * 3)]).output_error
    assert np.isnan(error[:, 0]).all() and (error[:, 1] == 0.5).all()


def test_a_store_that_tells_no_outputs_has_no_output_error(tiny_llama, tokens, monkeypatch):
    policies = [Dense(), Streaming(4, 16)]
    whole = list(stream(tiny_llama, tokens, policies, chunk=30, fidelity=True))
    monkeypatch.setattr(SharedContext, "attended", lambda self: None)
    for step, told in zip(stream(tiny_llama, tokens, policies, chunk=30, fidelity=True), whole, strict=True):
        np.testing.assert_array_equal(step.kl, told.kl)
        np.testing.assert_array_equal(step.agree, told.agree)
        assert step.lane == 0 or np.isnan(step.output_error).all()
