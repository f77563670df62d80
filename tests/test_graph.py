"""A token that is captured gives what it gives alone.

Capturing needs a GPU (test_gpu.py); here what would be captured runs again each time, over the tensors that it would
find there.
"""

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.engine.attention import graph
from analysis.maps.recent import head_map
from analysis.policies import Streaming, parse

from .test_decoding import FAMILIES, SMALL, WITHIN, begun, decode, of_family

POLICIES = [
    "dense",
    "window:window=20",
    "streaming:sinks=4,window=16",
    "streaming:sinks=4,window=16,block=5",
    "streaming:sinks=2,window=16,positions=text",
    "streaming:sinks=4,window=16,positions=naive",
    "streaming:sinks=4,window=16,softmax=off-by-one",
    "shift:window=16,keep=2",
]


@pytest.fixture
def replayed(monkeypatch):
    """The tokens that came from a graph; what a GPU would do again is run again."""
    count = []

    def again(run, device):
        told = run()

        def replay() -> None:
            count.append(1)
            for old, new in zip(told, run(), strict=True):
                old.copy_(new)

        return replay, told

    monkeypatch.setattr(graph, "captured", again)
    return count


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 97, 120)


def with_graphs(model, tokens, policy, history=0):
    """A lane that decodes through graphs."""
    lane = begun(model, tokens, policy, history)
    lane.context.graphs = True
    return lane


def agree(got, expected):
    """NLL, sink mass and tokens held of tokens that were decoded in two ways."""
    np.testing.assert_allclose(got[0], expected[0], **WITHIN)
    np.testing.assert_allclose(got[1], expected[1], atol=3e-6)
    assert got[2].tolist() == expected[2].tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_graph_equals_a_token_alone(tiny_llama, tokens, policy, replayed):
    policy = parse(policy)
    expected = decode(begun(tiny_llama, tokens[:30], policy), tokens[30:])
    agree(decode(with_graphs(tiny_llama, tokens[:30], policy), tokens[30:]), expected)
    assert len(replayed) == len(tokens) - 30 - 1


@pytest.mark.parametrize("policy", ["dense", "streaming:sinks=4,window=16", "streaming:sinks=2,window=5"])
@pytest.mark.parametrize("family", [*FAMILIES, 1, 4])
def test_a_graph_equals_a_token_alone_in_any_family(tokens, family, policy, replayed):
    """By name, or a llama with so many KV heads."""
    model = of_family(family) if family in FAMILIES else llama(family)
    expected = decode(begun(model, tokens[:30], parse(policy)), tokens[30:60])
    agree(decode(with_graphs(model, tokens[:30], parse(policy)), tokens[30:60]), expected)
    assert replayed


def llama(kv_heads):
    return LlamaForCausalLM(LlamaConfig(**SMALL | {"num_key_value_heads": kv_heads})).eval().requires_grad_(False)


def test_a_window_that_outgrows_its_graph_takes_a_larger_one(tiny_llama, tokens, replayed, monkeypatch):
    expected = decode(begun(tiny_llama, tokens[:30], parse("dense")), tokens[30:])
    monkeypatch.setattr(graph, "STEP", 16)
    agree(decode(with_graphs(tiny_llama, tokens[:30], parse("dense")), tokens[30:]), expected)
    # The first token has none yet, nor have those that come when 32, 48, 64, 80, 96 and 112 are held.
    assert len(replayed) == len(tokens) - 30 - 7


def test_keys_that_have_moved_take_a_new_graph(tiny_llama, tokens, replayed, monkeypatch):
    policy = Streaming(4, 16)
    expected = decode(begun(tiny_llama, tokens[:30], policy), tokens[30:])
    monkeypatch.setattr(graph, "ROOM", 10)
    agree(decode(with_graphs(tiny_llama, tokens[:30], policy), tokens[30:]), expected)
    assert 60 < len(replayed) < len(tokens) - 30 - 1


def test_two_lanes_that_part_do_not_see_each_other(tiny_llama, tokens, replayed):
    policy = Streaming(4, 16)
    expected = decode(begun(tiny_llama, tokens[:40], policy), tokens[40:80])
    lane = with_graphs(tiny_llama, tokens[:40], policy)
    before = lane.snapshot()
    first = decode(lane, tokens[40:80])
    lane.restore(before)
    decode(lane, tokens[:20])
    lane.restore(before)
    again = decode(lane, tokens[40:80])
    agree(first, expected)
    agree(again, expected)
    assert replayed


def test_a_switch_between_two_tokens_of_a_graph(tiny_llama, tokens, replayed):
    lanes = [begun(tiny_llama, tokens[:40], Streaming(4, 16)), with_graphs(tiny_llama, tokens[:40], Streaming(4, 16))]
    for part, policy in (
        (tokens[40:60], "window:window=12"),
        (tokens[60:80], "dense"),
        (tokens[80:], "window:window=9"),
    ):
        agree(*(decode(lane, part) for lane in lanes[::-1]))
        for lane in lanes:
            lane.switch(parse(policy), pin=True)
    assert replayed


def test_maps_of_tokens_of_a_graph(tiny_llama, tokens, replayed):

    lanes = [
        begun(tiny_llama, tokens[:30], Streaming(4, 16), 64),
        with_graphs(tiny_llama, tokens[:30], Streaming(4, 16), 64),
    ]
    maps = []
    for lane in lanes:
        decode(lane, tokens[30:])
        lane.settle()
        maps.append(head_map(lane, 1, 2, 40))
    np.testing.assert_allclose(maps[0].weights, maps[1].weights, atol=1e-5)
    np.testing.assert_allclose(maps[0].sinks, maps[1].sinks, atol=1e-5)
    assert replayed


def test_what_is_knocked_out_or_quantized_goes_without_a_graph(tiny_llama, tokens, replayed):
    for policy in ("streaming:sinks=4,window=16,knockout=values", "recompute:window=12,stride=5"):
        expected = decode(begun(tiny_llama, tokens[:30], parse(policy)), tokens[30:60])
        agree(decode(with_graphs(tiny_llama, tokens[:30], parse(policy)), tokens[30:60]), expected)
    assert not replayed
