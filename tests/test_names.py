"""No two lanes on a screen have one name, however alike their policies are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.experiments.presets import CHATS, PRESETS
from analysis.palette import briefs, labels
from analysis.policies import POLICIES, Window, parse

STORIES = [story.policies for story in (*PRESETS.values(), *CHATS.values())]


def named(*policies: str) -> tuple[list[str], list[str]]:
    parsed = [parse(p) for p in policies]
    return labels(parsed), briefs(parsed)


@pytest.mark.parametrize("policies", STORIES)
def test_the_lanes_of_a_story_have_their_policies_own_names(policies):
    found, brief = named(*policies)
    assert found == [parse(p).label for p in policies]
    assert len(set(brief)) == len(brief) and all(name for name in brief)


@pytest.mark.parametrize(
    ("policy", "label"),
    [
        ("dense:knockout=values", "Dense, sink values zero"),
        ("window:window=9,softmax=off-by-one,heads=0.1 2.3", "Window 9, softmax off by one in 0.1 2.3"),
        ("streaming:softmax=logit,logit=2.5,first=bos", "Sinks + window 4 + 252, extra logit 2.5, BOS first"),
        ("streaming:positions=text,first=newlines", "Sinks + window 4 + 252, text positions, first tokens newlines"),
        ("streaming:positions=none,first=macbeth", "Sinks + window 4 + 252, sinks without position, first of macbeth"),
        ("streaming:positions=naive,knockout=weights", "Sinks + window 4 + 252, naive positions, sinks unseen"),
        ("recompute:window=9,stride=4", "Recompute 9 / 4"),
        ("duo:positions=cache,sinks=4", "Duo 50 % full, 4 + 256, cache positions"),
        ("duo:scores=heads/of/a model.tsv", "Duo 50 % full, 64 + 256, by heads/of/a model.tsv"),
        (f"duo:scores={'folder/' * 9}{'x' * 40}", f"Duo 50 % full, 64 + 256, by …/{'x' * 32}"),
        ("late:sinks=2", "Late sinks 256, 2 sinks, from 16"),
        ("random:interval=4,sinks=0", "Random 256, no sinks, every 4"),
        ("random:positions=text", "Random 256, text positions"),
    ],
)
def test_a_label_says_the_sizes_and_what_is_bent(policy, label):
    assert parse(policy).label == label


def test_a_lane_that_became_like_another_is_numbered():
    assert named("window:window=128", "dense", "window:window=128", "window:window=128")[0] == [
        "Window 128", "Dense", "Window 128 (2)", "Window 128 (3)",
    ]  # fmt: skip
    assert labels([Window(64), Window(64)], [300, 1]) == ["Window 64 (2)", "Window 64"]
    assert named("dense", "dense") == (["Dense", "Dense (2)"], ["Dense", "Dense (2)"])


def test_settings_that_a_label_leaves_out_are_said_where_they_are_all_that_differs():
    found, brief = named("h2o:budget=128,recent=64", "h2o:budget=128,recent=32", "h2o:budget=64,recent=32")
    assert found == ["Heavy hitters 128, recent 64", "Heavy hitters 128, recent 32", "Heavy hitters 64"]
    assert len(set(brief)) == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*sorted({p for of in STORIES for p in of}), *sorted(POLICIES)]), max_size=6))
def test_no_two_lanes_share_a_name(policies):
    for found in named(*policies):
        assert len(set(found)) == len(policies)
