"""Laws of values that are merged into what stays.  The rule itself is in published.py and in test_published.py."""

import numpy as np
import pytest
import torch

from analysis.engine.stream import open_lanes
from analysis.policies import parse
from analysis.policies.ranked import LayerState

from .families import words
from .published import lot, merging
from .reading import read
from .switching import beside, check_held, read_both, switch_both


@pytest.mark.parametrize(
    ("leaving", "block"), [(1, 1), (3, 1), (64, 1), (65, 1), (150, 1), (194, 1), (64, 4), (128, 4), (188, 4), (64, 64)]
)
def test_many_that_leave_together_leave_one_after_the_other(leaving, block):
    policy, slots = parse(f"cam:sinks=5,merge=7,seed=2,block={block}"), 200
    draw, begin = torch.Generator().manual_seed(leaving), policy.allocated(5)
    values = torch.randn(2, slots, 3, generator=draw)
    got = torch.rand(2, slots, generator=draw)
    positions = torch.arange(slots).expand(2, -1)
    state = LayerState(values, values, positions, got, None, layer=1)
    leaves = policy.order([state])[:, :leaving]
    before, merged = values.clone(), policy.merged(values, state, leaves)
    assert torch.equal(values, before), "tensors are never written into"
    stays = torch.ones(slots, dtype=torch.bool)
    stays[begin : begin + leaving] = False
    for head in range(2):
        expected, draws = values[head].double(), [lot(j, 1, head, 2) for j in range(slots)]
        for i, following in merging(policy, got[head].tolist(), draws, leaves[head].tolist()):
            expected[list(following)] += expected[i] / 7
        torch.testing.assert_close(merged[head, stays].double(), expected[stays], atol=1e-5, rtol=1e-5)


def test_what_certainly_merges_is_not_lost():
    """Where all that leave got more attention than what follows, the sum of all values stays what it was."""
    policy, slots = parse("cam:sinks=2,merge=4"), 40
    values, got = torch.randn(3, slots, 5), torch.linspace(2, 1, slots).expand(3, -1)
    state = LayerState(values, values, torch.arange(slots).expand(3, -1), got, None, layer=0)
    leaves = policy.order([state])[:, :20]
    merged = policy.merged(values, state, leaves)
    torch.testing.assert_close(merged[:, [0, 1, *range(22, 40)]].sum(1), values.sum(1), atol=1e-4, rtol=1e-4)


def test_slots_are_those_of_sinks_and_a_window(tiny_llama):
    tokens = words(90)
    merging, plain = (read(tiny_llama, tokens, p) for p in ("cam:budget=20,sinks=4", "streaming:sinks=4,window=16"))
    assert merging.lane.store.layers[0].positions[0].tolist() == [*range(4), *range(73, 89)]
    np.testing.assert_allclose(merging.nll[:20], plain.nll[:20], atol=1e-5)
    assert abs(merging.nll[21:] - plain.nll[21:]).min() < 0.1 < abs(merging.nll[21:] - plain.nll[21:]).max()


def test_a_seed_is_the_same_reading(tiny_llama):
    one, again, other = (read(tiny_llama, words(60), f"cam:budget=16,seed={seed}").nll for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("positions", ["cache", "text"])
def test_merged_values_go_along_when_a_lane_switches(positions, block, tiny_llama):
    lane = open_lanes(tiny_llama, words(300), [parse("dense")], history=64)[0]
    reference = beside(lane)
    read_both(lane, reference, 100)
    cam = parse(f"cam:budget=24,interval=3,merge=5,positions={positions},block={block}")
    for policy in (cam, parse("h2o:budget=24,recent=5"), cam, parse("window:window=30"), cam, parse("dense")):
        switch_both(lane, reference, policy)
        read_both(lane, reference, 25, chunk=7)
        check_held(lane, reference)
