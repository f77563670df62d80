"""A verdict says of each policy and budget what its cells say, and tells policies apart by tests of pairs."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from analysis import texts
from analysis.engine.stream import stream
from analysis.experiments.recall.cells import Row
from analysis.experiments.verdict import Plan, entries, listed, read_verdict, sentence, table, verdict
from analysis.figures.pareto import Pareto
from analysis.models.loading import load
from analysis.policies import POLICIES
from analysis.policies import parse as policy
from analysis.runs.spec import Spec

from .test_recall import place
from .verdicts import VERDICT

__all__ = ["place"]
change = msgspec.structs.replace


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("budget", [64, 128, 300])
def test_a_policy_at_a_budget_holds_so_much_and_is_otherwise_the_same(name, budget):
    own = POLICIES[name](interval=2, knockout="values") if POLICIES[name].store == "ranked" else POLICIES[name]()
    if own.capacity is None:
        with pytest.raises(ValueError, match="it has no budget: compare without it"):
            own.at_budget(budget)
        return
    made = own.at_budget(budget)
    assert made.capacity == budget and type(made) is type(own)
    sizes = {"window", "budget", "recent"}
    assert {k: v for k, v in vars(made).items() if k not in sizes} == {
        k: v for k, v in vars(own).items() if k not in sizes
    }


def test_the_halves_of_heavy_hitters_stay_halves():
    assert [policy("h2o").at_budget(b).recent for b in (64, 128, 512)] == [32, 64, 256]
    assert [policy("snapkv").at_budget(b).recent for b in (64, 128, 512)] == [16, 32, 32]
    assert policy("h2o:recent=1").at_budget(64).recent == 1


def test_half_of_a_budget_leaves_at_a_time_under_scissorhands_unless_said():
    assert [policy("scissorhands").at_budget(b).interval for b in (64, 256, 512)] == [32, 128, 256]
    assert [policy("scissorhands:interval=16").at_budget(b).interval for b in (64, 256, 512)] == [16] * 3
    assert policy(str(policy("scissorhands"))).at_budget(64) == policy("scissorhands:budget=64")


def test_no_more_than_is_not_protected_leaves_at_a_time_under_scissorhands():
    assert policy("scissorhands:budget=16,recent=10").interval == 6
    assert policy("scissorhands").at_budget(16).interval == 8
    assert policy("scissorhands:recent=4,sinks=9").at_budget(16).interval == 3


def test_a_budget_that_protected_tokens_fill_is_refused():
    for name in ("streaming:sinks=64", "recompute:stride=64", "duo:full=0"):
        with pytest.raises(ValueError, match="choose a larger budget"):
            policy(name).at_budget(60)


def test_settings_belong_to_the_name_before_them():
    assert listed(["window,streaming:sinks=4,positions=text, h2o:interval=4", "random"]) == [
        "window", "streaming:sinks=4,positions=text", "h2o:interval=4", "random",
    ]  # fmt: skip
    assert listed(["perplexity,streameval:back=40,passkey"]) == ["perplexity", "streameval:back=40", "passkey"]
    assert listed(["", " , "]) == []


@pytest.fixture(scope="module")
def compared(model, text, tmp_path_factory):
    """A finished comparison of the tiny model on random tokens, by the command's own way."""
    from analysis.experiments import grid

    spec = Spec(model, text, ("dense",), 600, device="cpu")
    plan = Plan(spec, ("window", "streaming:sinks=2", "dense"), (64, 32), ("perplexity",), (text,), (), ())
    out = tmp_path_factory.mktemp("compared")
    list(grid.run(plan.cells, out))
    return plan, out


def test_each_entry_says_what_its_policy_does_on_the_same_tokens(compared, model, text):
    plan, out = compared
    found = verdict(plan, out)
    network, ids = load(model, device="cpu"), texts.tokenize(texts.read(text), None, limit=600)
    read = {e.policy: e for e in found.entries}
    assert list(read) == [
        "dense", "window:window=32", "window:window=64",
        "streaming:sinks=2,window=30,positions=cache", "streaming:sinks=2,window=62,positions=cache",
    ]  # fmt: skip
    nll = {p: np.concatenate([s.nll for s in stream(network, ids, [policy(p)])]).astype(float) for p in read}
    for p, e in read.items():
        assert e.tokens == 599 and e.perplexity == pytest.approx(np.exp(nll[p].mean()), rel=1e-6)
        assert e.excess == pytest.approx((nll[p] - nll["dense"]).mean(), abs=1e-6)
        blocks = (nll[p] - nll["dense"])[:512].reshape(2, 256).mean(1)
        assert e.error == pytest.approx(blocks.std(ddof=1) / math.sqrt(2), abs=1e-6)
        assert e.megabytes == pytest.approx((e.budget or 600) * network.bytes_per_token / 1e6, rel=0.01)
        assert e.milliseconds is not None and e.milliseconds > 0
    assert found.blocks == 2
    (pair,) = [p for p in found.pairs if p.budget == 64]
    difference = nll[pair.one] - nll[pair.other]
    blocks = difference[:512].reshape(2, 256).mean(1)
    # Student's t with one degree of freedom is Cauchy's distribution.
    t = blocks.mean() / (blocks.std(ddof=1) / math.sqrt(2))
    assert pair.difference == pytest.approx(difference.mean(), abs=1e-6)
    assert pair.p == pytest.approx(1 - 2 * math.atan(abs(t)) / math.pi, abs=1e-4)


def test_kl_and_agreement_are_those_of_a_run_beside_dense(model, text, tmp_path):
    from analysis.experiments import grid

    names = ("window", "random:interval=8")
    plan = Plan(Spec(model, text, ("dense",), 600, device="cpu"), names, (64,), ("kl",), (text,), (), ())
    list(grid.run(plan.cells, tmp_path))
    found, network = verdict(plan, tmp_path), load(model, device="cpu")
    ids = texts.tokenize(texts.read(text), None, limit=600)
    dense = found.entries[0]
    assert (dense.kl, dense.agreement, dense.excess) == (0, 1, 0)
    for e in found.entries[1:]:
        steps = [s for s in stream(network, ids, [policy("dense"), policy(e.policy)], fidelity=True) if s.lane == 1]
        kl, agree = (np.concatenate([getattr(s, name) for s in steps]).astype(float) for name in ("kl", "agree"))
        assert e.kl == pytest.approx(kl.mean(), abs=1e-6) and e.agreement == pytest.approx(agree.mean(), abs=1e-9)
        assert e.kl_error == pytest.approx(np.ptp(kl[:512].reshape(2, 256).mean(1)) / 2, abs=1e-6)
        assert e.kl is not None and e.kl > 0
    assert [p.task for p in found.pairs] == ["perplexity", "kl"]
    header, rows = table(found)
    assert rows[0][header.index("KL")] == "0" and "±" in rows[1][header.index("KL")]
    assert rows[0][header.index("Top-1")] == "100.0 %"
    # Without it they are other cells.
    assert not verdict(replace(plan, tasks=("perplexity",)), tmp_path).entries[1].tokens


def test_what_is_not_finished_is_left_out_and_what_is_there_is_kept(compared, tmp_path):
    plan, out = compared
    assert verdict(plan, tmp_path).entries[0].perplexity is None and not verdict(plan, tmp_path).pairs
    again = replace(plan, policies=(*plan.policies, "random:interval=8"))
    assert [e.tokens for e in verdict(again, out).entries] == [599] * 5 + [0] * 2
    header, rows = table(verdict(again, out))
    assert rows[-1][header.index("Perplexity")] == "–" and "KL" not in header


def test_a_policy_is_told_of_when_it_has_read_all_texts(compared, text, tmp_path):
    """Of one text alone its perplexity would stand beside that of others over both."""
    from analysis.experiments import grid

    plan, out = compared
    more = str(tmp_path / "more.npy")
    np.save(more, np.random.default_rng(1).integers(0, 97, 300))
    both = replace(plan, texts=(more, text))
    assert [e.tokens for e in verdict(both, out).entries] == [0] * 5 and not verdict(both, out).pairs
    assert sentence(verdict(both, out)) == "No policy but dense has been measured yet."
    list(grid.run(both.cells, tmp_path / "o"))
    found, alone = verdict(both, tmp_path / "o").entries, verdict(plan, out).entries
    assert [e.tokens for e in found] == [898] * 5
    # The largest cache is that of the longer text, whichever is read first.
    assert [e.megabytes for e in found] == [e.megabytes for e in alone]
    (tmp_path / "o" / both.readings("window:window=32")[1].name / "seconds.json").unlink()
    found = verdict(both, tmp_path / "o")
    assert [e.tokens for e in found.entries] == [898, 0, 898, 898, 898]
    assert {p.budget for p in found.pairs} == {64}


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ("window:window=1024", "streaming:sinks=4,window=1020", False),
        ("window:window=1023", "streaming:sinks=4,window=1019", True),
        ("window:window=1024", "streaming:sinks=4,window=1020,positions=none", True),
        ("window:window=1024", "window:window=1024,cache=int8", True),
    ],
)
def test_rounding_is_no_difference_of_policies_that_have_evicted_nothing(one, other, differ):
    """A KL divergence is never below zero, so rounding alone is as regular as a small difference."""
    of = {one: np.zeros(1024), other: np.linspace(0.9e-7, 1.1e-7, 1024)}
    read = {p: [SimpleNamespace(text="hamlet", of=lambda _, values=values: values)] for p, values in of.items()}
    difference, p = entries._paired_texts(SimpleNamespace(readings=read), "kl", one, other)
    assert difference == pytest.approx(-1e-7) and (p < 0.05) is differ and (p == 1) is not differ


def test_policies_that_have_evicted_in_one_of_two_texts_may_differ():
    one, other, apart = "window:window=512", "streaming:sinks=4,window=508", np.linspace(0.9e-7, 1.1e-7, 1024)
    for lengths, differ in (((512, 511), False), ((100, 1024), True), ((1024, 100), True)):
        read = {
            p: [SimpleNamespace(text=str(n), of=lambda _, n=n, sign=sign: sign * apart[:n]) for n in lengths]
            for p, sign in ((one, -1), (other, 1))
        }
        _, p = entries._paired_texts(SimpleNamespace(readings=read), "kl", one, other)
        assert (p == 1) is not differ


def test_policies_that_read_every_token_alike_do_not_differ_though_they_evict():
    same = np.linspace(-1, 1, 1024)
    read = {p: [SimpleNamespace(text="hamlet", of=lambda _: same)] for p in ("window:window=64", "streaming:sinks=0")}
    assert entries._paired_texts(SimpleNamespace(readings=read), "perplexity", *read) == (0, 1)


def answers(hits: dict[str, list[bool]]) -> dict[tuple[str, str], list[Row]]:
    """Rows of a task, one for each answer; facts are 10, 110, 210 … tokens back."""
    return {
        ("passkey", p): [
            Row("passkey", p, 512, 5.0, i, 0, hit, 1.0, "1", "1", 100 * i + 10, None if hit else 0, None)
            for i, hit in enumerate(of)
        ]
        for p, of in hits.items()
    }


def recalled(monkeypatch, tmp_path, hits, **alike):
    """A verdict of policies of 64 tokens that answered so; what is `alike` tells no question from another."""
    rows = {key: [msgspec.structs.replace(row, **alike) for row in of] for key, of in answers(hits).items()}
    monkeypatch.setattr(entries, "rows_of", lambda cells, _: rows.get((cells[0].task, cells[0].spec.policies[0]), []))
    spec = Spec("tiny", "passkey", ("dense",))
    plan = Plan(spec, ("window", "random:recent=16"), (64,), ("passkey",), ("hamlet",), (512,), (5.0,))
    assert [*plan.members] == ["dense", "window:window=64", *[p for p in hits if p.startswith("random")]]
    return verdict(plan, tmp_path)


def test_recall_is_of_what_dense_recalls_and_pairs_are_mcnemars(monkeypatch, tmp_path):
    chance = str(policy("random:recent=16").at_budget(64))
    found = recalled(
        monkeypatch,
        tmp_path,
        {
            "dense": [True] * 9 + [False],
            "window:window=64": [True] + [False] * 9,
            chance: [True] * 7 + [False, False, True],
        },
    )
    dense, window, random = (e.recall["passkey"] for e in found.entries)
    assert (dense.asked, dense.hits, dense.older) == (9, 9, 0)
    assert (window.asked, window.hits, window.older, window.older_hits, window.farthest) == (9, 1, 8, 0, 10)
    assert (random.hits, random.older_hits, random.farthest) == (7, 6, 610)
    # Six that one answers and the other does not, and none the other way: two tails of a fair coin.
    (pair,) = found.pairs
    assert pair.difference == pytest.approx(-6 / 9) and pair.p == pytest.approx(2 / 2**6)
    assert found.alike(found.entries[2], "passkey") and not found.alike(found.entries[1], "passkey")
    said = sentence(found)
    assert said.startswith("Most is recalled by Random at 64 tokens: 7 of 9") and "6 of 8 recalled" in said


def test_of_a_task_of_which_dense_recalls_nothing_that_is_said(monkeypatch, tmp_path):
    chance = str(policy("random:recent=16").at_budget(64))
    hits = {"dense": [False] * 3, "window:window=64": [True, False, False], chance: [False] * 3}
    found = recalled(monkeypatch, tmp_path, hits)
    assert [(e.recall["passkey"].asked, e.recall["passkey"].hits) for e in found.entries] == [(0, 0)] * 3
    assert not found.pairs and sentence(found).startswith("Dense has recalled nothing that was asked")
    header, rows = table(found)
    assert header[-1] == "passkey" and [row[-1] for row in rows] == ["0/0"] * 3
    changed = msgspec.structs.replace
    read = changed(VERDICT, entries=[changed(e, recall=found.entries[1].recall, kl=None) for e in VERDICT.entries])
    assert sentence(read).endswith("; dense itself recalls nothing of passkey.")
    with pytest.raises(ValueError, match=r"dense itself recalls nothing of passkey: choose one of perplexity$"):
        Pareto("passkey").numbers(read)
    # Dense alone is nothing to draw: its distance from itself was measured, and no other.
    first = changed(read.entries[0], kl=0.0)
    with pytest.raises(ValueError, match=r"kl was not measured: choose one of perplexity$"):
        Pareto("kl").numbers(changed(read, entries=[first, *read.entries[1:]]))


def test_all_questions_of_one_text_count(monkeypatch, tmp_path):
    """Nothing in a text of questions and answers says where their facts stand."""
    chance = str(policy("random:recent=16").at_budget(64))
    hits = {"dense": [True] * 4 + [False], "window:window=64": [True] + [False] * 4, chance: [True] * 5}
    found = recalled(monkeypatch, tmp_path, hits, depth=None, repeat=0, distance=None)
    assert [(e.recall["passkey"].asked, e.recall["passkey"].hits) for e in found.entries] == [(4, 4), (4, 1), (4, 4)]
    assert found.pairs[0].difference == pytest.approx(-3 / 4) and found.pairs[0].p == pytest.approx(2 / 2**3)


@pytest.mark.parametrize(("distance", "older"), [(64, 0), (65, 3)])
def test_a_fact_as_old_as_its_cache_is_large_is_not_older(distance, older, monkeypatch, tmp_path):
    hits = {p: [True] * 3 for p in ("dense", "window:window=64", str(policy("random:recent=16").at_budget(64)))}
    found = recalled(monkeypatch, tmp_path, hits, distance=distance)
    assert [e.recall["passkey"].older for e in found.entries] == [0, older, older]


def test_the_command_writes_its_files_and_goes_on(run, place, tmp_path):
    asked = ["compare", "--model", place, "--device", "cpu", "--policies", "window,streaming", "--budgets", "64"]
    asked += ["--tokens", "300", "--lengths", "300", "--depths", "5,95", "--repeats", "1", "--out", str(tmp_path)]
    code, said, wrong = run(*asked, "--tasks", "perplexity")
    assert code == 0, wrong
    assert "Finished." in said and "÷ dense" in said
    first = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/run.json")}
    assert len(first) == 3
    code, said, wrong = run(*asked, "--tasks", "perplexity,passkey")
    assert code == 0, wrong
    assert first.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/run.json")}.items()
    found = read_verdict(tmp_path)
    assert found.entries[0].policy == "dense" and found.texts == ["hamlet"]
    assert "Window" in (tmp_path / "table.md").read_text() and sentence(found) in (tmp_path / "table.md").read_text()
    assert (tmp_path / "pairs.csv").read_text().startswith("Budget,Task,Policy,Other policy,Difference,p\n")
    assert json.loads((tmp_path / "verdict.json").read_text())["pairs"]


def test_a_text_is_named_as_its_file_is(run, model, tmp_path):
    names = ["one,two.npy", "seed=3.npy"]
    for name in names:
        np.save(tmp_path / name, np.arange(40) % 7)
    texts = [word for name in names for word in ("--text", str(tmp_path / name))]
    asked = ["--policies", "window", "--budgets", "8", "--tasks", "perplexity", "--tokens", "40"]
    code, _, wrong = run("compare", "--model", model, "--device", "cpu", *asked, *texts, "--out", str(tmp_path / "o"))
    assert code == 0, wrong
    assert read_verdict(tmp_path / "o").texts == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--policies", "duo"], "it has no budget"),
        (["--policies", "nothing"], "there is no policy"),
        (["--policies", ""], "name at least one policy"),
        (["--policies", "dense"], "name one more policy"),
        (["--budgets", "some"], "--budgets is written as numbers with commas"),
        (["--budgets", "0"], "--budgets must be 1 to"),
        (["--budgets", "4"], "choose a larger budget"),
        (["--tasks", "smell"], "there is no task"),
        (["--text", "nowhere"], "there is no text 'nowhere'"),
        (["--text", ""], "'' is not a file"),
        (["--lengths", "1"], "--lengths must be 2 to"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(run, place, tmp_path, wrong, says):
    code, _, said = run("compare", "--model", place, "--device", "cpu", *wrong, "--out", str(tmp_path / "o"))
    assert code == 2 and says in said and said.startswith("error: ") and said.count("\n") == 1
