"""A frame says what the run knows, in bytes that a browser can take apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import metrics
from analysis.figures import parse as parse_figure
from analysis.policies import parse
from analysis.runs.codec import LEVELS, levels_of
from analysis.runs.screen import SINK_TOKENS, marks
from app.frames.atlas import levels
from app.frames.lanes import offers
from app.frames.reading import FIRST, PACES, ROLL, ReadingSender
from app.jobs.registry import Registry
from app.view import MODES, PAINTS, View

from .recordings import FOUR, decoded, live_frame, made_up
from .test_jobs_reading import POLICIES, begin
from .waiting import until

COMPONENTS = Path(__file__).parents[1] / "app" / "components"


def finished(registry, model):
    run = begin(registry, model, count=700)
    until(run, lambda: run.status == "finished")
    return run


@pytest.fixture(scope="module")
def run(model):
    """One for all who only look.  Who changes it takes `own`."""
    registry = Registry()
    yield finished(registry, model)
    registry.close()


@pytest.fixture
def own(registry, model):
    return finished(registry, model)


def test_curves_are_the_metrics(run):
    head, arrays = decoded(ReadingSender().frame(run, View(reference=2)))
    nll = [t.nll.view().astype(np.float64) for t in run.run.tracks]
    for lane in range(4):
        for x, y in zip(arrays[f"x{lane}"].astype(int), arrays[f"y{lane}"], strict=True):
            begin_ = max(0, x - ROLL)
            expected = np.exp((nll[lane][begin_:x] - nll[2][begin_:x]).mean())
            assert y == pytest.approx(expected, rel=1e-4)
        assert arrays[f"x{lane}"][0] == FIRST
        assert arrays[f"x{lane}"][-1] == 699
    mean, error = metrics.excess(nll[1], nll[2])
    assert head["lanes"][1]["excess"] == pytest.approx(mean)
    assert head["lanes"][1]["error"] == pytest.approx(error)
    assert head["lanes"][2]["relative"] is None


def test_head_of_another_model_is_let_go_and_ends_no_run(run):
    assert run.map(0, 29, 8) is run.map(0, 2, -1) is None
    view = View(head=(29, 8))
    head, _ = decoded(ReadingSender().frame(run, view))
    assert view.head is None and head["status"] == "finished" and run.working


@pytest.mark.parametrize(("mode", "start"), [("rolling", 699 - ROLL), ("cumulative", 0)])
def test_perplexity_drawn_is_that_of_the_chosen_mode(run, mode, start):
    _, arrays = decoded(ReadingSender().frame(run, View(mode=mode)))
    assert arrays["y0"][-1] == pytest.approx(metrics.perplexity(run.run.tracks[0].nll.view()[start:]), rel=1e-4)


def test_what_was_not_measured_is_not_drawn(run):
    for mode in ("KL", "top-1"):
        head, arrays = decoded(ReadingSender().frame(run, View(mode=mode, grid="output error")))
        assert not head["measured"] and "grid" not in arrays and not len(arrays["y0"])


def test_fidelity_drawn_is_that_of_the_track():
    run = made_up(700, fidelity=True)
    for mode, name, unit in (("KL", "kl", 1), ("top-1", "agree", 100)):
        head, arrays = decoded(live_frame(run, 700, View(mode=mode, chosen=1, grid="output error")))
        assert head["measured"] and head["grid"] == "output error"
        known = getattr(run.tracks[1], name).view()[-ROLL:]
        assert arrays["y1"][-1] == pytest.approx(unit * np.nanmean(known), rel=1e-5)
        track = run.tracks[1]
        whole = [k for k in (-3, -2, -1) if not np.isnan(track.output_error[k]).any()]
        sizes = [track.spans[k][1] - track.spans[k][0] for k in whole]
        expected = np.average([track.output_error[k] for k in whole], axis=0, weights=sizes)
        np.testing.assert_allclose(arrays["grid"], expected, rtol=1e-6)


def test_a_chunk_that_was_not_measured_leaves_the_grid_of_the_others():
    run = made_up(700, fidelity=True)
    track = run.tracks[1]
    for chunk, known in ((-1, 0.5), (-2, np.nan), (-3, 2.0)):
        track.output_error[chunk][:] = known
    track.output_error[-1][0, 0] = track.output_error[-3][0, 0] = np.nan
    view = View(chosen=1, grid="output error")
    _, arrays = decoded(live_frame(run, 700, view))
    last, _, first = (stop - start for start, stop in track.spans[:-4:-1])
    expected = np.full((3, 4), (0.5 * last + 2 * first) / (last + first))
    expected[0, 0] = np.nan
    np.testing.assert_allclose(arrays["grid"], expected, rtol=1e-6)


def test_grid_map_and_text_are_of_the_chosen_lane(run):
    view = View(chosen=2, head=(1, 3), paint="attention")
    until(run, lambda: run.map(2, 1, 3) is not None)
    head, arrays = decoded(ReadingSender().frame(run, view))
    drawn = run.map(2, 1, 3)
    assert arrays["grid"].shape == (3, 4)
    assert head["map"]["first"] == drawn.first
    assert head["tokens"] == run.pieces[head["tokens_start"] : 700]
    np.testing.assert_array_equal(arrays["map"] == 0, np.isnan(drawn.weights))
    np.testing.assert_array_equal(arrays["map"], levels_of(drawn.weights))


def test_a_sink_without_a_token_has_a_column_where_there_is_one(run, monkeypatch):
    view = View(chosen=2, head=(1, 3))
    until(run, lambda: run.map(2, 1, 3) is not None)
    drawn = run.map(2, 1, 3)
    assert "map_extra" not in decoded(ReadingSender().frame(run, view))[1]
    given = np.linspace(0.2, 0.4, len(drawn.weights), dtype=np.float32)
    # Of other tokens, since a frame that was made is sent again.
    monkeypatch.setattr(run, "map", lambda *_: replace(drawn, first=drawn.first - 7, learned=given))
    head, arrays = decoded(ReadingSender().frame(run, view))
    np.testing.assert_array_equal(arrays["map_extra"], levels_of(given)[:, None])
    assert head["map"]["note"] == "30 % to the extra sink"


def test_marked_tokens_are_on_screen_as_far_as_they_are_read_wherever_the_text_is():
    run = made_up(700)
    for read, mark, shown in ((700, (4, 9), 5), (700, (600, 640), 40), (620, (600, 640), 20), (500, (600, 640), 0)):
        head, _ = decoded(live_frame(run, read, View(mark=mark)))
        assert head["mark"] == list(mark)
        assert head["marked"] == run.pieces[0][mark[0] : mark[1]][:shown]


def test_attention_received_is_attention_or_nothing(run, monkeypatch):
    """Also before its map is there, as after a visit to another page, and where the map is older or newer than the text
    on screen."""
    view = View(chosen=2, head=(1, 3), paint="attention")
    until(run, lambda: run.map(2, 1, 3) is not None)
    drawn = run.map(2, 1, 3)
    for shown in (None, drawn, replace(drawn, first=drawn.first - 40), replace(drawn, first=drawn.first + 40)):
        monkeypatch.setattr(run, "map", lambda *_, shown=shown: shown)
        head, arrays = decoded(ReadingSender().frame(run, view))
        wanted = np.full(len(head["tokens"]), np.nan, np.float32)
        for i, at in enumerate(range(head["tokens_start"], head["tokens_start"] + len(wanted))):
            if shown is not None and 0 <= at - shown.first < len(shown.weights):
                wanted[i] = shown.received()[at - shown.first]
        np.testing.assert_array_equal(arrays["token_values"], wanted)
        assert np.isnan(wanted).all() == (shown is None)


def test_coded_weights_are_exact_to_a_thousandth():
    weights = np.logspace(-6, 0, 1000, dtype=np.float32)
    level = levels_of(weights).astype(np.float64)
    np.testing.assert_allclose(10 ** (-6 * (1 - (level - 1) / 65534)), weights, rtol=1e-3)


def test_a_weight_that_rounding_made_larger_than_one_is_one():
    """And not a level beyond the last, which comes out as one of the first: a strong sink as evicted."""
    weights = np.array([[1.0, 1.0000002, 1.5, 40.0, np.nan, 0.0]], np.float32)
    assert levels_of(weights).tolist() == [[65535, 65535, 65535, 65535, 0, 1]]
    assert levels(weights, "weights", 0, 1).tolist() == levels_of(weights).tolist()


def test_caches_that_fill_and_switches_are_marked(own):
    own.run.event("switch", lane=1, position=300, policy="dense", how="")
    head, _ = decoded(ReadingSender().frame(own, View()))
    assert {"x": 16, "text": "caches full", "kind": "full"} in head["marks"]
    assert {"x": 300, "text": "Dense", "kind": "switch", "lane": 1} in head["marks"]
    # Of two switches before anything was read the first has left nothing to see.
    own.run.event("switch", lane=1, position=300, policy="window:window=8", how="")
    marks = [m["text"] for m in decoded(ReadingSender().frame(own, View()))[0]["marks"] if m["kind"] == "switch"]
    assert marks == ["Window 8"]


def test_a_cache_is_full_where_its_own_lane_let_it_fill():
    window, dense = "window:window=64", "dense"
    switches = {1: (30, dense), 2: (30, "window:window=100"), 3: (50, "window:window=80"), 4: (50, "window:window=16")}
    run = made_up(300, (window, window, window, dense, dense, FOUR[2], window), ends={6: 60}, switches=switches)
    at = [64, None, 100, 80, None, None, None]
    assert [track.full_at for track in run.tracks] == at
    assert [m["x"] for m in marks(run, 300) if m["kind"] == "full"] == [64, 100, 80]
    data = parse_figure("perplexity:mode=rolling").numbers(run)
    full = data["mark"] == "full"
    assert dict(zip(data["lane"][full].tolist(), data["token"][full].tolist(), strict=True)) == {0: 64, 2: 100, 3: 80}


def test_the_past_of_a_switched_lane_keeps_its_name_and_no_two_lanes_share_one(own):
    track = own.run.tracks[1]
    track.policies += [(300, "streaming:sinks=4,window=12"), (500, "dense")]
    own.snapshot = own.take_snapshot()
    lanes = decoded(ReadingSender().frame(own, View()))[0]["lanes"]
    assert [lane["label"] for lane in lanes] == ["Dense", "Dense (2)", "Sinks + window 4 + 12", "Recompute 16 / 4"]
    assert lanes[1]["past"] == [[1, 300, "Window 16"], [300, 500, "Sinks + window 4 + 12"]]
    assert [lanes[i]["past"] for i in (0, 2, 3)] == [[], [], []]
    assert len({lane["brief"] for lane in lanes}) == 4


def test_a_frame_before_anything_was_read_shows_the_lanes():
    head, arrays = decoded(ReadingSender().empty([parse(p) for p in POLICIES], View(), 20, "a note"))
    assert head["lanes"][0]["label"] == "Dense"
    assert head["note"] == "a note"
    assert arrays == {}


def test_what_script_and_python_share_is_sent_and_stands_in_no_script():
    head, _ = decoded(ReadingSender().empty([parse(p) for p in POLICIES], View(), 20, ""))
    shared = head["constants"]
    assert dict(shared["paces"]) == PACES and shared["modes"] == list(MODES) and shared["paints"] == list(PAINTS)
    assert shared["levels"] == LEVELS and shared["sink_tokens"] == SINK_TOKENS
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in COMPONENTS.glob("*/*.js"))
    for number in (str(LEVELS["top"]), str(LEVELS["top"] - 1), "1e-6", 'tokens/s"]', '"cumulative"]', "first 4 tokens"):
        assert number not in scripts, number
    weights = np.array([1e-6, 0.003, 1.0], np.float32)
    level = levels_of(weights).astype(float)
    floor, top = shared["levels"]["floor"], shared["levels"]["top"]
    np.testing.assert_allclose(floor ** (1 - (level - 1) / (top - 1)), weights, rtol=1e-3)


def test_one_press_takes_the_sinks_away_and_brings_them_back():
    (drop,), (back,) = offers(parse("streaming:sinks=4,window=12")), offers(parse("window:window=16"))
    assert (drop["policy"], drop["pin"]) == ("window:window=16", False)
    assert (back["policy"], back["pin"]) == ("streaming:sinks=4,window=12,positions=cache", True)
    assert not offers(parse("window:window=4")) and not offers(parse("dense"))
    # What else was changed about a lane stays; where that cannot be, nothing is offered.
    (drop,) = offers(parse("streaming:sinks=4,window=60,block=8,cache=int4,exact=4"))
    (back,) = offers(parse(drop["policy"]))
    assert parse(drop["policy"]) == parse("window:window=64,block=8,cache=int4,exact=4")
    assert parse(back["policy"]) == parse("streaming:sinks=4,window=60,block=8,cache=int4,exact=4")
    assert not offers(parse("window:window=34,cache=int4"))


def test_the_grid_shows_the_first_tokens_that_the_engine_sums_up():
    from analysis.engine import stream

    assert stream.SINK_TOKENS == SINK_TOKENS
