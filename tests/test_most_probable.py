"""The most probable token of every position, told beside its NLL: what a greedy decoder would say there."""

import numpy as np
import pytest
import torch

from analysis.engine.kv.store import Predicted
from analysis.engine.logits import Logits
from analysis.engine.stream import open_lanes
from analysis.policies import Dense, parse

POLICIES = [
    "dense",
    "window:window=20",
    "streaming:sinks=4,window=16",
    "recompute:window=12,stride=5",
    "duo:sinks=2,window=10",
    "h2o:budget=24,recent=8",
    "snapkv:budget=24,recent=8,interval=4",
]


@pytest.fixture
def tokens():
    return np.random.default_rng(1).integers(0, 97, 90)


def tops(model, tokens, policy, chunk):
    lane, steps = open_lanes(model, tokens, [policy], top=True)[0], []
    while not lane.done:
        steps.append(lane.read(chunk))
    return np.concatenate([step.top for step in steps])


def test_the_most_probable_tokens_of_a_text_are_the_models_own(tiny_llama, tokens):
    with torch.inference_mode():
        own = tiny_llama(torch.tensor(tokens)[None]).logits[0].argmax(-1)
    assert tops(tiny_llama, tokens, Dense(), 32).tolist() == own[:-1].tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_greedy_decoder_that_is_given_the_text_says_the_same(tiny_llama, tokens, policy):
    told = tops(tiny_llama, tokens, parse(policy), 32)
    lane, said = open_lanes(tiny_llama, tokens, [parse(policy)])[0], []
    while lane.position < 30:
        lane.read(32, upto=30)
    # Only now, since DuoAttention measures its heads on the text that there is when it begins.
    lane.context.truncate(30)

    def choose(logits):
        said.append(int(logits.argmax()))
        return int(tokens[30 + len(said) - 1])

    while len(lane.context.tokens) < len(tokens):
        lane.next(choose)
    assert told[29:].tolist() == said


def test_nothing_is_told_that_was_not_asked_for(tiny_llama, tokens):
    assert open_lanes(tiny_llama, tokens, [Dense()])[0].read(32).top is None


def test_a_step_cut_in_two_keeps_the_tokens_of_its_rest(tiny_llama, tokens):
    step = open_lanes(tiny_llama, tokens, [Dense()], top=True)[0].read(32)
    assert step.since(20).top.tolist() == step.top[19:].tolist()


@pytest.mark.parametrize("rows", [1, 64, 65])
def test_of_any_number_of_rows_each_has_its_largest(rows):
    logits = torch.randn(rows, 50, generator=torch.Generator().manual_seed(rows))
    assert Logits.of(logits).top.tolist() == [max(range(50), key=row.__getitem__) for row in logits.tolist()]


def test_parts_are_joined_with_their_tokens():
    parts = [Predicted(torch.zeros(n), torch.zeros(1, 1, n), np.zeros(n), torch.arange(n)) for n in (2, 1)]
    assert Predicted.joined(parts).top.tolist() == [0, 1, 0]
