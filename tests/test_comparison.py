"""Laws of comparing runs: equal to a naive reference, and never over tokens that are not the same."""

import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import metrics
from analysis.cli.chat import spoken
from analysis.engine.step import Step
from analysis.figures import parse as parse_figure
from analysis.policies import parse
from analysis.runs.comparison import compare, grid_difference
from analysis.runs.run import Run
from analysis.runs.spec import Sampling, Spec
from analysis.runs.summary import shared_tokens, summarize
from app.panels.run_comparison import HEADER, written


def run_of(ids, policies=("dense",), seed: int = 0, first: int = 7, heads=(2, 3)) -> Run:
    """A run whose lanes have read these tokens with NLLs of chance."""
    run, rng = Run(Spec("embedded", "hamlet", policies), first), np.random.default_rng(seed)
    for lane, policy in enumerate(policies):
        for start in range(1, len(ids) + 1, 100):
            part = np.asarray(ids[start - 1 : start + 99], np.int32)
            mass, nll = rng.random((*heads, len(part)), np.float32), rng.random(len(part), np.float32)
            kept = np.full(len(part), 5)
            run.append(Step(lane, parse(policy), start, part, nll, kept.astype(np.int32), kept * 96, 0.1, mass, None))
    return run


IDS = np.random.default_rng(1).integers(0, 90, 700)


def naive(a: Run, b: Run) -> tuple[int, float]:
    """Shared tokens and excess of b's first lane over a's, token by token."""
    total, count = 0.0, 0
    first, second = (r.tracks[0] for r in (a, b))
    if a.first_token != b.first_token:
        return 0, math.nan
    pairs = zip(first.token_ids.view(), second.token_ids.view(), first.nll.view(), second.nll.view(), strict=False)
    for x, y, p, q in pairs:
        if x != y:
            break
        total, count = total + float(q) - float(p), count + 1
    return count, total / count if count else math.nan


def changed(at: int) -> np.ndarray:
    ids = IDS.copy()
    ids[at] += 1
    return ids


@pytest.mark.parametrize(
    "other",
    [
        run_of(IDS, seed=2), run_of(IDS[:300], seed=2), run_of(changed(0), seed=2), run_of(changed(450), seed=2),
        run_of(changed(699), seed=2), run_of(IDS, seed=2, first=8), run_of(IDS[:0]), run_of(IDS[:1], seed=2),
    ],
)  # fmt: skip
def test_excess_over_shared_tokens_equals_naive_reference(other):
    first = run_of(IDS)
    found = compare([first, other], ["a", "b"]).lanes[1]
    count, excess = naive(first, other)
    assert found.shared == count == shared_tokens(other, 0, first, 0)
    assert found.excess == pytest.approx(excess, abs=1e-9, nan_ok=True)
    means = (other.tracks[0].nll.view() - 0.0)[: count // 256 * 256] - first.tracks[0].nll.view()[: count // 256 * 256]
    blocks = [np.mean(b, dtype=np.float64) for b in np.split(means, count // 256)] if count >= 256 else []
    error = np.std(blocks, ddof=1) / math.sqrt(len(blocks)) if len(blocks) > 1 else math.nan
    assert found.error == pytest.approx(error, abs=1e-7, nan_ok=True)


def test_same_tokens_are_compared_and_others_are_not():
    first, shorter, other, bos = run_of(IDS), run_of(IDS[:300], seed=3), run_of(changed(450)), run_of(IDS, first=9)
    both = compare([first, shorter], ["a", "b"])
    assert both.mode == "relative" and "same tokens" in both.why
    ends, values = both.curve(both.lanes[1])
    assert ends[-1] == 300
    last = slice(300 - metrics.ROLL, 300)
    wanted = np.mean(shorter.tracks[0].nll.view()[last] - first.tracks[0].nll.view()[last], dtype=np.float64)
    assert values[-1] == pytest.approx(wanted, abs=1e-6)
    assert not np.abs(both.curve(both.lanes[0])[1]).any()
    apart = compare([first, shorter, other], ["a", "b", "c"])
    assert apart.mode == "rolling" and apart.why.startswith("c has other tokens than a from token 451 on")
    assert [lane.shared for lane in apart.lanes] == [len(first.tracks[0].nll), 300, 450]
    assert compare([first, bos], ["a", "b"]).why.startswith("b has other tokens than a from the first one on")


def conversation() -> Run:
    """A run whose lanes have the same 50 tokens after the first one, and then each its own: the second costs more."""
    run = Run(Spec("embedded", "x", ("dense", "dense")), 7)
    for lane, ids in enumerate((IDS[:100], changed(50)[:100])):
        nll, zeros = lane * np.arange(100) / 50, np.zeros(100)
        mass = np.zeros((2, 3, 100), np.float32)
        args = (ids.astype(np.int32), nll.astype(np.float32), zeros.astype(np.int32), zeros.astype(np.int64))
        run.append(Step(lane, parse("dense"), 1, *args, 0.1, mass, None))
    return run


def test_lanes_of_a_conversation_that_answer_differently_are_not_compared():
    first, second = conversation(), conversation()
    found = compare([first, second], ["a", "b"])
    assert found.mode == "rolling" and found.why.startswith("Lanes of a have read tokens of their own")
    assert [lane.shared for lane in found.lanes] == [100, 50, 100, 50]


def test_lanes_of_a_conversation_are_compared_over_what_both_have_read_alone():
    run, wanted = conversation(), np.arange(50).mean() / 50
    first, second = summarize(run)
    assert first.excess_text == "reference" and second.excess == pytest.approx(wanted)
    data = parse_figure("perplexity:mode=relative").numbers(run)
    assert data["token"][data["lane"] == 1].max() == 50 and data["token"][data["lane"] == 0].max() == 100
    assert data["perplexity"][data["lane"] == 1][-1] == pytest.approx(np.exp(wanted))
    assert replace(second, excess=-1e-9).excess_text == "+0.0000"
    run.tracks[1].token_ids.view()[0] += 1
    assert summarize(run)[1].excess_text == "–"


def test_run_that_has_read_nothing_is_no_reference():
    early = run_of(IDS, ("dense", "window:window=8"))
    early.tracks[0].truncate(1)
    for none in (run_of(IDS[:0]), early):
        with pytest.raises(ValueError, match=r"the first lane of the first run has read nothing yet.*choose another"):
            compare([none, run_of(IDS)], ["a", "b"])
    assert compare([run_of(IDS), run_of(IDS[:0])], ["a", "b"]).lanes[1].shared == 0


@pytest.mark.parametrize("early", [0, 1])
def test_a_lane_that_has_read_nothing_has_no_tokens_of_its_own(early):
    runs = [run_of(IDS, ("dense", "window:window=8"), seed=seed) for seed in (0, 3)]
    runs[early].tracks[1].truncate(1)
    found = compare(runs, ["a", "b"])
    assert found.mode == "relative" and "same tokens" in found.why
    assert [len(found.curve(lane)[0]) > 0 for lane in found.lanes] == [True, early == 1, True, early == 0]


def test_grids_differ_head_by_head_where_shapes_agree():
    first, second = run_of(IDS, ("dense", "window:window=8")), run_of(IDS[:250], seed=5)
    found = grid_difference(first, 1, second, 0)
    for layer, head in np.ndindex(2, 3):
        means = []
        for track in (first.tracks[1], second.tracks[0]):
            sums = [m[layer, head] * (b - a) for m, (a, b) in zip(track.sink_mass, track.spans, strict=True)]
            means.append(sum(sums) / len(track.nll))
        assert found[layer, head] == pytest.approx(means[0] - means[1], abs=1e-6)
    with pytest.raises(ValueError, match="2 layers of 3 heads, and 4 layers of 3 heads"):
        grid_difference(first, 0, run_of(IDS, heads=(4, 3)), 0)


def spoken_rows(policies: tuple[str, ...], roles: np.ndarray) -> list[list[str]]:
    """The table of a conversation in which a lane reads with one policy after the other."""
    run, count = Run(Spec("embedded", "x", policies[:1], sampling=Sampling()), 7), len(roles)
    for start, policy in enumerate(policies if count else ()):
        zeros, mass = np.zeros(count), np.zeros((2, 3, count), np.float32)
        args = (
            IDS[:count].astype(np.int32),
            np.ones(count, np.float32),
            zeros.astype(np.int32),
            zeros.astype(np.int64),
        )
        run.append(Step(0, parse(policy), 1 + start * count, *args, 0.1, mass, roles.astype(np.int8)))
    return [list(column.cells) for column in spoken(run).columns]


def test_the_table_of_a_conversation_calls_a_switched_lane_by_all_its_policies():
    """Its perplexity is not that of the policy that it began with."""
    name, tokens, *_ = spoken_rows(("window:window=8", "dense"), np.full(20, 2))
    assert (name, tokens) == (["Window 8 → Dense"], ["41"])


@pytest.mark.parametrize(("count", "read"), [(0, "0"), (20, "21")])
def test_a_lane_that_has_answered_nothing_has_read_its_first_token_too(count, read):
    _, tokens, answered, perplexity, *_ = spoken_rows(("dense",), np.zeros(count))
    assert (tokens, answered, perplexity) == ([read], ["0"], ["–"])


def test_the_table_of_a_comparison_is_read_as_it_is_meant():
    row = ["=a, Dense", "1e5, float32", "65,536", "1,234.5678", "4,096", "-0.1234", "–", "6 in 1,024 slots", "2,048.1"]
    found = pd.read_csv(io.StringIO(written([row])))
    assert found.columns.tolist() == list(HEADER)
    assert found.iloc[0].tolist() == [
        "'=a, Dense", "1e5, float32", 65536, 1234.5678, 4096, -0.1234, "–", "6 in 1024 slots", 2048.1,
    ]  # fmt: skip
