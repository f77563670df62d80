"""A lane that is loaded from its state goes on as the one that it was of, to the last bit."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.engine.context import SharedContext
from analysis.engine.lane import Lane
from analysis.engine.state import State
from analysis.engine.stream import open_lanes
from analysis.policies import POLICIES, Dense, Duo, Streaming, Window, parse
from analysis.runs.checkpoint import Checkpoints

from .families import shared, words
from .invariants import held
from .storms import NAMES, Tokenizer, loaded, policies, settled, written


def beside(lane: Lane, policy=None) -> Lane:
    """A lane of another process: the same policy, text and model, and nothing read."""
    context = lane.context
    more = {"tokenizer": context.tokenizer, "tracer": context.tracer}
    return Lane(0, policy or parse(str(lane.policy)), SharedContext(context.model, context.tokens.copy(), 4, 0, **more))


def goes_on_alike(lane: Lane, other: Lane, then) -> None:
    """Do the same with both, and compare all that is told to the last bit."""
    for what, count in then:
        for one in (lane, other):
            if what == "read":
                one.context.extend(np.arange(count, dtype=np.int32) * 7 % 97)
        steps = []
        for one in (lane, other):
            if what == "read":
                steps.append([one.read(count) for _ in range(1)])
            else:
                while not one.done:
                    one.read(16)
                steps.append([one.next(lambda logits: int(logits.argmax())) for _ in range(count)])
        for a, b in zip(*steps, strict=True):
            for name in ("start", "token_ids", "nll", "cache_tokens", "cache_bytes", "sink_mass"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=f"{what} {name}")
    for layer in range(lane.context.model.layers):
        for head in range(lane.context.model.kv_heads):
            for a, b in zip(held(lane, layer, head), held(other, layer, head), strict=True):
                assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


@pytest.mark.parametrize("policy", ["dense", "streaming:sinks=4,window=24", "h2o:budget=16,recent=5"])
def test_a_lane_that_has_read_nothing_goes_along(policy, tiny_llama):
    lane = open_lanes(tiny_llama, np.arange(30) % 97, [parse(policy)])[0]
    other = beside(lane)
    other.load_state(written(lane.state()))
    assert other.position == 1
    np.testing.assert_array_equal(other.read(20).nll, lane.read(20).nll)


@settled(60, 1, derandomize=True)
@given(st.data(), st.sampled_from(NAMES))
def test_a_lane_loaded_from_its_state_goes_on_to_the_last_bit(data, name):
    """Any policy, after any reading, decoding and switching, with pins."""
    model, _, trace = loaded(name)
    context = SharedContext(model, np.arange(2, dtype=np.int32), 4, 0, tokenizer=Tokenizer(), tracer=lambda: trace)
    lane = Lane(0, data.draw(policies(name)), context)
    moves = st.tuples(st.sampled_from(("read", "read", "next")), st.integers(1, 12))
    for _ in range(data.draw(st.integers(0, 3))):
        what, count = data.draw(moves)
        if what == "read":
            lane.context.extend(np.arange(count, dtype=np.int32) * 5 % 97)
            lane.read(data.draw(st.integers(1, 12)))
        else:
            while not lane.done:
                lane.read(16)
            for _ in range(count):
                lane.next(lambda logits: int(logits.argmax()))
        if data.draw(st.booleans()):
            lane.switch(data.draw(policies(name)), pin=data.draw(st.booleans()))
    other = beside(lane)
    other.load_state(written(lane.state()))
    assert (other.position, other.seconds) == (lane.position, lane.seconds)
    goes_on_alike(lane, other, data.draw(st.lists(moves, min_size=1, max_size=3)))


SMALL = {"dense": "dense", "window": "window:window=9", "streaming": "streaming:sinks=4,window=9"}
SMALL |= {"recompute": "recompute:window=9,stride=3", "duo": "duo:full=50,sinks=2,window=9"}
SMALL |= {"shift": "shift:window=9,keep=2"}
OBSERVED = "rotated", "rotated_sinks", "accumulated_attention", "recent_attention"
"""What is observed or rotated as a lane reads: after a switch there is nothing of it either."""


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_state_in_a_checkpoint_goes_on_like_the_lane(name, tiny_llama, tmp_path):
    """Through the files, for every policy that there is, twice: the second time only what is new is written."""
    policy = parse(SMALL.get(name) or f"{name}:budget=32,recent=4")
    lane = open_lanes(tiny_llama, np.arange(150) * 11 % 97, [policy])[0]
    checkpoints = Checkpoints(tmp_path)
    for _ in range(2):
        lane.read(32)
        state = lane.state()
        checkpoints.write(state.values, state.tensors)
    found = Checkpoints(tmp_path).newest()
    other = beside(lane)
    other.load_state(State(found.about, dict(found.tensors)))
    while not lane.done:
        np.testing.assert_array_equal(lane.read(32).nll, other.read(32).nll)
    goes_on_alike(lane, other, [("next", 5)])


@pytest.mark.parametrize("more", ["", ",cache=int4,group=4,residual=6"])
@pytest.mark.parametrize("policy", ["window:window=24", "streaming:sinks=4,window=24"])
def test_keys_that_were_rotated_for_decoded_tokens_go_along(policy, more, tiny_llama):
    lane = open_lanes(tiny_llama, np.arange(41) * 11 % 97, [parse(policy + more)])[0]
    lane.read(40)
    for _ in range(3):
        lane.next(lambda logits: int(logits.argmax()))
    state = lane.state()
    rotated = {name.split("/")[-1] for name in state.tensors} & {"rotated", "rotated_sinks"}
    assert rotated == {"rotated", *(["rotated_sinks"] if "sinks" in policy else [])}
    other = beside(lane)
    other.load_state(written(state))
    for layer, twin in zip(lane.store.layers, other.store.layers, strict=True):
        assert torch.equal(layer.rotated.view(), twin.rotated.view()) and layer.rotated.first == twin.rotated.first
    goes_on_alike(lane, other, [("next", 9), ("read", 9), ("next", 2)])


@pytest.mark.parametrize("more", ["", ",cache=int4,group=4,residual=6"])
def test_a_window_of_which_no_key_is_rotated_any_more_goes_along(more, tiny_llama):
    """All that were have left it since."""
    lane = open_lanes(tiny_llama, np.arange(41) * 11 % 97, [parse("window:window=24" + more)])[0]
    lane.read(40)
    for _ in range(3):
        lane.next(lambda logits: int(logits.argmax()))
    lane.context.extend(np.arange(30, dtype=np.int32))
    while not lane.done:
        lane.read(40)
    other = beside(lane)
    other.load_state(written(lane.state()))
    goes_on_alike(lane, other, [("next", 3)])


def test_for_which_length_of_context_keys_were_rotated_goes_along():
    """Where a family takes other frequencies for a longer context, and a lane has decoded past its beginning."""
    factors = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 3.0, 9.0, 20.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, **factors}
    model = shared("phi3", original_max_position_embeddings=32, rope_parameters=rope)
    lane = open_lanes(model, words(30), [Streaming(4, 40)])[0]
    lane.read(29)
    for _ in range(5):
        lane.next(lambda logits: int(logits.argmax()))
    other = beside(lane)
    other.load_state(written(lane.state()))
    goes_on_alike(lane, other, [("next", 5), ("read", 9), ("next", 2)])


def test_heads_measured_on_the_beginning_of_a_text_stay_when_it_has_grown(tiny_llama):
    lane = open_lanes(tiny_llama, np.arange(12) % 97, [Duo(50, 2, 4)])[0]
    lane.read(5)
    lane.context.extend(np.arange(300, dtype=np.int32) * 13 % 97)
    other = beside(lane)
    other.load_state(written(lane.state()))
    goes_on_alike(lane, other, [("next", 3)])
    for one in (lane, other):
        one.switch(Duo(25, 2, 4))
    goes_on_alike(lane, other, [("read", 9), ("next", 3)])


def test_what_was_captured_does_not_change_when_the_lane_reads_on(tiny_llama):
    for policy in ("dense", "h2o:budget=16,recent=4", "recompute:window=9,stride=3", "duo:full=50,sinks=2,window=9"):
        lane = open_lanes(tiny_llama, np.arange(200) * 11 % 97, [parse(policy)])[0]
        lane.read(40)
        state = lane.state()
        before = written(state)
        while not lane.done:
            lane.read(32)
        after = written(state)
        assert before.values == after.values
        assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)


def other_llama(**more):
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **more})).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("what", "more"),
    [("policy", {}), ("model", {"num_hidden_layers": 2}), ("model", {"num_key_value_heads": 1}), ("text", {})],
)
def test_a_state_of_something_else_is_refused_in_a_sentence(what, more, tiny_llama):
    tokens = np.arange(60) * 11 % 97
    lane = open_lanes(tiny_llama, tokens, [Streaming(4, 9)])[0]
    lane.read(30)
    policy = Window(9) if what == "policy" else Streaming(4, 9)
    text = tokens[::-1].copy() if what == "text" else tokens
    other = open_lanes(other_llama(**more) if more else tiny_llama, text, [policy])[0]
    with pytest.raises(ValueError, match=rf"^this state is of another {what}[^\n]*$"):
        other.load_state(lane.state())
    assert other.position == 1 and other.cache_bytes == 0


def test_a_state_of_no_token_is_refused_in_a_sentence(tiny_llama):
    lane, other = (open_lanes(tiny_llama, np.arange(60) % 97, [Dense()])[0] for _ in range(2))
    state = lane.state()
    spoiled = State(state.values | {"position": 0, "text": zlib.crc32(b"")}, state.tensors)
    with pytest.raises(ValueError, match=r"^this state is of a lane at token 0, and the text has 60 tokens[^\n]*$"):
        other.load_state(spoiled)
    assert other.position == 1


def test_a_state_of_a_longer_text_is_refused_in_a_sentence(tiny_llama):
    lane, other = (open_lanes(tiny_llama, np.arange(n) % 97, [Dense()])[0] for n in (60, 20))
    lane.read(40)
    with pytest.raises(ValueError, match=r"^this state is of a lane at token 41, and the text has 20 tokens[^\n]*$"):
        other.load_state(lane.state())


@pytest.mark.parametrize(
    "policy",
    ["dense", "h2o:budget=16,recent=4", "adakv:budget=16,recent=4", "expected-attention:budget=16", SMALL["duo"]],
)
def test_a_state_with_tensors_of_another_shape_is_refused_in_a_sentence(policy, tiny_llama):
    lane = open_lanes(tiny_llama, np.arange(60) % 97, [parse(policy)])[0]
    lane.read(30)
    state = written(lane.state())
    for name, right in state.tensors.items():
        for wrong in (None, torch.zeros(1, 2, 3, 4), torch.zeros(5), right.new_zeros([n + 1 for n in right.shape])):
            tensors = {**state.tensors, name: wrong} if wrong is not None else dict(state.tensors)
            if wrong is None:
                del tensors[name]
            if wrong is None and name.split("/")[-1] in OBSERVED:
                continue
            with pytest.raises(ValueError, match=r"^[^\n]+$"):
                beside(lane).load_state(State(state.values, tensors))


@pytest.mark.parametrize("policy", ["dense", "adakv:budget=16,recent=4", "dense:cache=int4,group=4,residual=6"])
def test_a_state_with_numbers_of_another_kind_is_refused_in_a_sentence(policy, tiny_llama):
    lane = open_lanes(tiny_llama, np.arange(60) % 97, [parse(policy)])[0]
    lane.read(30)
    state = written(lane.state())
    kept = [name for name in state.tensors if name.split("/")[-1] not in OBSERVED]
    assert len(kept) >= 4 * 3
    for name in kept:
        tensors = {**state.tensors, name: state.tensors[name].to(torch.complex64)}
        with pytest.raises(ValueError, match=r"is torch.complex64 .+ and not torch\.[a-z]+\d* .+: it is of another"):
            beside(lane).load_state(State(state.values, tensors))


def test_a_quantized_state_without_some_of_its_scales_is_refused_in_a_sentence(tiny_llama):
    policy = parse("streaming:sinks=4,window=24,cache=int4,group=4,residual=6")
    lane = open_lanes(tiny_llama, np.arange(60) % 97, [policy])[0]
    lane.read(40)
    state = written(lane.state())
    scales = [name for name, t in state.tensors.items() if name.endswith(("_scales", "_zeros")) and t.shape[1]]
    # Of keys and values, in the window and of the sinks, in three layers.
    assert len(scales) == 2 * 2 * 2 * 3
    for name in scales:
        tensors = {**state.tensors, name: state.tensors[name][:, 1:]}
        with pytest.raises(ValueError, match="of this state has not the scales that it needs: it is damaged"):
            beside(lane).load_state(State(state.values, tensors))


def test_a_state_of_other_layers_or_other_full_heads_is_refused_in_a_sentence(tiny_llama):
    lane = open_lanes(tiny_llama, np.arange(60) % 97, [Duo(50, 2, 9, scores="1 0; 1 0; 0 1")])[0]
    lane.read(30)
    state = written(lane.state())
    store = state.values["store"]
    for changed, said in (
        ({"layers": 2}, "this state has 2 layers, and the model 3"),
        ({"2": {**store["2"], "full": [0]}}, r"KV heads \[0\] keep everything in this state, and here it is \[1\]"),
    ):
        with pytest.raises(ValueError, match=said):
            beside(lane).load_state(replace(state, values={**state.values, "store": {**store, **changed}}))


def test_a_state_without_its_values_is_refused_in_a_sentence(tiny_llama):
    lane = open_lanes(tiny_llama, np.arange(60) % 97, [Dense()])[0]
    lane.read(30)
    state = written(lane.state())
    for values in ({}, {**state.values, "position": "7"}, {**state.values, "store": {}}):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            beside(lane).load_state(replace(state, values=json.loads(json.dumps(values))))
