"""What is kept must not depend on how many tokens are read at once, nor on threads: slots of equal worth go by age.

Equal tokens have equal keys in the first layer, and in a text of one token in all layers, but for rounding.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.engine.stream import open_lanes
from analysis.policies import POLICIES, Ranked, parse
from analysis.policies.ranked import LayerState, agreed, levelled, tolerance

from .families import shared, words
from .published import WITHIN, order
from .reading import read

NAMES = [name for name, policy in POLICIES.items() if issubclass(policy, Ranked)]
LATE = {"late": "sinks=2,start=3,"}
TEXTS = {
    "one token": np.full(44, 7),
    "a refrain": np.tile(np.random.default_rng(3).integers(3, 90, 11), 4),
    "five at random": np.random.default_rng(2).choice([5, 17, 29, 41, 53], 44),
}


def kept(lane):
    heads = range(lane.context.model.kv_heads)
    return [[layer.of_head(head)[0].tolist() for head in heads] for layer in lane.store.layers]


def bits(lane):
    """All that the last eviction left, bit by bit."""
    return [t.numpy().tobytes() for layer in lane.store.layers for t in (layer.keys, layer.values, layer.positions)]


def policy(name, interval, more=""):
    own = "skip=0," if name == "knorm" else LATE.get(name, "sinks=2,")
    return parse(f"{name}:budget=16,recent=4,interval={interval},{own}{more}".rstrip(","))


CASES = [(name, "") for name in NAMES] + [
    ("keydiff", "keys=unrotated"),
    ("tova", "agree=head"),
    ("snapkv", "pooling=max"),
    ("adakv", "pooling=mean"),
]


@pytest.mark.parametrize("text", ["one token", "five at random"])
@pytest.mark.parametrize("interval", [1, 8])
@pytest.mark.parametrize(("name", "more"), CASES)
def test_repeated_tokens_go_by_age_whatever_the_chunk(name, more, interval, text, tiny_llama):
    chosen, tokens = policy(name, interval, more), TEXTS[text]
    expected = read(tiny_llama, tokens, chosen, 1)
    for chunk in (16, len(tokens)):
        got = read(tiny_llama, tokens, chosen, chunk)
        np.testing.assert_allclose(got[0], expected[0], atol=1e-4)
        assert kept(got.lane) == kept(expected.lane)


@pytest.mark.parametrize("interval", [1, 8])
@pytest.mark.parametrize(("name", "more"), CASES)
def test_what_evictions_see_has_the_same_bits_whatever_the_chunk(name, more, interval, tiny_llama):
    """No tolerance can do this: two scores that differ by just so much would still change places."""
    chosen, tokens = policy(name, interval, more), np.random.default_rng(4).integers(3, 90, 80)
    lanes = (read(tiny_llama, tokens[:upto], chosen, upto).lane for upto in range(56, 73))
    whole = next(lane for lane in lanes if lane.store.group is None)
    for chunk in (1, 5):
        assert bits(read(tiny_llama, tokens[: whole.position], chosen, chunk).lane) == bits(whole)


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize(("name", "more"), CASES)
def test_layers_that_are_ranked_together_are_ranked_as_each_alone(name, more, block, tiny_llama):
    # Equally many slots in all layers, and none that share a budget leave in blocks.
    more = [more, "steepness=1" if name == "pyramid" else "", "" if name == "adakv" else f"block={block}"]
    chosen = policy(name, 1, ",".join(filter(None, more)))
    # The last token is only told, so nothing has been evicted.
    layers = read(tiny_llama, TEXTS["five at random"][:17], chosen).lane.store.layers
    rotation = torch.eye(layers[0].keys.shape[2]) if chosen.future_positions else None
    seen = [layer.layer_state(number, rotation=rotation) for number, layer in enumerate(layers)]
    each = [chosen.order([state]) for state in seen]
    assert any(not torch.equal(each[0], other) for other in each[1:]) or name in ("late", "cam")
    assert torch.equal(chosen.order(seen), torch.cat(each))


@pytest.mark.parametrize("positions", ["text", "cache"])
def test_copies_within_a_group_go_on_apart(positions, tiny_llama):
    """What was held before the group is shared by both, and either reads the group again."""
    chosen = policy("h2o", 8, f"positions={positions},")
    lane = open_lanes(tiny_llama, np.random.default_rng(4).integers(3, 90, 80), [chosen])[0]
    lane.read(30, 30)
    assert lane.store.group, "the moment is within a group"
    snapshot, ends = lane.snapshot(), []
    for chunk in (1, 3, 80):
        lane.restore(snapshot)
        while lane.position < 66:
            lane.read(chunk, 66)
        assert lane.store.group is None, "the group has ended"
        ends.append((bits(lane), kept(lane)))
    assert ends[0] == ends[1] == ends[2]


def test_several_evictions_are_one_pass_and_an_answer_reads_nothing_twice(tiny_llama):
    lane = open_lanes(tiny_llama, words(120), [parse("h2o:budget=16,recent=5")])[0]
    network, passes = lane.context.model, []
    forward = network.forward
    counting = copy.copy(network)
    counting.forward = lambda ids, *args, **more: passes.append(ids.shape[1]) or forward(ids, *args, **more)
    lane.context.model = counting
    # The first eviction is after the 17th token, and then one follows every token.
    while not lane.done:
        lane.read(64)
    assert passes == [17, *[16] * 6, 6]
    passes.clear()
    for _ in range(40):
        lane.next(lambda logits: int(logits.argmax()))
    # What had been read of a group is read with it once, and from then on a token is a group.
    assert passes == [*[1] * 9, 16, *[1] * 30]


@pytest.mark.parametrize("interval", [1, 8])
@pytest.mark.parametrize("name", NAMES)
def test_layers_that_know_no_places_have_ties_in_attention_too(name, interval):
    """In smollm3 some layers have no positions, so one query gives equal tokens the same."""
    model, tokens, chosen = shared("smollm3"), TEXTS["five at random"], policy(name, interval)
    expected = read(model, tokens, chosen, 1)
    for chunk in (16, len(tokens)):
        np.testing.assert_allclose(read(model, tokens, chosen, chunk)[0], expected[0], atol=1e-4)


@pytest.mark.parametrize("name", ["knorm", "keydiff", "scissorhands", "h2o", "lagkv", "adakv"])
def test_threads_change_nothing(name, tiny_llama):
    chosen, before, got = policy(name, 1), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            got.append(read(tiny_llama, TEXTS["a refrain"], chosen))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(got[0][0], got[1][0], atol=1e-4)
    assert kept(got[0].lane) == kept(got[1].lane)


def test_of_equal_keys_the_oldest_goes(tiny_llama):
    lane = read(tiny_llama, TEXTS["one token"], parse("knorm:budget=24,skip=0")).lane
    assert all(head == list(range(19, 43)) for layer in kept(lane) for head in layer)
    lane = read(tiny_llama, TEXTS["one token"], parse("knorm:budget=24,sinks=2,skip=0")).lane
    assert all(head == [0, 1, *range(21, 43)] for layer in kept(lane) for head in layer)


def by_rank(scores, *settings):
    return levelled(scores, *settings).argsort(stable=True)


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=30), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_rounding_does_not_change_the_order(levels, seed):
    scores = torch.tensor([levels], dtype=torch.float32) * 3.7
    noise = torch.as_tensor(np.random.default_rng(seed).uniform(-1, 1, scores.shape), dtype=torch.float32)
    within = tolerance(torch.float32)
    plain = by_rank(scores, within)
    assert torch.equal(by_rank(scores * (1 + noise * within / 8), within), plain)
    assert plain[0].tolist() == sorted(range(len(levels)), key=lambda i: (levels[i], i))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_ranks_are_those_of_the_reference(worth):
    worth = [w / 3 for w in worth]
    for scale in (0.0, 1.0):
        got = by_rank(torch.tensor([worth], dtype=torch.float64), WITHIN, scale)
        assert got[0].tolist() == order(worth, set(), WITHIN, scale)


def test_what_is_safe_has_a_rank_of_its_own():
    inf = float("inf")
    scores = torch.tensor([[3e38, inf, 1.0, inf, -3e38], [inf, 1.0, 3e38, inf, -3e38]])
    # Whether it is older or newer than what scores highest.
    assert by_rank(scores, 1e-5).tolist() == [[4, 2, 0, 1, 3], [4, 1, 2, 0, 3]]


def test_who_gets_an_even_share_but_for_rounding_is_important():
    got = torch.full((2, 3, 7), 1 / 7)
    got[0] *= 1 - 1e-6
    got[1] *= 1 - 1e-3
    state = LayerState(torch.zeros(2, 7, 4), torch.zeros(2, 7, 4), torch.arange(7).expand(2, -1), None, got, 0)
    assert parse("scissorhands:budget=16").score(state).tolist() == [[0] * 7, [-3] * 7]


def test_a_range_that_is_nothing_but_rounding_makes_no_score():
    draw = torch.Generator().manual_seed(0)
    keys, noise = torch.randn(2, 40, 6, generator=draw), torch.randn(2, 40, 6, generator=draw)
    keys[..., 2] = 3.0
    policy, positions = parse("lagkv:budget=32,sinks=2,recent=8"), torch.arange(40).expand(2, -1)
    plain, noisy = (
        policy.score(LayerState(x, x, positions, None, None, 0, rotated=x)) for x in (keys, keys * (1 + 1e-6 * noise))
    )
    torch.testing.assert_close(noisy, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("slots", range(19, 35))
def test_slots_of_a_short_stretch_are_worth_what_those_of_a_whole_one_are(slots):
    """The first stretch has what the others leave it, which a budget decides and not what was read."""
    draw = torch.Generator().manual_seed(0)
    # What one stretch has, all have in another order, measured by the same range: no slot stands out by its place.
    motif = torch.randn(1, 8, 6, generator=draw)
    x = motif.repeat(1, 5, 1)[:, -slots:]
    policy, positions = parse("lagkv:budget=32,sinks=2,recent=8"), torch.arange(slots)[None]
    worth = policy.score(LayerState(x, x, positions, None, None, 0, rotated=x))[0, 2:-8]
    early, whole = worth[: (slots - 2) % 8], worth[(slots - 2) % 8 :]
    assert whole.mean().item() == pytest.approx(2 / 8, rel=1e-5)
    assert early.numel() == 0 or early.mean().item() == pytest.approx(2 / 8, rel=1e-5)


def test_heads_agree_on_tokens_and_not_on_slots():
    scores = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    positions = torch.tensor([[0, 1, 4], [0, 2, 4]])
    torch.testing.assert_close(agreed(scores, positions), torch.tensor([[0.4, 0.15, 0.3], [0.4, 0.15, 0.3]]))


@pytest.mark.parametrize(
    "written",
    [
        "knorm:budget=32,sinks=2,recent=8,skip=0,interval=8",
        "keydiff:budget=32,sinks=2,recent=8,interval=8",
        "keydiff:budget=32,sinks=2,recent=8,interval=8,keys=unrotated",
        "knorm:budget=32,sinks=2,recent=8,skip=0",
    ],
)
def test_hamlet_reads_the_same_whatever_the_chunk(written, embedded):
    from analysis import texts

    tokens = texts.tokenize(texts.read("hamlet"), embedded.tokenizer, limit=72)
    expected = read(embedded, tokens, parse(written), 1)
    for chunk in (16, len(tokens)):
        got = read(embedded, tokens, parse(written), chunk)
        np.testing.assert_allclose(got[0], expected[0], atol=5e-4)
        assert kept(got.lane) == kept(expected.lane)
