"""A live map of recall: what the command computes, dense first; it stops, goes on, and asks nothing twice."""

import csv
import io
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import msgspec
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.experiments import grid
from analysis.experiments.recall import cells
from analysis.experiments.recall.asked import Asked
from analysis.runs import library
from analysis.runs.held import strangers
from analysis.runs.spec import Spec
from analysis.tables import as_text
from app import recordings
from app.jobs.paces import Paces
from app.jobs.recall import RecallJob
from app.panels.recall_map import Found, as_table

from .tokenizers import byte_level
from .waiting import until

pytestmark = pytest.mark.whole

POLICIES = ("window:window=64", "dense")
ASKED = Asked("passkey", (300, 400), (5.0, 95.0), 2, 5)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A folder with a tiny random model that has a tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("speaking"), byte_level()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    return tmp_path


def spec_of(speaking, policies=POLICIES, asked=ASKED) -> Spec:
    return Spec(speaking, asked.task, policies, chunk=32, device="cpu")


def begun(registry, speaking, asked=ASKED, policies=POLICIES, **more) -> RecallJob:
    return registry.start(partial(RecallJob, spec_of(speaking, policies, asked), asked, **more))


def finished(registry, job):
    until(job, lambda: not job.live)
    assert job.status == "finished", job.note
    return job


def test_answers_are_those_of_the_command_dense_first(registry, speaking, tmp_path):
    job = finished(registry, begun(registry, speaking))
    found = job.snapshot
    assert found.done == found.total == 16 and found.share == 1 and found.now is None
    assert [row.policy for row in found.rows] == ["dense"] * 8 + ["window:window=64"] * 8
    wanted = ASKED.cells(spec_of(speaking))
    list(grid.run(wanted, tmp_path / "alone"))
    assert list(found.rows) == cells.rows_of(wanted, tmp_path / "alone")
    assert list(found.rows) == cells.read_table(library.home() / job.id) == job.figure_input().data


def test_a_map_does_not_go_on_with_cells_of_other_weights(registry, speaking, home):
    long = replace(ASKED, lengths=(300, 400, 500, 600), repeats=8)
    job = begun(registry, speaking, long)
    until(job, lambda: job.snapshot.done >= 1)
    job.request("stopped")
    until(job, lambda: not job.live)
    of, *_, last = long.cells(spec_of(speaking, asked=long))
    about = home / job.id / of.name / "run.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"weights_sha256": "0" * 64}))
    again = begun(registry, speaking, long, resumes=job.id)
    until(again, lambda: not again.live)
    assert again.status == "failed" and f"{of.name} was computed with other weights" in again.note
    assert not (home / job.id / last.name).exists()


def test_the_library_lists_it_and_opens_it_as_the_page_left_it(registry, speaking):
    job = finished(registry, begun(registry, speaking))
    entry = library.entry(job.id)
    assert (entry.kind, entry.status, entry.title) == ("recall", "finished", "Recall: passkey")
    kept = recordings.result(job.id, "recall")
    assert Found.of_result(kept) == Found.of_job(job)
    assert not strangers(entry.path)
    lines = list(csv.DictReader(io.StringIO(as_table(job.snapshot.rows), newline="")))
    assert list(lines[0])[:10] == [
        "task",
        "policy",
        "length",
        "depth",
        "repeat",
        "seed",
        "hit",
        "nll",
        "answer",
        "said",
    ]
    assert [(of["answer"], of["said"]) for of in lines] == [
        (as_text(row.answer), as_text(row.said)) for row in job.snapshot.rows
    ]
    odd = msgspec.structs.replace(job.snapshot.rows[0], answer="=1+1", said="-", depth=None, nll=-0.5)
    (of,) = csv.DictReader(io.StringIO(as_table([odd]), newline=""))
    assert [of[name] for name in ("answer", "said", "depth", "nll")] == ["'=1+1", "'-", "", "-0.5"]


def test_what_is_stopped_goes_on_and_asks_nothing_twice(registry, speaking, monkeypatch):
    job = begun(registry, speaking)
    until(job, lambda: job.snapshot is not None and job.snapshot.done >= 2)
    job.request("stopped")
    until(job, lambda: not job.live)
    assert job.status == "stopped" and library.entry(job.id).status == "interrupted"
    before = Found.of_result(recordings.result(job.id, "recall"))
    kept = len(list((library.home() / job.id).glob("*/run.json")))
    assert 2 <= kept < 16
    asked, rows = [], cells.RecallCell.rows
    monkeypatch.setattr(cells.RecallCell, "rows", lambda cell, *a: asked.append(cell.name) or rows(cell, *a))
    again = finished(registry, begun(registry, speaking, resumes=job.id))
    assert again.id == job.id and len(set(asked)) == len(asked) == 16 - kept
    assert again.snapshot.rows[: len(before.rows)] == before.rows and again.snapshot.done == 16
    assert library.entry(job.id).status == "finished"


def test_a_stop_is_heard_in_the_middle_of_a_cell(registry, speaking):
    long = Asked("passkey", (60_000,), (5.0,), 1, 0)
    job = begun(registry, speaking, long, ("dense",))
    until(job, lambda: job.snapshot is not None and job.snapshot.share > 0)
    assert job.snapshot.now.place.length == 60_000 and job.snapshot.seconds_left > 0
    job.request("stopped")
    until(job, lambda: not job.live)
    assert job.status == "stopped" and job.snapshot.done == 0
    # What was not asked to its end is not kept.
    assert not list((library.home() / job.id).glob("*/run.json"))


def test_cells_of_another_run_are_taken_over_where_they_are_the_same(registry, speaking, monkeypatch):
    first = finished(registry, begun(registry, speaking))
    asked, rows = [], cells.RecallCell.rows
    monkeypatch.setattr(cells.RecallCell, "rows", lambda cell, *a: asked.append(cell) or rows(cell, *a))
    more = Asked("passkey", (300, 350), (5.0, 95.0), 2, 5)
    job = finished(registry, begun(registry, speaking, more, like=first.id))
    assert {cell.place.length for cell in asked} == {350} and len(asked) == 8 and len(job.snapshot.rows) == 16
    asked.clear()
    # Other numbers are another run.
    other = Spec(speaking, "passkey", POLICIES, chunk=32, device="cpu", dtype="bfloat16")
    finished(registry, registry.start(partial(RecallJob, other, more, like=first.id)))
    assert len(asked) == 16


def test_every_answer_of_a_stream_is_told_when_it_is_given(registry, speaking):
    stream = Asked("streameval:back=2,every=2,digits=2", (900,), (), 1, 0)
    job, seen = begun(registry, speaking, stream, ("dense",)), set[int]()
    until(job, lambda: seen.add(len(job.snapshot.rows)) or not job.live)
    finished(registry, job)
    assert len(job.snapshot.rows) > 3 and len(seen) > 2 and job.snapshot.done == job.snapshot.total == 1


def test_uploaded_questions_lie_in_their_folder_and_go_on_from_there(registry, speaking):
    lines = [{"context": "to be or not to be", "question": "be?", "answer": "not"}] * 3
    questions = "\n".join(map(json.dumps, lines)).encode()
    job = finished(registry, begun(registry, speaking, Asked("jsonl", (), (), 1, 0), questions=questions))
    assert (library.home() / job.id / "questions.jsonl").read_bytes() == questions
    assert [row.answer for row in job.snapshot.rows] == ["not"] * 6
    assert Found.of_result(recordings.result(job.id, "recall")).rows == job.snapshot.rows
    assert not strangers(library.home() / job.id)
    # Whoever finds all slots held reads this.
    assert job.about == "recall of A file of one's own"


def test_a_page_reads_no_file_that_a_result_of_others_names(registry, speaking, tmp_path):
    (tmp_path / "secret.jsonl").write_text(json.dumps({"context": "a", "question": "b", "answer": "c"}))
    asked = Asked(f"jsonl:file={tmp_path / 'secret.jsonl'}", (), (), 1, 0)
    asked.folder(spec_of(speaking, asked=asked), library.home() / "theirs").finish("interrupted")
    with pytest.raises(ValueError, match="not in its folder"):
        Found.of_result(recordings.result("theirs", "recall"))


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        (Asked("passkey", (300, 20), (5.0,), 1, 0), "choose a larger length"),
        (Asked("passkey", (300,), (101.0,), 1, 0), "Depths must be from 0 to 100"),
        (Asked("passkey", (300,) * 1000, (5.0,) * 1000, 1000, 0), "more than the 1,000,000"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(registry, speaking, asked, wrong):
    job = begun(registry, speaking, asked)
    until(job, lambda: not job.live)
    assert job.status == "failed" and wrong in job.note
    # Nothing that could be resumed, and would fail again.
    assert not library.entries()


def test_a_model_without_a_tokenizer_is_refused(registry, model):
    job = begun(registry, model)
    until(job, lambda: not job.live)
    assert job.status == "failed" and "no tokenizer that says where its tokens stand" in job.note


def test_the_command_completes_what_a_page_began(registry, speaking, run):
    job = begun(registry, speaking)
    until(job, lambda: job.snapshot is not None and job.snapshot.done >= 2)
    job.request("stopped")
    until(job, lambda: not job.live)
    code, said, wrong = run("resume", job.id)
    assert code == 0 and "Finished" in said, wrong
    assert library.entry(job.id).status == "finished" and len(cells.read_table(library.home() / job.id)) == 16


def test_what_a_command_asked_is_opened_by_its_page(speaking, run):
    words = ["recall", "passkey", "--model", speaking, "--device", "cpu", "--lengths", "300", "--depths", "2.5"]
    assert run(*words, "--policy", "window:window=64")[0] == 0
    found = Found.of_result(recordings.result("recall-passkey", "recall"))
    assert len(found.rows) == 1 and found.table
    assert found.asked.depths == (2.5,) and library.entry("recall-passkey").kind == "recall"
    again = found.asked.command(found.spec).split()[3:]
    assert run(*again)[0] == 0
    assert len(list((library.home() / "recall-passkey").glob("*/run.json"))) == 1


def test_a_text_of_more_tokens_than_was_thought_is_no_more_than_done():
    spec = Spec("m", "t", ("dense", "window:window=64"))
    first, second = (SimpleNamespace(spec=spec, size=size) for size in (100, 300))
    paces = Paces([first, second])
    paces.read(first, 90)
    assert paces.said["share"] == pytest.approx(90 / 400)
    paces.read(first, 90)
    assert paces.said["share"] == 0.25
    paces.end(first)
    assert paces.said["share"] == 0.25
    paces.read(second, 300)
    paces.end(second)
    assert (paces.said["share"], paces.said["seconds_left"]) == (1, 0)
