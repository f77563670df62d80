"""A budget is a promise: no layer ever holds more than its own, and all together never more than they were given."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from analysis.engine.layers.eviction import evict
from analysis.engine.layers.ragged import RaggedLayer
from analysis.engine.stream import open_lanes
from analysis.policies import POLICIES, Ranked, parse

from .families import shared, words
from .published import Moment, shared_out

NAMES = [name for name, policy in POLICIES.items() if issubclass(policy, Ranked)]


COUNTS = [(name, f.name) for name, policy in POLICIES.items() for f in policy.settings() if f.type is int]


@pytest.mark.parametrize(("name", "setting"), COUNTS)
def test_what_is_not_refused_at_its_lowest_can_be_read_with_and_nothing_is_negative(name, setting):
    policy = POLICIES[name]
    low = next(f.metadata["low"] for f in policy.settings() if f.name == setting)
    with pytest.raises(ValueError, match=f"{name}: {setting} must be at least {low}, not -1"):
        policy(**{setting: -1})
    try:
        lowest = policy(**{setting: low})
    except ValueError:
        return
    lane = open_lanes(shared("llama", num_hidden_layers=1), words(16), [lowest])[0]
    while not lane.done:
        lane.read(9)


def test_policies_that_are_compared_have_one_capacity_unless_told_otherwise():
    assert {policy().capacity for policy in POLICIES.values()} == {None, POLICIES["streaming"]().capacity}
    ranges = [
        (f.metadata["low"], f.metadata["high"])
        for policy in POLICIES.values()
        for f in policy.settings()
        if f.name in ("sinks", "keep")
    ]
    assert len(ranges) > 10 and len(set(ranges)) == 1


@st.composite
def odd_policies(draw):
    """Settings that nobody would choose, but that are allowed."""
    name, budget = draw(st.sampled_from(NAMES)), draw(st.integers(2, 40))
    written = {
        "budget": budget,
        "sinks": draw(st.integers(0, 6)),
        "recent": draw(st.integers(0, 12)),
        "interval": draw(st.integers(0, 9)),
        "positions": draw(st.sampled_from(["cache", "text"])),
    }
    more = {
        "pyramid": {"steepness": st.integers(1, 64), "scorer": st.sampled_from(["snapkv", "h2o", "keydiff", "tova"])},
        "knorm": {"skip": st.integers(0, 4)},
        "late": {"start": st.integers(0, 20)},
        "tova": {"agree": st.sampled_from(["layer", "head"])},
    }
    written |= {key: draw(values) for key, values in more.get(name, {}).items()}
    try:
        return parse(f"{name}:" + ",".join(f"{k}={v}" for k, v in written.items()))
    except ValueError:
        assume(False)


@pytest.fixture(scope="module")
def models():
    return {layers: shared("llama", num_hidden_layers=layers) for layers in (1, 2, 3, 6)}


@given(policy=odd_policies(), layers=st.sampled_from([1, 2, 3, 6]), chunk=st.sampled_from([1, 3, 16, 80]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_policy_ever_holds_more_than_its_budget(models, policy, layers, chunk):
    tokens = words(48)
    lane = open_lanes(models[layers], tokens, [policy])[0]
    bounded = range(getattr(policy, "skip", 0), layers)
    heads = lane.context.model.kv_heads
    while not lane.done:
        step = lane.read(chunk)
        held = [len(c) for c in lane.store.layers]
        read = lane.position - 1
        assert all(held[i] <= policy.budget_of(i, layers) for i in range(layers))
        assert sum(held[i] for i in bounded) <= policy.budget * len(bounded)
        assert all(n == read for n in held[: bounded.start])
        if policy.capacity is not None:
            assert policy.capacity == policy.budget and step.cache_tokens.max() <= policy.budget
            assert lane.cache_bytes <= policy.budget * layers * heads * 2 * lane.context.model.head_dim * 4
        # What is held is what is said, and nothing goes before it must.
        assert step.cache_tokens[-1] == np.ceil(sum(held) / layers) and min(held) >= min(read, 1)
        if read <= policy.smallest:
            assert held == [read] * layers


@given(
    layers=st.integers(1, 80),
    budget=st.integers(2, 4096),
    steepness=st.integers(1, 64),
    interval=st.integers(1, 64),
    protected=st.integers(1, 300),
)
@settings(max_examples=300, deadline=None)
def test_pyramids_have_the_mean_that_is_asked_for(layers, budget, steepness, interval, protected):
    assume(protected + interval - 1 <= budget)
    policy = POLICIES["pyramid"](
        budget=budget, sinks=protected // 3, recent=protected - protected // 3, interval=interval, steepness=steepness
    )
    budgets = [policy.budget_of(layer, layers) for layer in range(layers)]
    assert sum(budgets) == budget * layers and budgets == sorted(budgets, reverse=True)
    assert min(budgets) >= policy.smallest >= protected + interval - 1
    assert layers == 1 or min(budgets) == policy.smallest
    assert len({b % interval for b in budgets}) == 1


@pytest.mark.parametrize("layers", [1, 2, 7, 8, 30])
def test_the_pyramid_of_the_issue_keeps_its_budget(layers):
    policy = parse("pyramid:budget=24,sinks=2,recent=4")
    assert sum(policy.budget_of(i, layers) for i in range(layers)) == 24 * layers
    lane = open_lanes(shared("llama", num_hidden_layers=layers), words(60), [policy])[0]
    most = 0
    while not lane.done:
        most = max(most, lane.read(16).cache_tokens.max(), sum(len(c) for c in lane.store.layers) / layers)
    assert most == 24


@pytest.mark.parametrize("floor", [0, 30, 70, 100])
def test_heads_share_one_budget_as_the_plain_algorithm_says(floor):
    """Whatever they hold, and however uneven what they gave."""
    draw, heads, tokens = np.random.default_rng(floor), 3, 30
    for trial in range(24):
        pooling, sinks, interval = ("max", "mean")[trial % 2], trial % 3, 1 + trial % 4
        policy = parse(
            f"adakv:budget=12,recent=3,kernel=3,floor={floor},pooling={pooling},sinks={sinks},interval={interval}"
        )
        kept = [sorted(draw.choice(tokens, n, replace=False).tolist()) for n in draw.permutation((8, 13, 21))]
        gave = np.zeros((heads, tokens, tokens), np.float32)
        gave[:, -3:] = draw.random((heads, 3, tokens)) * draw.permutation((1, 0.6, 0.3))[:, None, None]
        moments = [Moment(gave, *[None] * 5, held, tokens - 1, 0, head) for head, held in enumerate(kept)]
        at, of = np.array(sorted((p, head) for head, held in enumerate(kept) for p in held)).T
        layer = RaggedLayer(
            *[torch.zeros(1, len(at), 1)] * 2,
            torch.tensor(at)[None],
            recent_attention=torch.tensor(gave[of, -3:, at]).T[None],
            own=torch.tensor(of == np.arange(heads)[:, None]),
        )
        evict([layer], policy, [0], tell=False)
        assert [layer.of_head(head)[0].tolist() for head in range(heads)] == shared_out(policy, moments, 12)


def test_cautions_know_when_something_first_leaves():
    for written, tokens, equals in (
        ("pyramid:budget=64", 60, False),
        ("pyramid:budget=64", 9, True),
        ("knorm:budget=64", 60, True),
        ("h2o:budget=64,recent=8", 65, False),
        ("duo:full=50", 100, False),
        ("window:window=60", 60, True),
        ("window:window=60", 61, False),
        ("streaming:sinks=4,window=56", 60, True),
        ("streaming:sinks=4,window=56", 61, False),
        ("streaming:sinks=4,window=56,positions=none", 60, False),
        ("streaming:sinks=0,window=60,positions=none", 60, True),
        ("streaming:sinks=4,window=56,positions=naive", 60, True),
        ("recompute:window=50,stride=11", 50, True),
        ("recompute:window=50,stride=11", 51, False),
        ("window:window=60,knockout=values", 60, False),
        ("window:window=60,softmax=off-by-one", 60, False),
        ("window:window=60,first=newlines", 60, False),
        ("window:window=60,cache=int4", 60, False),
    ):
        assert any("equals dense" in note for note in parse(written).cautions(tokens, None)) is equals


def test_places_beyond_the_trained_length_are_warned_of():
    assert any("positions=cache" in n for n in parse("tova:budget=64").cautions(9000, 8192))
    for written in ("tova:budget=64,positions=cache", "random:budget=256"):
        assert not any("positions=cache" in n for n in parse(written).cautions(9000, 8192))
    assert not any("positions=cache" in n for n in parse("tova:budget=64").cautions(8192, 8192))
    for policy in ("window", "streaming", "recompute"):
        for window, warned in ((8192, False), (8193, True)):
            notes = parse(f"{policy}:window={window}").cautions(None, 8192)
            assert any("longer than the 8192 tokens" in n for n in notes) is warned


@pytest.mark.parametrize("budget", [12, 16, 64, 256, 999])
def test_scissorhands_drops_half_unless_told_otherwise(budget):
    policy = POLICIES["scissorhands"](budget=budget)
    assert policy.interval == max(1, min(budget // 2, budget - 10)) and parse(str(policy)) == policy
    assert POLICIES["scissorhands"](budget=budget, interval=1).interval == 1


@pytest.mark.parametrize(("sinks", "recent", "interval"), [(8, 8, 4), (0, 8, 10), (10, 10, 1)])
def test_scissorhands_never_drops_what_it_protects(sinks, recent, interval):
    assert POLICIES["scissorhands"](budget=20, sinks=sinks, recent=recent).interval == interval


@pytest.mark.parametrize("kernel", [2, 4, 6])
def test_the_kernel_of_snapkv_has_a_middle(kernel):
    assert POLICIES["snapkv"](kernel=kernel + 1).kernel == kernel + 1
    with pytest.raises(ValueError, match=f"kernel must be an odd number, not {kernel}"):
        POLICIES["snapkv"](kernel=kernel)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_numpy_become_those_of_python(name):
    policy = POLICIES[name](budget=np.int64(512), interval=np.int32(16))
    assert policy == POLICIES[name](budget=512, interval=16) and type(policy.budget) is type(policy.interval) is int
    with pytest.raises(ValueError, match=r"budget must be a whole number, not '100\.0'"):
        POLICIES[name](budget=np.float32(100))
