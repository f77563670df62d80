"""Answers are what a greedy decoder says; and a map of recall is a grid whose cells are kept."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.engine.stream import open_lanes
from analysis.experiments.recall import cells, parse
from analysis.experiments.recall.encoding import Asked, Encoded, Tokens
from analysis.experiments.recall.scoring import answers
from analysis.models.loading import load
from analysis.policies import parse as policy
from analysis.runs.status import here

from .tokenizers import byte_level

pytestmark = pytest.mark.whole

POLICIES = [
    "dense",
    "window:window=40",
    "streaming:sinks=4,window=36",
    "recompute:window=30,stride=4",
    "duo:sinks=4,window=36",
    "h2o:budget=40,recent=16",
    "snapkv:budget=40,recent=8,interval=4",
    "pyramid:budget=40,recent=8",
]
COLUMNS = ["task", "policy", "length", "depth", "repeat", "seed", "hit", "nll", "answer", "said"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny random model that has a tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("speaking"), byte_level()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    network = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def speaking(place):
    return load(place, device="cpu")


def random_text(questions: int = 1) -> Encoded:
    """Random tokens, of which some are questions and answers of five tokens."""
    ids = np.random.default_rng(3).integers(0, 320, 120 * questions).astype(np.int32)
    asked = [
        Asked(begin + 100, begin + 110, begin + 115, (begin + 20, begin + 25)) for begin in range(0, len(ids), 120)
    ]
    return Encoded(ids, tuple(asked))


def generated(model, ids, name, count) -> list[int]:
    """What a greedy decoder says behind a text."""
    lane = open_lanes(model, ids, [policy(name)])[0]
    while not lane.done:
        lane.read(64)
    return [int(lane.next(lambda logits: int(logits.argmax())).token_ids[0]) for _ in range(count)]


@pytest.mark.parametrize("name", [p for p in POLICIES if not p.startswith("duo")])
def test_what_a_greedy_decoder_says_is_a_hit_and_anything_else_is_not(speaking, name):
    text = random_text()
    (asked,) = text.asked
    said = generated(speaking, text.ids[: asked.answer], name, 5)
    text.ids[asked.answer : asked.stop] = said
    (answer,) = answers(speaking, text, policy(name))
    assert answer.hit and answer.wrong is None and list(answer.said) == said
    text.ids[asked.answer + 2] = (said[2] + 1) % 320
    (answer,) = answers(speaking, text, policy(name))
    assert not answer.hit and answer.wrong == 2 and list(answer.said[:3]) == said[:3]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("asking", ["aware", "blind"])
def test_generating_and_reading_agree(speaking, name, stays, asking):
    text = random_text(2)
    how = {"stays": stays, "asking": asking}
    read = list(answers(speaking, text, policy(name), **how))
    spoken = list(answers(speaking, text, policy(name), decode=True, **how))
    assert len(read) == len(spoken) == 2
    for a, b in zip(read, spoken, strict=True):
        assert (a.hit, a.wrong, a.distance) == (b.hit, b.wrong, b.distance)
        assert a.nll == pytest.approx(b.nll, abs=1e-4)
        until = len(a.said) if a.wrong is None else a.wrong + 1
        assert a.said[:until] == b.said[:until]


@pytest.mark.parametrize("name", [p for p in POLICIES if p != "dense"])
def test_a_cache_larger_than_the_text_answers_as_dense_does(speaking, name):
    large = policy(name.replace("=40", "=4000").replace("=36", "=4000").replace("=30", "=4000"))
    (dense,), (other,) = (answers(speaking, random_text(), p) for p in (policy("dense"), large))
    assert other.said == dense.said and other.nll == pytest.approx(dense.nll, abs=1e-4)
    assert other.kept == dense.kept == 1 and other.distance == dense.distance == 85


def test_of_a_window_that_has_left_the_fact_nothing_is_kept(speaking):
    (gone,) = answers(speaking, random_text(), policy("window:window=40"))
    (half,) = answers(speaking, random_text(), policy("window:window=92"))
    # Of tokens 20 to 24 those from 22 on, when token 114 is to be predicted.
    assert gone.kept == 0 and half.kept == pytest.approx(3 / 5)


def test_of_a_fact_that_begins_among_the_sinks_these_are_kept(speaking):
    text = random_text()
    early = Encoded(text.ids, (replace(text.asked[0], needle=(2, 6)),))
    (found,) = answers(speaking, early, policy("streaming:sinks=4,window=36"))
    assert found.kept == pytest.approx(2 / 4)


@pytest.mark.parametrize("name", ["window:window=40", "h2o:budget=40,recent=16", "pyramid:budget=40,recent=8"])
def test_a_blind_lane_has_compressed_before_it_sees_the_question(speaking, name, monkeypatch):
    from analysis.engine.lane import Lane

    text, seen, switch = random_text(), [], Lane.switch
    (asked,) = text.asked

    def watched(lane, to, **how):
        seen.append((lane.context.tokens.copy(), held(lane)))
        switch(lane, to, **how)

    monkeypatch.setattr(Lane, "switch", watched)
    list(answers(speaking, text, policy(name), asking="blind"))
    (at_question, before), (at_end, after) = seen
    assert at_question.tolist() == text.ids[: asked.question].tolist()
    alone = open_lanes(speaking, text.ids[: asked.question], [policy(name)])[0]
    while not alone.done:
        alone.read(64)
    assert before == held(alone)
    # Nothing of it has gone when the answer has been read.
    assert len(at_end) == asked.stop and all(b <= a for b, a in zip(before, after, strict=True))


def held(lane) -> list[set[int]]:
    """Text positions that each KV head of each layer holds."""
    return [
        set(layer.of_head(head)[0].tolist())
        for layer in lane.store.layers
        for head in range(lane.context.model.kv_heads)
    ]


@pytest.mark.parametrize("tokens", [20, 21])
@pytest.mark.parametrize("name", [*POLICIES, "pyramid:budget=60,recent=8,interval=8"])
def test_a_roomier_policy_has_room_for_so_many_more_in_every_layer(name, tokens):
    narrow, wide = policy(name), policy(name).with_room(tokens)
    for layer in range(5) if narrow.store == "ranked" else ():
        assert wide.budget_of(layer, 5) >= narrow.budget_of(layer, 5) + tokens
    if name.startswith(("window", "streaming", "duo")):
        assert wide.window == narrow.window + tokens


def test_what_is_asked_aside_leaves_no_trace(speaking):
    text = random_text(2)
    a, b = text.asked
    # The second fact follows the first answer at once.
    b = replace(b, needle=(a.stop, a.stop + 3))
    first, second = answers(speaking, Encoded(text.ids, (a, b)), policy("dense"), stays=False)
    alone = np.concatenate((text.ids[: a.question], text.ids[a.stop :]))
    gone = a.stop - a.question
    needle = (b.needle[0] - gone, b.needle[1] - gone)
    (same,) = answers(
        speaking, Encoded(alone, (Asked(b.question - gone, b.answer - gone, b.stop - gone, needle),)), policy("dense")
    )
    assert second.said == same.said and second.nll == pytest.approx(same.nll, abs=1e-4)
    assert second.distance == same.distance and second.kept == 1 and first.distance == 85
    # A fact that stands before the first question is where it was.
    c = replace(b, needle=a.needle)
    _, third = answers(speaking, Encoded(text.ids, (a, c)), policy("window:window=64"), stays=False)
    assert third.distance == b.answer - gone - a.needle[1] and third.kept == 0


def asked_of(place, out, *more, task="passkey"):
    words = ["recall", task, "--model", place, "--device", "cpu", "--lengths", "300,400", "--depths", "5,95"]
    return [*words, "--policy", "dense", "--policy", "window:window=64", "--out", str(out), *more]


def test_the_command_writes_a_table_and_goes_on(run, place, tmp_path, monkeypatch):
    code, said, wrong = run(*asked_of(place, tmp_path, "--repeats", "2", "--seed", "5"))
    assert code == 0, wrong
    rows = pq.read_table(tmp_path / "recall.parquet").to_pandas()
    assert list(rows.columns[: len(COLUMNS)]) == COLUMNS and rows["hit"].dtype == bool
    assert len(rows) == 2 * 2 * 2 * 2 and set(rows["policy"]) == {"dense", "window:window=64"}
    assert set(rows["task"]) == {"passkey"} and set(rows["seed"]) == {5} and set(rows["depth"]) == {5.0, 95.0}
    # Texts are the same under every policy.
    by_policy = [of.drop(columns=["policy", "hit", "nll", "said", "wrong", "kept"]) for _, of in rows.groupby("policy")]
    assert by_policy[0].reset_index(drop=True).equals(by_policy[1].reset_index(drop=True))
    assert "Window 64" in said and "0 to 49 %" in said and "0/4" in said
    counted, write = [], cells.RecallCell.write
    monkeypatch.setattr(cells.RecallCell, "write", lambda cell, *a: counted.append(cell) or write(cell, *a))
    code, *_ = run(*asked_of(place, tmp_path, "--repeats", "3", "--seed", "5"))
    assert code == 0 and len(counted) == 8 and {c.place.repeat for c in counted} == {2}
    assert len(pq.read_table(tmp_path / "recall.parquet")) == 24


def test_a_cell_is_the_answer_that_the_engine_gives(run, place, speaking, tmp_path):
    run(*asked_of(place, tmp_path))
    tokens, task = Tokens(speaking.tokenizer), parse("passkey")
    for row in cells.read_table(tmp_path):
        text = tokens.encode(task.sample(cells.Place(row.length, row.depth, row.repeat), row.seed, tokens))
        (answer,) = answers(speaking, text, policy(row.policy))
        assert row.nll == pytest.approx(answer.nll, abs=1e-4) and row.wrong == answer.wrong
        assert row.said == speaking.tokenizer.decode(answer.said).strip() and row.distance == answer.distance


def test_a_file_of_ones_own_has_a_row_for_each_line_and_other_lines_are_other_cells(run, place, tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"context": "to be or not to be", "question": "be?", "answer": "not"}) + "\n")
    out = tmp_path / "out"
    assert run(*asked_of(place, out, task=f"jsonl:file={file}"))[0] == 0
    assert [r.answer for r in cells.read_table(out)] == ["not"] * 2
    file.write_text(json.dumps({"context": "to be or not to be", "question": "be?", "answer": "to"}) + "\n")
    assert run(*asked_of(place, out, task=f"jsonl:file={file}"))[0] == 0
    assert [r.answer for r in cells.read_table(out)] == ["to"] * 2


@pytest.mark.parametrize("command", ["recall", "compare"])
def test_what_cannot_begin_leaves_no_folder_and_a_whole_one_as_it_is(run, place, tmp_path, command):
    asked = asked_of(place, tmp_path / "o")
    if command == "compare":
        asked = ["compare", "--model", place, "--device", "cpu", "--policies", "window", "--budgets", "64"]
        asked += ["--tokens", "300", "--tasks", "perplexity", "--out", str(tmp_path / "o")]
    wrong = {"--jobs": ("0", "--jobs must be at least 1 process"), "--backend": ("abacus", "there is no backend")}
    wrong["--model"] = (str(tmp_path / "none"), "there is no model")
    for name, (value, says) in wrong.items():
        code, _, said = run(*asked, name, value)
        assert code == 2 and says in said and not list(tmp_path.iterdir())
    assert run(*asked)[0] == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for name, (value, says) in list(wrong.items())[:2]:
        code, _, said = run(*asked, name, value)
        assert code == 2 and says in said
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_that_somebody_writes_or_that_holds_something_else_is_left_as_it_is(run, place, tmp_path):
    other = ["compare", "--model", place, "--device", "cpu", "--policies", "window", "--budgets", "64"]
    other += ["--tokens", "300", "--tasks", "perplexity", "--out"]
    sinks = ["reproduce", "sinks", "--model", place, "--device", "cpu", "--tokens", "100", "--cache", "16", "--out"]
    assert run(*asked_of(place, tmp_path / "recall"))[0] == 0
    assert run(*other, str(tmp_path / "compare"))[0] == 0
    about = json.loads((tmp_path / "recall" / "run.json").read_text()) | {"status": "running", "process": here()}
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "run.json").write_text(json.dumps(about))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    refused = {
        "is being written by process": [asked_of(place, tmp_path / "busy")],
        "holds a run of another kind": [
            asked_of(place, tmp_path / "compare"),
            [*other, str(tmp_path / "recall")],
            [*sinks, str(tmp_path / "recall")],
        ],
        "holds something already": [asked_of(place, tmp_path), [*other, str(tmp_path)]],
    }
    for says, commands in refused.items():
        for words in commands:
            code, _, said = run(*words)
            assert code == 2 and says in said and said.count("\n") == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_tasks_are_listed(run):
    code, said, _ = run("recall")
    assert code == 0 and all(name in said for name in ("passkey", "streameval", "jsonl", "back=20"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["nothing"], "there is no task 'nothing'"),
        (["passkey:haystack=nowhere"], "there is no text 'nowhere'"),
        (["passkey", "--lengths", "300,many"], "--lengths is written as numbers with commas"),
        (["passkey", "--lengths", "20"], "choose a larger length"),
        (["passkey", "--lengths", ""], "name at least one policy and one length"),
        (["passkey", "--depths", "101"], "--depths must be from 0 to 100 %"),
        (["passkey", "--depths", "nan"], "--depths must be from 0 to 100 %"),
        (["passkey", "--depths", "5.01,50,5.04"], "depths 5.01 and 5.04 are one to 0.1 %"),
        (["passkey", "--repeats", "0"], "1 to 10,000 texts"),
        (["passkey", "--seed", str(2**63)], "--seed must be from 0 to 9,223,372,036,854,775,807"),
        (["passkey", "--question", "deaf"], "aware or blind, not 'deaf'"),
        (["passkey", "--policy", "nothing"], "there is no policy"),
        (["jsonl"], "jsonl:file=PATH"),
        (["jsonl:file=/no/such/file"], "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(run, place, tmp_path, wrong, says):
    code, _, said = run("recall", *wrong, "--model", place, "--device", "cpu", "--out", str(tmp_path / "o"))
    assert code == 2 and says in said and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("hits", "asked", "low", "high"), [(0, 5, 0, 0.4345), (5, 5, 0.5655, 1), (50, 100, 0.4038, 0.5962)]
)
def test_intervals_are_wilsons(hits, asked, low, high):
    # The numbers are statsmodels' proportion_confint(…, method="wilson").
    assert cells.wilson(hits, asked) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.real
def test_the_embedded_model_recalls_a_pass_key_that_is_in_its_cache_and_no_other(embedded):
    tokens, task = Tokens(embedded.tokenizer), parse("passkey")
    text = tokens.encode(task.sample(cells.Place(200, 20.0, 0), 0, tokens))
    (dense,), (streaming,) = (
        answers(embedded, text, policy(p)) for p in ("dense", "streaming:sinks=4,window=60")
    )  # fmt: skip
    assert dense.hit and dense.kept == 1 and dense.nll < 0.5
    assert not streaming.hit and streaming.kept == 0 and streaming.nll > 1.5
