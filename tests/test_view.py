"""What an address says of a view is what the view was, and lanes from anywhere are compared with what they mean."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.experiments.presets import CHATS, PRESETS, reference_of
from analysis.runs.screen import STRIP
from app.view import GRIDS, MODES, PAINTS, ChatView, View

LANES = ["dense", "window:window=128", "streaming:sinks=4,window=124", "random:budget=128,interval=16"]
MANY = st.lists(st.sampled_from(LANES), min_size=1, max_size=6)


@pytest.mark.parametrize("story", PRESETS.values(), ids=PRESETS)
def test_the_lanes_of_a_story_mean_its_reference(story):
    assert reference_of(story.policies) == story.reference == View.of(story.policies).reference
    assert View.of(story.policies).chosen == story.reference


@pytest.mark.parametrize(
    ("lanes", "reference"),
    [
        (["window:window=64", "streaming:sinks=4,window=60"], 1),
        (["streaming:sinks=4,window=60", "streaming:sinks=8,window=56", "dense"], 1),
        (["dense", "window:window=64"], 0),
        (["random:budget=128,interval=16", "dense"], 0),
        (["streaming:sinks=4,window=60", "streaming:sinks=4,window=60,knockout=values"], 0),
        (["dense", "streaming:sinks=4,window=60,knockout=values"], 1),
        (["window:window=64", "streaming:sinks=0,window=64"], 0),
        (["dense"], 0),
    ],
)
def test_other_lanes_are_compared_with_the_last_that_has_sinks_and_a_window(lanes, reference):
    assert reference_of(lanes) == reference


@settings(max_examples=60, deadline=None)
@given(MANY, st.data())
def test_an_address_says_a_view_and_nothing_that_lanes_mean_anyway(lanes, data):
    one = st.integers(0, len(lanes) - 1)
    head = data.draw(st.none() | st.tuples(st.integers(0, 99), st.integers(0, 31)))
    paint, mode = data.draw(st.sampled_from(PAINTS)), data.draw(st.sampled_from(MODES))
    grid = data.draw(st.sampled_from(GRIDS))
    first, many = data.draw(st.integers(0, 9999)), data.draw(st.integers(0, STRIP))
    mark = (first, first + many) if many else None
    view = View(mode, paint, data.draw(one), data.draw(one), head, tuple(lanes), grid, mark).possible()
    assert View.of(lanes, view.link()) == view
    assert View.of(lanes).link() == {}


def test_one_lane_alone_opens_on_rolling_since_it_has_none_to_be_compared_with():
    assert View.of(["dense"], {"mode": "KL"}).mode == View.of(["dense"], {"mode": "top-1"}).mode == "rolling"
    assert View.of(["dense"]).mode == View.of(["dense"], {"mode": "relative"}).mode == "rolling"
    assert View.of(["dense"], {"mode": "cumulative"}).mode == "cumulative"
    assert View.of(LANES).mode == "relative"


@pytest.mark.parametrize(
    ("lanes", "asked", "why"),
    [
        (["dense"], {"mode": "KL"}, "mode is KL, which compares lanes, and there is one"),
        (LANES, {"paint": "attention"}, "paint is attention, and no head is named whose attention it is"),
    ],
)
def test_an_address_that_is_shown_otherwise_than_it_asks_is_told_so(lanes, asked, why):
    assert View.linked(lanes, asked)[1] == [why]
    assert View.linked(LANES, {**asked, "head": "20.3"})[1] == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"mode": "<b>"}, "mode must be one of relative, rolling, cumulative, KL, top-1, not '<b>'"),
        ({"grid": "red"}, "grid must be one of sink mass, output error, not 'red'"),
        ({"paint": "red"}, "paint must be one of"),
        ({"reference": "4"}, "reference must be a whole number from 0 to 3, not '4'"),
        ({"reference": "²"}, "reference must be a whole number"),
        ({"shown": "-1"}, "shown must be a whole number"),
        ({"shown": "9" * 400}, "shown must be a whole number"),
        ({"head": "20"}, "head must be written layer.head, such as 20.3, not '20'"),
        ({"head": "20.3.1"}, "head must be written"),
        ({"head": "99999999999.1"}, "head must be written"),
        ({"mark": "120"}, "mark must be written first.end in tokens, such as 120.135, not '120'"),
        ({"mark": "135.135"}, "mark must be 1 to 360 tokens long, not 0"),
        ({"mark": "9.5"}, "mark must be 1 to 360 tokens long, not -4"),
        ({"mark": "0.2147483647"}, "mark must be 1 to 360 tokens long"),
    ],
)
def test_what_cannot_be_seen_is_one_sentence(asked, said):
    with pytest.raises(ValueError, match=said[:30]) as e:
        View.of(LANES, asked)
    assert said in str(e.value) and len(str(e.value)) < 160
    if {"mode", "paint", "grid", "reference", "mark"}.isdisjoint(asked):
        with pytest.raises(ValueError, match=said[:30]):
            ChatView.of(LANES, asked)


@settings(max_examples=60, deadline=None)
@given(MANY, MANY, st.data())
def test_a_view_follows_lanes_that_come_and_go(before, lanes, data):
    one = st.integers(0, len(before) - 1)
    view = View.of(before)
    view.reference, view.chosen = data.draw(one), data.draw(one)
    was = before[view.reference], before[view.chosen]
    view.follow(lanes)
    assert 0 <= view.reference < len(lanes) and 0 <= view.chosen < len(lanes)
    if was[0] in lanes:
        assert lanes[view.reference] == was[0]
    elif len(lanes) != len(before):
        assert view.reference == reference_of(lanes)
    if was[1] in lanes:
        assert lanes[view.chosen] == was[1]
    assert view.mode == ("rolling" if len(lanes) == 1 else "relative")


def test_an_address_says_what_is_looked_at_in_a_conversation():
    lanes = CHATS["three"].policies
    for view in (ChatView(), ChatView(2, (20, 3)), ChatView(1, (1, 0), (1, 55))):
        assert ChatView.of(lanes, view.link()) == view
    with pytest.raises(ValueError, match="token must be a whole number"):
        ChatView.of(lanes, {"token": "1e9"})
